package nexus

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestCloseTellsPeersAndEndsEverything(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		sa, sb := serve(t, a, 7), serve(t, b, 7)
		var da, db downs
		for range 500 {
			connect(t, a, addrB, 7, &da)
			connect(t, b, addrA, 7, &db)
		}
		m.set(func() { m.loss = 0.2 })
		begin := time.Now()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took > closeTimeout {
			t.Errorf("took %v", took)
		}
		if err := b.Close(); err != nil {
			t.Error("again:", err)
		}
		time.Sleep(time.Millisecond)
		for name, tc := range map[string]struct {
			errs []error
			want error
		}{
			"client at the closed one": {db.all(), ErrClosed}, "server at the closed one": {sb.ended(), ErrClosed},
			"client at the other": {da.all(), ErrDisconnected}, "server at the other": {sa.ended(), ErrDisconnected},
		} {
			if len(tc.errs) != 500 {
				t.Errorf("%s: %d ends", name, len(tc.errs))
			}
			for _, err := range tc.errs {
				if !errors.Is(err, tc.want) {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		if live(a) != nothing || live(b) != nothing {
			t.Errorf("left: %s; %s", live(a), live(b))
		}
		if _, _, err := b.Connect(t.Context(), addrA, 7, nil, nil); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		if _, err := b.Register(9, sb); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		if err := sb.conns[0].Close(t.Context()); err != nil {
			t.Error("connection of a closed Nexus:", err)
		}
	})
}

func TestCloseEndsConnectAndAccept(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		var d downs
		if _, err := b.Register(7, acceptFunc(func(ctx context.Context, c *Conn, _ []byte) ([]byte, error) {
			c.OnDown(d.call)
			<-ctx.Done()
			return nil, nil
		})); err != nil {
			t.Fatal(err)
		}
		errs := make(chan error, 2)
		go func() {
			_, _, err := a.Connect(t.Context(), addrB, 7, nil, nil) // is being accepted
			errs <- err
		}()
		go func() {
			_, _, err := b.Connect(t.Context(), "10.9.9.9:9", 7, nil, nil) // nobody there
			errs <- err
		}()
		time.Sleep(time.Second)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		var refused *RefusedError
		for range 2 {
			if err := <-errs; !errors.Is(err, ErrClosed) && (!errors.As(err, &refused) || refused.Reason != ReasonShuttingDown) {
				t.Error(err)
			}
		}
		if refused == nil {
			t.Error("the client was not refused")
		}
		if errs := d.all(); len(errs) != 1 || !errors.Is(errs[0], ErrClosed) {
			t.Error(errs)
		}
	})
}

func TestCloseIsBoundedByAnAcceptThatIgnoresItsContext(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		stop := make(chan struct{})
		if _, err := b.Register(7, acceptFunc(func(context.Context, *Conn, []byte) ([]byte, error) {
			<-stop
			return nil, nil
		})); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { _, _, _ = a.Connect(t.Context(), addrB, 7, nil, nil) })
		time.Sleep(time.Second)
		if err := b.Close(); err == nil || !strings.Contains(err.Error(), "1 Accept") {
			t.Error(err)
		}
		close(stop)
		wg.Wait()
	})
}

func TestUnregisterRefusesFurtherConnections(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := &server{downs: make(map[*Conn][]error)}
		unregister, err := b.Register(7, s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Register(7, s); err == nil {
			t.Error("the same endpoint twice")
		}
		var d downs
		connect(t, a, addrB, 7, &d)
		unregister()
		var refused *RefusedError
		if _, _, err := a.Connect(t.Context(), addrB, 7, nil, nil); !errors.As(err, &refused) || refused.Reason != ReasonNoSuchEndpoint {
			t.Error(err)
		}
		if len(d.all()) != 0 {
			t.Error("the old connection ended")
		}
		serve(t, b, 7)
		unregister() // not the new one's
		connect(t, a, addrB, 7, &d)
	})
}

func TestOtherVersionsAreRefusedBothWays(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a := start(t, m, addrA)
		serve(t, a, 7)
		old := m.listen(addrB)
		defer old.Close()

		connect2 := (&message{version: 2, kind: kindConnect, from: 5, id: 6, endpoint: 7}).encode()
		if _, err := old.WriteToUDPAddrPort(connect2, a.Addr()); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 2000)
		n, _, err := old.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		if msg, err := decode(buf[:n]); err != nil || msg.kind != kindRefuse || msg.reason != ReasonVersion || msg.to != 5 || msg.id != 6 {
			t.Errorf("%+v, %v", msg, err)
		}

		go func() {
			n, from, err := old.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			msg, _ := decode(buf[:n])
			_, _ = old.WriteToUDPAddrPort((&message{version: 9, kind: kindRefuse, acceptor: true, from: 5, to: msg.from, id: msg.id,
				reason: ReasonVersion}).encode(), from)
		}()
		var refused *RefusedError
		if _, _, err := a.Connect(t.Context(), addrB, 7, nil, nil); !errors.As(err, &refused) || refused.Reason != ReasonVersion ||
			!strings.Contains(refused.Text, "version 9") {
			t.Error(err)
		}
		if s := a.Stats(); s.Version != 2 || s.Conns != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// twoFaced receives at one address and sends from another, as a host of several
// addresses may.
type twoFaced struct {
	*memConn
	out *memConn
}

func (c twoFaced) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	return c.out.WriteToUDPAddrPort(b, to)
}

func TestServerMayAnswerFromAnotherAddress(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a := start(t, m, addrA)
		out := m.listen("10.0.0.3:3000")
		defer out.Close()
		in := twoFaced{m.listen(addrB), out}
		b := start(t, m, addrB, WithConn(in))
		m.set(func() { m.ports[in.addr], m.ports[out.addr] = in.memConn, in.memConn })
		s := serve(t, b, 7)
		var d downs
		c := connect(t, a, addrB, 7, &d)
		if c.Peer().Addr() != in.addr {
			t.Errorf("the peer is taken to be at %v", c.Peer().Addr())
		}
		time.Sleep(time.Minute)
		if len(d.all())+len(s.ended()) != 0 {
			t.Error(d.all(), s.ended())
		}
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// brokenConn fails to read until it is closed.
type brokenConn struct {
	*memConn
	reads int
}

func (c *brokenConn) ReadFromUDPAddrPort([]byte) (int, netip.AddrPort, error) {
	c.reads++
	select {
	case <-c.done:
		return 0, netip.AddrPort{}, net.ErrClosed
	default:
		return 0, netip.AddrPort{}, syscall.ECONNREFUSED
	}
}

func TestReadErrorsNeitherEndNorSpinTheNexus(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		c := &brokenConn{memConn: m.listen(addrA)}
		n, err := New(addrA, WithConn(c))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if c.reads < 50 || c.reads > 200 {
			t.Errorf("%d reads in 10 s", c.reads)
		}
	})
}

func TestGarbageIsCountedAndHarmless(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		serve(t, b, 7)
		c := connect(t, a, addrB, 7, nil)
		good := a.disconnectMessage(c).encode()
		for n := range good {
			b.receive(a.Addr(), good[:n])
		}
		b.receive(a.Addr(), []byte("GET / HTTP/1.1\r\n\r\n"))
		b.receive(a.Addr(), nil)
		if s := b.Stats(); s.Foreign != 10 || s.Malformed != uint64(len(good)-8) || s.Conns != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func FuzzReceive(f *testing.F) {
	for _, m := range validMessages() {
		f.Add(m.encode())
	}
	fuzzReceive(f)
}

func fuzzReceive(f *testing.F, opts ...Option) {
	m := newMemNet(1)
	n, err := New(addrA, append(opts, WithConn(m.listen(addrA)))...)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { n.Close() })
	if _, err := n.Register(0, acceptFunc(func(context.Context, *Conn, []byte) ([]byte, error) { return nil, nil })); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) { n.receive(netip.MustParseAddrPort(addrB), b) })
}

func TestLogSaysThatThereIsNoKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		n := start(t, newMemNet(1), addrA, WithLogger(slog.New(slog.NewTextHandler(&out, nil))), WithLogger(nil))
		if n.URI() != addrA || !strings.Contains(out.String(), "no key") || !strings.Contains(out.String(), addrA) {
			t.Errorf("%s: %s", n.URI(), out.String())
		}
	})
}

// The rest is over real sockets.

func TestUDPConnectCallClose(t *testing.T) {
	b, err := New("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	s := serve(t, b, 7)
	for _, listen := range []string{"127.0.0.1:0", ":0", "localhost:0"} {
		a, err := New(listen)
		if err != nil {
			t.Fatal(err)
		}
		for _, uri := range []string{b.URI(), strings.Replace(b.URI(), "127.0.0.1", "localhost", 1)} {
			c, reply, err := a.Connect(t.Context(), uri, 7, []byte("hi"), nil)
			if err != nil || string(reply) != "re: hi" {
				t.Fatalf("%s to %s: %q, %v", listen, uri, reply, err)
			}
			if err := c.Close(t.Context()); err != nil {
				t.Errorf("%s to %s: %v", listen, uri, err)
			}
		}
		if _, _, err := a.Connect(t.Context(), b.URI(), 7, nil, nil); err != nil {
			t.Error(err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := s.accepted(); n != 9 || b.Stats().Conns != 0 {
		t.Errorf("%d accepted, %s", n, live(b))
	}
}

func TestUDPPortTakenSaysSo(t *testing.T) {
	a, err := New("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := New(a.URI())
	if err == nil {
		b.Close()
	}
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), a.URI()) || !strings.Contains(err.Error(), "choose another port") {
		t.Error(err)
	}
}

func TestBadURIsAreErrorsThatSayWhatToDo(t *testing.T) {
	a, err := New("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for uri, want := range map[string]string{
		"":                   "host:port",
		"nohost":             "host:port",
		"1.2.3.4:99999":      "0 to 65535",
		"1.2.3.4:http":       "0 to 65535",
		"does-not.invalid:1": "does not resolve",
	} {
		if n, err := New(uri); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("new %q: %v %v", uri, n, err)
		}
		if _, _, err := a.Connect(t.Context(), uri, 1, nil, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("connect %q: %v", uri, err)
		}
	}
	for uri, want := range map[string]string{
		":1": "needs a host", "127.0.0.1:0": "needs a host", "[::1]:9": "address family",
	} {
		if _, _, err := a.Connect(t.Context(), uri, 1, nil, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("connect %q: %v", uri, err)
		}
	}
	if n, err := New("192.0.2.1:0"); err == nil || !strings.Contains(err.Error(), "does not have that address") {
		t.Errorf("new at a foreign address: %v %v", n, err)
	}
}

func TestUDPUnansweredConnectTimesOut(t *testing.T) {
	silent, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	a, err := New("127.0.0.1:0", WithRetry(5*time.Millisecond, 20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var timeout *TimeoutError
	if _, _, err := a.Connect(ctx, silent.LocalAddr().String(), 7, nil, nil); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Error(err)
	}
}

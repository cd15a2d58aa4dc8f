package main

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/leakcheck"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// tcpPair is a TCP connection.
func tcpPair(t *testing.T) (a, b net.Conn) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp4", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { errors.Join(a.Close(), b.Close()) })
	return a, b
}

// twoHosts is two simulated devices on one wire.
func twoHosts(t *testing.T) (hosts [2]*host, log *bytes.Buffer) {
	if runtime.GOOS != "linux" {
		t.Skip("maps memory as Linux does")
	}
	a, b := net.Pipe()
	log = new(bytes.Buffer)
	for i, frames := range []net.Conn{a, b} {
		h, err := newHost(frames, netip.AddrFrom4([4]byte{10, 9, 0, byte(i + 1)}), log)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		})
		hosts[i] = h
	}
	return hosts, log
}

// askSecond runs the scenario: the second host answers a guest, of whose device the
// first one takes the place.
func askSecond(t *testing.T, hosts [2]*host, lossy bool, l limits) error {
	here, there := tcpPair(t)
	var wg sync.WaitGroup
	var answered error
	wg.Go(func() { answered = hosts[1].handle(newTalk(there)) })
	talk := newTalk(here)
	err := talk.tell(request{Scenario: true, Lossy: lossy})
	if err == nil {
		var out bytes.Buffer
		err = errors.Join(hosts[0].open(func(h *half) error {
			h.limits = l
			return runScenario(h, talk, lossy, &out)
		}), talk.verdict())
		t.Log(out.String())
	}
	here.Close()
	wg.Wait()
	return errors.Join(err, answered)
}

func TestSimulatedDevicesInterOperate(t *testing.T) {
	for _, tt := range []struct {
		lossy bool
		limits
	}{{false, limits{}}, {true, limits{}}, {true, limits{NoEmptyRead: true, NoLongRead: true}}} {
		hosts, log := twoHosts(t)
		if err := askSecond(t, hosts, tt.lossy, tt.limits); err != nil {
			t.Errorf("%+v: %v", tt, err)
		}
		t.Log(log)
	}
}

func TestHostSaysWhyItCannot(t *testing.T) {
	hosts, _ := twoHosts(t)
	for _, r := range []request{{}, {PingPong: &pingpong{Size: slotBytes}}} {
		here, there := tcpPair(t)
		var wg sync.WaitGroup
		wg.Go(func() { hosts[1].handle(newTalk(there)) })
		talk := newTalk(here)
		if err := talk.tell(r); err != nil {
			t.Fatal(err)
		}
		var a answer
		if err := talk.hear(&a); err == nil && a.Port != 0 {
			c, err := net.Dial("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(a.Port)))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			err = talk.hear(&a)
			if err != nil {
				t.Fatal(err)
			}
		}
		if a.Err == "" {
			t.Errorf("%+v: no error", r)
		}
		wg.Wait()
	}
}

func TestHalvesThatLoseEachOtherNoticeIt(t *testing.T) {
	for _, tt := range []struct {
		other meeting
		want  string
	}{
		{meeting{At: "elsewhere"}, "lost each other"},
		{meeting{At: "there", Err: "no"}, "the other half, at there: no"},
	} {
		a, b := tcpPair(t)
		if err := newTalk(b).tell(tt.other); err != nil {
			t.Fatal(err)
		}
		if err := newTalk(a).meet("here"); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, want %q", err, tt.want)
		}
	}
}

func TestGreetingsAreThoseOfThePrograms(t *testing.T) {
	g := greeting{qpn: 0x1a3, psn: 0xffffc1, gid: uverbs.GIDFromAddr(netip.MustParseAddr("10.9.0.1"))}
	const text = "0000:0001a3:ffffc1:00000000000000000000ffff0a090001\x00"
	if g.String() != text {
		t.Errorf("%q, want %q", g, text)
	}
	if got, err := parseGreeting(text); err != nil || got != g {
		t.Errorf("%+v, %v", got, err)
	}
	for n := range text {
		if got, err := parseGreeting(text[:n]); err == nil {
			t.Errorf("cut at %d: %+v", n, got)
		}
	}
	for _, bad := range []string{strings.Replace(text, "0a09", "0axx", 1), strings.Replace(text, "0001a3", "0001z3", 1), text[:50] + "0"} {
		if got, err := parseGreeting(bad); err == nil && got == g {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

func FuzzGreeting(f *testing.F) {
	f.Add("0000:0001a3:ffffc1:00000000000000000000ffff0a090001\x00")
	f.Fuzz(func(t *testing.T, text string) {
		g, err := parseGreeting(text)
		if err != nil {
			return
		}
		if again, err := parseGreeting(g.String()); err != nil || again != g {
			t.Errorf("%+v becomes %+v, %v", g, again, err)
		}
	})
}

package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

func TestHeaderBytesAreFixed(t *testing.T) {
	h := Header{Kind: KindLargeResponse, Type: 0xAB, Slot: 5, Session: 0x01020304, Token: 0x11121314, Seq: 0x21222324}
	var b [HeaderBytes]byte
	h.Put(&b)
	want := [HeaderBytes]byte{0x24, 0xAB, 5, 0, 4, 3, 2, 1, 0x14, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21}
	if b != want {
		t.Errorf("header is % x, want % x", b, want)
	}
	c := Control{Addr: 0x0102030405060708, Len: 0x1112131415161718, RKey: 0x21222324, Conn: 0x31323334}
	var cb [ControlBytes]byte
	c.Put(&cb)
	wantC := [ControlBytes]byte{8, 7, 6, 5, 4, 3, 2, 1, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21, 0x34, 0x33, 0x32, 0x31}
	if cb != wantC {
		t.Errorf("control block is % x, want % x", cb, wantC)
	}
}

func TestHeaderAndControlCutAtEveryLength(t *testing.T) {
	var b [HeaderBytes]byte
	(&Header{Kind: KindRequest, Seq: 1}).Put(&b)
	for n := range b {
		if _, ok := ParseHeader(b[:n]); ok {
			t.Errorf("a header of %d bytes is accepted", n)
		}
	}
	if h, ok := ParseHeader(append(b[:], 1, 2, 3)); !ok || h.Seq != 1 {
		t.Error("a header with a body is refused")
	}
	var c [ControlBytes]byte
	(&Control{Len: 1}).Put(&c)
	for n := range c {
		if _, ok := ParseControl(c[:n]); ok {
			t.Errorf("a control block of %d bytes is accepted", n)
		}
	}
	if _, ok := ParseControl(append(c[:], 0)); ok {
		t.Error("a control block that is too long is accepted")
	}
	for k := range 16 {
		b[0] = Version<<4 | byte(k)
		if _, ok := ParseHeader(b[:]); ok != (k >= 1 && k < int(kindEnd)) {
			t.Errorf("kind %d (%v): accepted %v", k, Kind(k), ok)
		}
	}
}

func FuzzParseHeader(f *testing.F) {
	f.Add(make([]byte, 16))
	f.Add([]byte("\x21\x02\x03\x00seestokeseqn"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ok := ParseHeader(b)
		if !ok {
			return
		}
		var again [HeaderBytes]byte
		h.Put(&again)
		if !bytes.Equal(again[:], b[:HeaderBytes]) {
			t.Errorf("% x is written back as % x", b[:HeaderBytes], again)
		}
	})
}

func FuzzParseControl(f *testing.F) {
	f.Add(make([]byte, 24))
	f.Add(append(bytes.Repeat([]byte{0xff}, 20), 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, ok := ParseControl(b)
		if !ok {
			return
		}
		if c.Addr+c.Len < c.Addr {
			t.Error("the block wraps around the address space")
		}
		var again [ControlBytes]byte
		c.Put(&again)
		if !bytes.Equal(again[:], b) {
			t.Errorf("% x is written back as % x", b, again)
		}
	})
}

func TestDecodeErrorOfEveryCode(t *testing.T) {
	text := append([]byte{7, 0, 0, 0}, "text"...)
	for code, want := range map[Code]error{
		CodeNoHandler: ErrNoHandler, CodeNoMemory: ErrServerMemory, CodeTooLarge: ErrTooLarge,
		CodeReadFailed: ErrReadFailed, CodeBadResponse: ErrBadResponse, 0: ErrProtocol, CodeBadResponse + 1: ErrProtocol, 255: ErrProtocol,
	} {
		if err := decodeError(code, nil); err != want {
			t.Errorf("code %d: %v, want %v", code, err, want)
		}
	}
	var he *HandlerError
	for n := range text {
		err := decodeError(CodeHandler, text[:n])
		switch {
		case n == 0 && (!errors.As(err, &he) || *he != HandlerError{}),
			n > 0 && n < 4 && err != ErrProtocol,
			n >= 4 && (!errors.As(err, &he) || *he != HandlerError{Code: 7, Message: string(text[4:n])}):
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	if err := decodeError(CodePanic, text); !errors.As(err, &he) || !he.Panic || !strings.Contains(err.Error(), "panicked") {
		t.Errorf("panic: %v", err)
	}
	if err := decodeError(CodeHandler, make([]byte, 4+MaxErrorText+1)); err != ErrProtocol {
		t.Errorf("text that is too long: %v", err)
	}
}

func FuzzDecodeError(f *testing.F) {
	f.Add(uint8(CodeHandler), []byte("codetext"))
	f.Add(uint8(CodeNoMemory), []byte{})
	f.Fuzz(func(t *testing.T, code uint8, body []byte) {
		err := decodeError(Code(code), body)
		if err == nil {
			t.Fatal("no error")
		}
		var he *HandlerError
		if errors.As(err, &he) && len(he.Message) > MaxErrorText {
			t.Errorf("text of %d bytes", len(he.Message))
		}
		_ = err.Error()
	})
}

// FuzzReceive feeds datagrams to a client and a server that are in the midst
// of their work. The input is a sequence of records: a byte that says to whom
// and how, a byte for the length, and so many bytes; with length 255, zeros follow
// up to the length of a part that is not the last. Raw ones are delivered as
// they are; the others get the right session and token, as those of a peer
// that lies. Whatever comes, every call ends once, a good end needs a response
// to this very request, and in the end nothing is left over.
func FuzzReceive(f *testing.F) {
	record := func(how byte, h Header, body []byte) []byte {
		d := datagram(h, body).data
		return append([]byte{how, byte(len(d))}, d...)
	}
	ctl := make([]byte, ControlBytes)
	ctl[8] = 100
	blocks := map[string][]byte{}
	for name, b := range map[string]Part{"last": {1001, 1}, "first": {1001, 0}, "beyond": {1001, 2}, "long": {1 << 30, 0}} {
		var at [PartBytes]byte
		b.Put(&at)
		blocks[name] = append(at[:], make([]byte, 9)...)
	}
	pad := func(rec []byte) []byte {
		rec[1] = 255
		return append(rec, make([]byte, 255-(len(rec)-2))...)
	}
	for _, how := range []byte{2, 3} {
		for k := KindRequestPart; k <= KindMissing; k++ {
			h := Header{Kind: k, Type: 1, Slot: 3, Seq: 1}
			var all []byte
			for _, b := range blocks {
				all = append(all, record(how, h, b)...)
			}
			all = append(all, pad(record(how|8, h, blocks["first"]))...)
			f.Add(append(all, record(how|128, Header{Kind: KindMissing, Slot: 3, Seq: 1}, bytes.Repeat([]byte{0xff}, 8))...))
		}
	}
	for _, to := range []byte{0, 1} {
		for k := KindRequest; k < kindEnd; k++ {
			for _, body := range [][]byte{nil, []byte("body"), ctl} {
				f.Add(append(record(to|2, Header{Kind: k, Type: 1, Slot: 1, Seq: 1}, body), record(to|2|8, Header{Kind: k, Type: 2, Slot: 1, Seq: 2}, body)...))
				f.Add(record(to, Header{Kind: k, Slot: 1, Seq: 1}, body))
			}
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		p := newPairOfParts(t, 4, func(c *Config) { c.Offers = len(in)%2 == 1 })
		ok := map[*Call]bool{} // a good end is allowed
		var kept []*Handle
		p.s.e.Handle(1, echo)
		p.s.e.Handle(2, func(h *Handle) (msgbuf.Buf, error) { kept = append(kept, h); return h.Defer() })
		p.s.e.Handle(3, func(h *Handle) (msgbuf.Buf, error) { return p.s.e.Alloc(5000) })
		var calls []*Call
		for i, n := range []int{10, 500, 5000, 3000, 10} {
			c := p.call(uint8(1+i%3), n, 200+i%2*4000)
			c.Deadline = p.now + 10_000*ms
			calls = append(calls, c)
		}
		p.c.sent()
		for len(in) >= 2 {
			how, n := in[0], int(in[1])
			in = in[2:]
			n = min(n, len(in))
			d := append([]byte(nil), in[:n]...)
			in = in[n:]
			if n == 255 {
				d = append(d, make([]byte, HeaderBytes+testMaxSmall-n)...)
			}
			ep, s := p.c, p.cs
			if how&1 != 0 {
				ep, s = p.s, p.ss
			}
			h, good := ParseHeader(d)
			if how&2 != 0 && len(d) >= HeaderBytes {
				binary.LittleEndian.PutUint32(d[4:], s.Index())
				binary.LittleEndian.PutUint32(d[8:], s.Token())
				h, good = ParseHeader(d)
			}
			good = good && h.Token == s.Token() && h.Session == s.Index() && int(h.Slot) < testWindow
			if good && ep == p.c {
				if c := p.cs.slots[h.Slot].call; c != nil && h.Seq == p.cs.slots[h.Slot].seq && (h.Kind == KindResponse || h.Kind == KindLargeResponse || h.Kind == KindResponsePart) {
					ok[c] = true
				}
			}
			p.c.sent()
			p.s.sent()
			before := len(p.ended)
			p.to(ep, packet{data: d})
			if !good && (len(p.ended) != before || len(ep.e.Tx)+len(ep.e.Reads) != 0) {
				t.Fatalf("a datagram without the right token has an effect: % x", d)
			}
			ep.flush()
			ep.out = nil
			if how&8 != 0 {
				p.wait(30 * ms)
			}
			if how&16 != 0 && len(kept) > 0 {
				kept[0].Take()
				p.s.e.Respond(p.now, kept[0], msgbuf.Buf{}, nil)
				kept = kept[1:]
			}
			if how&96 == 64 {
				p.c.grant(p.now, 1)
				p.s.grant(p.now, 2)
			}
			if how&32 != 0 {
				finishReads(p, how&64 != 0)
			}
			if how&128 != 0 {
				ep.txDone()
				ep.revoke()
			}
		}
		for _, c := range calls {
			c.Abort(p.now)
		}
		p.c.flush()
		for _, h := range kept {
			h.Take()
			p.s.e.Respond(p.now, h, msgbuf.Buf{}, nil)
		}
		p.cs.Fail(p.now, ErrPeerDead)
		p.ss.Fail(p.now, ErrPeerDead)
		finishReads(p, false)
		for _, ep := range []*endpoint{p.c, p.s} {
			ep.txDone()
			ep.revoke()
		}
		for _, c := range calls {
			if !p.over(c) {
				t.Fatal("a call did not end")
			}
			if c.Err == nil && !ok[c] {
				t.Fatal("a call ended well without a response")
			}
			if c.Resp.Len() > c.Resp.Cap() {
				t.Fatal("response longer than its buffer")
			}
		}
		p.finish()
	})
}

// finishReads ends the READs in flight, well where both ends are registered
// memory.
func finishReads(p *pair, well bool) {
	for _, ep := range []*endpoint{p.c, p.s} {
		ep.flush()
		for len(ep.reads) > 0 {
			r := ep.reads[0]
			ep.read(p.now, well && p.mem.remote(r.Remote, r.Len, r.RKey, r.Conn) != nil)
		}
	}
}

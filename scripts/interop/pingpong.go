package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// pingpong is the other side of a run of rdma-core's ibv_rc_pingpong or
// ibv_ud_pingpong.
type pingpong struct {
	UD     bool
	Client bool // this side is the client, the program the server
	Size   int  // bytes of a message: the program's -s
	Iters  int  // messages each way: its -n
}

// program is the name of the program.
func (o pingpong) program() string {
	if o.UD {
		return "ibv_ud_pingpong"
	}
	return "ibv_rc_pingpong"
}

func (o pingpong) String() string {
	if o.Client {
		return o.program() + " as server"
	}
	return o.program() + " as client"
}

// greeting is what both sides of those programs send first, as text with a NUL:
// LID, QPN, PSN and GID.
type greeting struct {
	qpn, psn uint32
	gid      uverbs.GID
}

const (
	greetingBytes = len("0000:000000:000000:00000000000000000000000000000000") + 1
	farewell      = "done\x00" // the client's last word
)

func (g greeting) String() string {
	return fmt.Sprintf("%04x:%06x:%06x:%x\x00", 0, g.qpn, g.psn, g.gid[:])
}

func parseGreeting(text string) (g greeting, err error) {
	bad := fmt.Errorf("greeting %q is not LID:QPN:PSN:GID", text)
	if len(text) != greetingBytes || text[greetingBytes-1] != 0 {
		return g, bad
	}
	var lid uint32
	if n, err := fmt.Sscanf(text[:19], "%04x:%06x:%06x:", &lid, &g.qpn, &g.psn); err != nil || n != 3 {
		return g, bad
	}
	if n, err := hex.Decode(g.gid[:], []byte(text[19:greetingBytes-1])); err != nil || n != len(g.gid) {
		return g, bad
	}
	return g, nil
}

func hearGreeting(c net.Conn) (greeting, error) {
	b := make([]byte, greetingBytes)
	if _, err := io.ReadFull(c, b); err != nil {
		return greeting{}, fmt.Errorf("no greeting: %w", err)
	}
	return parseGreeting(string(b))
}

// What the programs fill their buffer with. They have one: what is received
// goes back with the next message, so that every byte can be checked.
const firstByte = 0x7b

const (
	slots     = 16 // receives that are posted
	slotBytes = 16 << 10
)

// play runs the other side over a connection to the program.
func (h *half) play(o pingpong, c net.Conn) error {
	c.SetDeadline(time.Now().Add(patience))
	typ, head := uverbs.QPTypeRC, 0
	if o.UD {
		typ, head = uverbs.QPTypeUD, grhBytes
	}
	if o.Size+head+guard > slotBytes {
		return fmt.Errorf("messages of %d bytes are too long", o.Size)
	}
	qp, err := h.createQP(typ)
	if err != nil {
		return err
	}
	ours := greeting{qpn: qp.QPN(), psn: nearWrap(qp.QPN()), gid: h.gid.GID}
	if o.UD {
		err = upUD(qp, ours.psn)
	} else {
		err = initRC(qp)
	}
	if err != nil {
		return err
	}
	at := func(i int) int { return inAt + i%slots*slotBytes }
	receive := func(i int) error {
		h.poison(at(i), head+o.Size)
		return recv(qp, uint64(i), h.sge(at(i), head+o.Size))
	}
	for i := range min(slots, o.Iters) {
		if err := receive(i); err != nil {
			return err
		}
	}
	theirs, ah, err := h.greet(o, c, qp, ours)
	if err != nil {
		return err
	}
	send := func(i int) error {
		h.fill(outAt, o.Size, uint32(i))
		wr := uverbs.SendWR{WRID: uint64(i), Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{h.sge(outAt, o.Size)}}
		if o.UD {
			wr.AH, wr.RemoteQPN, wr.RemoteQKey = ah, theirs.qpn, qkey
		}
		return errors.Join(post(qp, wr), h.sent(uint64(i), uverbs.WCSend))
	}
	for i := range o.Iters {
		if o.Client {
			if err := send(i); err != nil {
				return fmt.Errorf("message %d: %w", i, err)
			}
		}
		wc, err := h.received(uint64(i), uverbs.WCRecv, head+o.Size)
		if err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
		if o.UD && wc.SrcQP != theirs.qpn {
			return fmt.Errorf("message %d comes from QP %#x, want %#x", i, wc.SrcQP, theirs.qpn)
		}
		if err := h.echoed(o, i, at(i)+head); err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
		if i+slots < o.Iters {
			if err := receive(i + slots); err != nil {
				return err
			}
		}
		if !o.Client {
			if err := send(i); err != nil {
				return fmt.Errorf("message %d: %w", i, err)
			}
		}
	}
	return nil
}

// greet exchanges greetings as the programs do, and connects.
func (h *half) greet(o pingpong, c net.Conn, qp *uverbs.QP, ours greeting) (theirs greeting, ah *uverbs.AH, err error) {
	say := func(text string) error {
		_, err := io.WriteString(c, text)
		return err
	}
	if o.Client {
		if err := say(ours.String()); err != nil {
			return theirs, nil, err
		}
	}
	if theirs, err = hearGreeting(c); err != nil {
		return theirs, nil, err
	}
	if o.UD {
		av := h.to(theirs.gid)
		if ah, err = h.pd.CreateAH(&av); err != nil {
			return theirs, nil, err
		}
		h.closers = append(h.closers, ah.Close)
	} else if err := h.connectRC(qp, link{gid: theirs.gid, qpn: theirs.qpn, psn: theirs.psn, own: ours.psn, mtu: uverbs.MTU1024,
		reads: 1, timeout: 14, retries: 7}); err != nil {
		return theirs, nil, err
	}
	if o.Client {
		return theirs, ah, say(farewell)
	}
	if err := say(ours.String()); err != nil {
		return theirs, nil, err
	}
	last := make([]byte, len(farewell))
	if _, err := io.ReadFull(c, last); err != nil || string(last) != farewell {
		return theirs, nil, fmt.Errorf("the program says %q (%v), want %q", last, err, farewell)
	}
	return theirs, ah, nil
}

// echoed checks message i: it is what this side sent last, or the program's
// own first one.
func (h *half) echoed(o pingpong, i, at int) error {
	switch {
	case o.Client:
		return h.holds(at, o.Size, uint32(i))
	case i > 0:
		return h.holds(at, o.Size, uint32(i-1))
	}
	for k, b := range h.mem(at, o.Size) {
		if b != firstByte {
			return fmt.Errorf("byte %d is %#x, want %#x", k, b, firstByte)
		}
	}
	return nil
}

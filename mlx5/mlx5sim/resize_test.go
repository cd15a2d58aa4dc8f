package mlx5sim

import (
	"math/rand/v2"
	"syscall"
	"testing"
)

// copyCQEs is the program's half of a resize, after libmlx5: what it has not
// polled goes to the next index of the new buffer, up to the entry that ends the
// old one.
func (n *node) copyCQEs(c *cq, buf uint64, size uint32, cqeSize int) {
	n.t.Helper()
	db := n.at(c.dbrec, 4)
	ci := be.Uint32(db)
	for i := ci; ; i++ {
		old := n.at(buf+uint64(i&(size-1))*uint64(cqeSize), uint32(cqeSize))
		own := old[cqeSize-1]
		if own>>4 == 0xf || uint32(own&1) != i/size&1 {
			n.t.Fatalf("entry %d of the old buffer has owner %#x", i, own)
		}
		if own>>4 == cqeResize {
			break
		}
		if i-ci == size {
			n.t.Fatal("the old buffer does not end")
		}
		dst := n.at(c.buf+uint64((i+1)&(c.size-1))*uint64(c.cqeSize), uint32(c.cqeSize))
		copy(dst[c.cqeSize-cqeBytes:], old[cqeSize-cqeBytes:])
		last := &dst[c.cqeSize-1]
		*last = *last&^1 | uint8((i+1)/c.size&1)
	}
	be.PutUint32(db, (ci+1)&ciMask)
}

// resized moves c to the buffer at buf.
func (n *node) resized(c *cq, buf uint64, size uint32, cqeSize int) error {
	old, oldSize, oldCQE := c.buf, c.size, c.cqeSize
	for i := range size {
		n.at(buf+uint64(i+1)*uint64(cqeSize)-1, 1)[0] = 0xf0
	}
	if err := c.resize(buf, size, cqeSize); err != nil {
		return err
	}
	n.copyCQEs(c, old, oldSize, oldCQE)
	return nil
}

func TestResizeLosesNoCompletion(t *testing.T) {
	r := newRig(t)
	n := r.node(r.device("10.0.0.1"))
	c := n.cq(4)
	rng := rand.New(rand.NewPCG(1, 1))
	spare := [2]uint64{n.alloc(64 * cqeBytes), n.alloc(64 * cqeBytes)}
	pushed, polled, resizes, events := uint16(0), uint16(0), 0, 0
	for range 3000 {
		switch k := rng.IntN(10); {
		case k < 4:
			if used := uint32(pushed - polled); used+1 < c.size {
				c.add(&cqe{opcode: cqeReq, counter: pushed})
				pushed++
			}
		case k < 8:
			if pushed != polled {
				raw, ok := n.poll(c)
				if !ok || be.Uint16(raw[60:]) != polled {
					t.Fatalf("polled %x, want completion %d", raw[60:], polled)
				}
				polled++
			} else if _, ok := n.poll(c); ok {
				t.Fatal("polled something of an empty queue")
			}
		case k < 9:
			size := uint32(2) << rng.IntN(6)
			if err := n.resized(c, spare[0], size, 64); err == nil {
				spare[0], spare[1] = spare[1], spare[0]
				resizes++
			} else if size != c.size && uint32(pushed-polled) < size {
				t.Fatalf("resize to %d with %d entries: %v", size, pushed-polled, err)
			}
		default:
			n.arm(c, false)
			if c.armed {
				if pushed-polled != 0 && c.eventPI != c.pi && events == 0 {
					t.Fatal("armed with something unseen")
				}
			}
		}
	}
	if resizes < 100 || pushed < 500 || c.overrun {
		t.Errorf("%d resizes, %d completions, overrun %v", resizes, pushed, c.overrun)
	}
}

func TestResizeKeepsTheArming(t *testing.T) {
	r := newRig(t)
	n := r.node(r.device("10.0.0.1"))
	c := n.cq(8)
	c.add(&cqe{opcode: cqeReq})
	n.arm(c, false) // at once: an entry is unseen
	if len(events(c.channel)) != 1 {
		t.Fatal("no event")
	}
	n.arm(c, false) // the same entry raises none again
	if err := n.resized(c, n.alloc(32*128), 32, 128); err != nil {
		t.Fatal(err)
	}
	n.arm(c, false)
	if recs := events(c.channel); len(recs) != 0 {
		t.Errorf("the resize itself raised %d events", len(recs))
	}
	c.add(&cqe{opcode: cqeReq})
	if len(events(c.channel)) != 1 {
		t.Error("no event after the resize")
	}
}

func TestResizeIsRefusedWhereEntriesDoNotFit(t *testing.T) {
	r := newRig(t)
	n := r.node(r.device("10.0.0.1"))
	c := n.cq(8)
	for range 4 {
		c.add(&cqe{opcode: cqeReq})
	}
	if err := n.resized(c, n.alloc(4*64), 4, 64); err != syscall.EINVAL {
		t.Errorf("4 entries into 4 slots, with the last entry between: %v", err)
	}
	for range 4 {
		c.add(&cqe{opcode: cqeReq})
	}
	if err := n.resized(c, n.alloc(64*64), 64, 64); err != syscall.EINVAL {
		t.Errorf("no slot for the last entry: %v", err)
	}
	if c.size != 8 || c.pi != 8 || len(n.pollAll(c)) != 8 {
		t.Errorf("a refused resize changed the queue: %+v", c)
	}
}

func TestResizeCQCommand(t *testing.T) {
	u := newUser(t)
	u.getContext()
	_, index := u.allocUAR()
	cqh := u.createCQ(index)
	c := u.f.handles[cqh].(*cq)
	buf := u.alloc(64 << 10)
	uhw := func(buf uint64, size uint16) []byte {
		b := make([]byte, 16)
		le.PutUint64(b, buf)
		le.PutUint16(b[8:], size)
		return b
	}
	resize := func(h, cqe uint32, uhw []byte) ([]byte, uint64) {
		in := make([]byte, 16)
		le.PutUint32(in[8:], h)
		le.PutUint32(in[12:], cqe)
		out := u.out(attrCoreOut, 8)
		return writeCommand(19, u.in(attrCoreIn, in), out, u.in(attrUHWIn, uhw)), out.data
	}
	before := *c
	for _, tt := range []struct {
		name  string
		h     uint32
		cqe   uint32
		uhw   []byte
		errno syscall.Errno
	}{
		{"no such CQ", 99, 63, uhw(buf, 64), syscall.ENOENT},
		{"cqe 0", cqh, 0, uhw(buf, 64), syscall.EINVAL},
		{"too many", cqh, maxCQESlots, uhw(buf, 64), syscall.EINVAL},
		{"no driver half", cqh, 63, uhw(buf, 64)[:8], syscall.EINVAL},
		{"reserved", cqh, 63, append(uhw(buf, 64)[:15], 1), syscall.EINVAL},
		{"CQE size 0", cqh, 63, uhw(buf, 0), syscall.EINVAL},
		{"unmapped", cqh, 63, uhw(1<<40, 64), syscall.EFAULT},
		{"buffer too small", cqh, 1 << 20, uhw(buf, 64), syscall.EFAULT},
	} {
		cmd, _ := resize(tt.h, tt.cqe, tt.uhw)
		if err := u.f.Ioctl(cmd); err != tt.errno {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.errno)
		}
	}
	if *c != before {
		t.Error("a refused resize changed the queue")
	}
	cmd, out := resize(cqh, c.size-1, nil) // the size that it has: nothing to do
	u.must(cmd)
	if n := le.Uint32(u.at(out, 4)); n != before.size-1 || *c != before {
		t.Errorf("answered %d", n)
	}
	cmd, out = resize(cqh, 100, uhw(buf, 128))
	u.must(cmd)
	if n := le.Uint32(u.at(out, 4)); n != 127 || c.buf != buf || c.size != 128 || c.cqeSize != 128 {
		t.Errorf("answered %d, %+v", n, c)
	}
	if own := u.at(before.buf+63, 1)[0]; own != cqeResize<<4 {
		t.Errorf("the old buffer ends in %#x", own)
	}
}

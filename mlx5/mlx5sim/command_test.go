package mlx5sim

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestGenericErrnosAreTheKernels(t *testing.T) {
	u := newUser(t)
	query := func() []byte { return command(objDevice, 2, in64(attrPortNum, 1), u.out(attrPortResp, 48)) }
	edit := func(cmd []byte, f func(b []byte)) []byte { f(cmd); return cmd }

	u.want(syscall.EINVAL, query()) // before GET_CONTEXT
	u.want(syscall.EINVAL, writeCommand(3, u.in(attrCoreIn, make([]byte, 8)), u.out(attrCoreOut, 4)))
	u.want(syscall.EINVAL, command(objAsync, 0, newID(attrAsyncFD)))
	if _, err := u.f.Mmap(0x900000, pageSize, 3); err != syscall.EINVAL {
		t.Errorf("mmap before GET_CONTEXT: %v", err)
	}
	u.getContext()
	u.want(syscall.EINVAL, command(objDevice, 3, u.in(attrUHWIn, uctxReq(16, 4, 0, 1, 3)), u.out(attrUHWOut, 72))) // twice
	u.must(query())

	u.want(syscall.EFAULT, nil)
	u.want(syscall.EINVAL, edit(query(), func(b []byte) { le.PutUint16(b, 999) }))
	u.want(syscall.EINVAL, edit(query(), func(b []byte) { b[6] = 1 }))
	u.want(syscall.EPROTONOSUPPORT, edit(query(), func(b []byte) { b[8] = 1 }))  // reserved1
	u.want(syscall.EPROTONOSUPPORT, edit(query(), func(b []byte) { b[20] = 1 })) // reserved2
	u.want(syscall.EINVAL, edit(query(), func(b []byte) { b[16] = 14 }))         // rxe's driver id
	u.want(syscall.EPROTONOSUPPORT, command(99, 0))
	u.want(syscall.EPROTONOSUPPORT, command(objDevice, 99))
	u.want(syscall.EPROTONOSUPPORT, command(objDevice, 2, in64(attrPortNum, 1), u.out(attrPortResp, 48), in64(77, 0)))
	optional := in64(77, 0)
	optional.flags = 0
	u.must(command(objDevice, 2, in64(attrPortNum, 1), u.out(attrPortResp, 48), optional))
	u.want(syscall.EINVAL, command(objDevice, 2, in64(attrPortNum, 1)))                                                // mandatory one missing
	u.want(syscall.EINVAL, command(objDevice, 2, in64(attrPortNum, 1), in64(attrPortNum, 1), u.out(attrPortResp, 48))) // given twice
	u.want(syscall.EINVAL, command(objDevice, 2, in64(attrPortNum, 1), u.out(attrPortResp, 40)))
	u.want(syscall.EINVAL, command(objDevice, 2, in64(attrPortNum, 2), u.out(attrPortResp, 48)))
	reserved := in64(attrPortNum, 1)
	reserved.reserved = 1
	u.want(syscall.EINVAL, command(objDevice, 2, reserved, u.out(attrPortResp, 48)))
	u.want(syscall.EFAULT, command(objDevice, 2, in64(attrPortNum, 1), tattr{id: attrPortResp, len: 48, flags: 1, data: 8}))
	long := u.in(attrPortNum, append([]byte{1}, make([]byte, 15)...))
	u.must(command(objDevice, 2, tattr{id: attrPortNum, len: 8, flags: 1, data: 1}, u.out(attrPortResp, 48)))
	u.want(syscall.EINVAL, command(objDevice, 2, long, u.out(attrPortResp, 48))) // by pointer: the word is an address, not port 1
	u.want(syscall.EOPNOTSUPP, command(objDevice, 2, u.in(attrPortNum, append([]byte{1}, slices.Repeat([]byte{1}, 15)...)), u.out(attrPortResp, 48)))

	u.want(syscall.EOPNOTSUPP, writeCommand(200))
	u.want(syscall.EOPNOTSUPP, writeCommand(1<<31|50))
	u.want(syscall.EINVAL, writeCommand(0x100))
	u.want(syscall.EBADF, writeCommand(0))                                                              // GET_CONTEXT by this way
	u.want(syscall.ENOSPC, writeCommand(1))                                                             // the library's probe
	u.want(syscall.ENOSPC, writeCommand(3, u.in(attrCoreIn, make([]byte, 8)), u.out(attrCoreOut, 3)))   // short CORE_OUT
	u.want(syscall.ENOSPC, writeCommand(9, u.in(attrCoreIn, make([]byte, 39)), u.out(attrCoreOut, 12))) // short CORE_IN

	u.want(syscall.EINVAL, command(objDevice, 6, in64(0, 1), in64(1, 16), in32(2, 0), u.out(3, 32)))
	u.want(syscall.ENODATA, command(objDevice, 6, in64(0, 1), in64(1, 4), in32(2, 0), u.out(3, 32)))
	u.want(syscall.EINVAL, command(objDevice, 6, in64(0, 2), in64(1, 0), in32(2, 0), u.out(3, 32)))
	u.want(syscall.EINVAL, command(objDevice, 6, in64(0, 1), in64(1, 0), in32(2, 1), u.out(3, 32)))

	if err := u.f.Close(); err != nil {
		t.Fatal(err)
	}
	u.want(syscall.EBADF, query())
	if err := u.f.Close(); err != syscall.EBADF {
		t.Errorf("second Close: %v", err)
	}
}

func TestQueryContextAnswersWhatGetContextDid(t *testing.T) {
	for _, static := range []int{24, 32} { // without and with lib_caps: static and dynamic registers
		u := newUser(t)
		b := uctxReq(16, 4, 0, 1, 3)
		first, again := u.out(attrUHWOut, 72), u.out(attrQueryCtxUCtx, 72)
		vectors := u.out(attrCtxVectors, 4)
		u.want(syscall.EINVAL, command(objDevice, 4, again)) // no context yet
		u.must(command(objDevice, 3, u.in(attrUHWIn, b[:static]), first))
		u.must(command(objDevice, 4, vectors, again))
		if got, want := u.at(again.data, 72), u.at(first.data, 72); !bytes.Equal(got, want) {
			t.Errorf("QUERY_CONTEXT answers\n%x, GET_CONTEXT answered\n%x", got, want)
		}
		if n := le.Uint32(u.at(vectors.data, 4)); n != numCompVectors {
			t.Errorf("%d completion vectors", n)
		}
		u.must(command(objDevice, 4, u.out(attrQueryCtxUCtx, 44)))
	}
}

func TestGetContextTakesAllSizesOfItsStructs(t *testing.T) {
	for _, tt := range []struct {
		name    string
		in      int
		edit    func(b []byte)
		out     int
		errno   syscall.Errno
		version uint8
		total   uint32
	}{
		{name: "v2, all", in: 32, out: 72, version: 1},
		{name: "v2, all, longer", in: 40, out: 80, version: 1},
		{name: "24: no lib_caps, static registers", in: 24, out: 72, version: 1, total: 16},
		{name: "16: no CQE version", in: 16, out: 72, total: 16},
		{name: "8: version 1", in: 8, out: 72, total: 16},
		{name: "short answer", in: 32, out: 44, version: 0},
		{name: "12 is no version", in: 12, out: 72, errno: syscall.EINVAL},
		{name: "nothing", in: 0, out: 72, errno: syscall.EINVAL},
		{name: "DEVX", in: 32, out: 72, edit: func(b []byte) { b[8] = 1 }, errno: syscall.EINVAL},
		{name: "unknown flag", in: 32, out: 72, edit: func(b []byte) { b[8] = 2 }, errno: syscall.EOPNOTSUPP},
		{name: "comp_mask", in: 32, out: 72, edit: func(b []byte) { b[12] = 1 }, errno: syscall.EOPNOTSUPP},
		{name: "reserved0", in: 32, out: 72, edit: func(b []byte) { b[17] = 1 }, errno: syscall.EOPNOTSUPP},
		{name: "reserved2", in: 32, out: 72, edit: func(b []byte) { b[20] = 1 }, errno: syscall.EOPNOTSUPP},
		{name: "no registers", in: 32, out: 72, edit: func(b []byte) { b[0] = 0 }, errno: syscall.EINVAL},
		{name: "all low latency", in: 32, out: 72, edit: func(b []byte) { b[4] = 16 }, errno: syscall.EINVAL},
		{name: "too many registers", in: 24, out: 72, edit: func(b []byte) { b[1] = 3 }, errno: syscall.ENOMEM},
		{name: "count that overflows", in: 24, out: 72, edit: func(b []byte) { copy(b, "\xff\xff\xff\xff") }, errno: syscall.EINVAL},
	} {
		u := newUser(t)
		b := append(uctxReq(16, 4, 0, 1, 3), make([]byte, 16)...)
		if tt.edit != nil {
			tt.edit(b)
		}
		resp := u.out(attrUHWOut, tt.out)
		err := u.f.Ioctl(command(objDevice, 3, u.in(attrUHWIn, b[:tt.in]), resp))
		if tt.errno != 0 {
			if err != tt.errno {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.errno)
			}
			u.getContext() // a failed try does not spoil the next
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		got := u.at(resp.data, tt.out)
		if n := le.Uint32(got[40:]); n != uint32(min(tt.out, 72)) {
			t.Errorf("%s: response_length %d", tt.name, n)
		}
		if le.Uint32(got[8:]) != tt.total || tt.out > 44 && got[44] != tt.version {
			t.Errorf("%s: %d registers, CQE version %d", tt.name, le.Uint32(got[8:]), got[44])
		}
		if tt.out > 72 && !bytes.Equal(got[72:], slices.Repeat([]byte{0xee}, tt.out-72)) {
			t.Errorf("%s: wrote beyond the answer", tt.name)
		}
	}
}

// snapshot counts all that a command can create.
func (u *user) snapshot() [9]int {
	refs := 0
	for _, o := range u.f.handles {
		switch o := o.(type) {
		case *pd:
			refs += o.refs
		case *cq:
			refs += o.refs
		case *srq:
			refs += o.refs
		case *uar:
			refs += o.refs
		}
	}
	return [9]int{len(u.f.handles), len(u.f.events), len(u.f.uars), len(u.d.qps), len(u.d.cqs), len(u.d.mrs), len(u.d.mws), len(u.d.srqs), refs}
}

// sessions calls f with a replay that has run all commands before c.
func sessions(t testing.TB, f func(r *replay, c *recorded)) {
	rec := loadRecording(t, "control_plane")
	r := newReplay(newUser(t))
	r.loose = true
	for i := range rec.Commands {
		if c := &rec.Commands[i]; replayable(c) && c.Ret == 0 {
			f(r, c)
			r.run(c)
		}
	}
}

// replayable excludes what the device does not model.
func replayable(c *recorded) bool { return c.Via == "ioctl" && c.Key != "MLX5_DEVX.OTHER" }

// TestCutCommandsChangeNothing cuts every valid command at every length: the
// command itself, its list of attributes, and every buffer.
func TestCutCommandsChangeNothing(t *testing.T) {
	cuts, accepted := 0, 0
	sessions(t, func(r *replay, c *recorded) {
		mark := r.top
		before, handles := r.snapshot(), maps.Clone(r.f.handles)
		try := func(what string, i, n int, cmd []byte) {
			t.Helper()
			cuts++
			ready := r.f.ready
			err := r.f.Ioctl(cmd)
			r.top = mark
			if err != nil {
				if after := r.snapshot(); after != before {
					t.Errorf("#%d %s, %s %d cut to %d: %v, but %v became %v", c.Seq, c.Key, what, i, n, err, before, after)
				}
				return
			}
			// An answer may be cut, what has a default may be missing, and the
			// driver's structs have grown over the years.
			accepted++
			if a := &c.Attrs[i]; what == "command" || what == "buffer" && a.Kind != "out" && a.Name != "UHW_IN" {
				t.Errorf("#%d %s, %s %d cut to %d: accepted", c.Seq, c.Key, what, i, n)
			}
			if r.f.ready && !ready {
				r.f.ready, r.f.uars, r.f.bfregs = false, nil, nil
			}
			for h := range r.f.handles {
				if handles[h] == nil {
					r.f.remove(h)
				}
			}
			if len(r.f.handles) < len(handles) {
				t.Fatalf("#%d %s, %s %d cut to %d: accepted, and destroyed something", c.Seq, c.Key, what, i, n)
			}
		}
		full, _ := r.build(c)
		for n := range full {
			cmd, _ := r.build(c)
			try("command", 0, n, cmd[:n:n])
			if err := r.f.Ioctl(cmd[:n:n]); err == nil {
				t.Errorf("#%d %s: accepted %d of %d bytes", c.Seq, c.Key, n, len(full))
			}
			r.top = mark
		}
		for n := range c.Attrs {
			_, attrs := r.build(c)
			try("attributes", 0, n, command(c.Object, c.Method, attrs[:n]...))
		}
		for i := range c.Attrs {
			for n := range int(c.Attrs[i].Len) {
				_, attrs := r.build(c)
				attrs[i].len = uint16(n)
				try("buffer", i, n, command(c.Object, c.Method, attrs...))
			}
		}
		for i, a := range c.Attrs {
			if a.Len <= 8 && a.Kind != "out" || a.Len == 0 {
				continue
			}
			if strings.Contains(c.Key, "DESTROY") {
				continue // as in the kernel, the object is gone before the answer is copied
			}
			_, attrs := r.build(c)
			attrs[i].data = userBase + uint64(len(r.arena.mem)) - uint64(a.Len) + 1
			cmd := command(c.Object, c.Method, attrs...)
			if err := r.f.Ioctl(cmd); err != syscall.EFAULT {
				t.Errorf("#%d %s: %s that ends beyond the memory: %v", c.Seq, c.Key, a.Name, err)
			}
			r.top = mark
			if after := r.snapshot(); after != before {
				t.Errorf("#%d %s: %s that ends beyond the memory left %v, was %v", c.Seq, c.Key, a.Name, after, before)
			}
		}
	})
	if cuts < 4000 || accepted == 0 {
		t.Errorf("%d cuts, %d accepted", cuts, accepted)
	}
	t.Logf("%d cuts, %d accepted", cuts, accepted)
}

// FuzzIoctl runs any bytes as a command, at any point of a session, over any
// memory.
func FuzzIoctl(f *testing.F) {
	var recs []*recording
	for _, name := range []string{"control_plane", "control_plane_static_uar"} {
		recs = append(recs, loadRecording(f, name))
	}
	rec := recs[0]
	var steps []*recorded
	for i := range rec.Commands {
		if c := &rec.Commands[i]; replayable(c) && c.Ret == 0 {
			steps = append(steps, c)
		}
	}
	stage := func(t testing.TB, n int) (*replay, uint64) {
		r := newReplay(newUser(t))
		for _, c := range steps[:n] {
			r.run(c)
		}
		r.top = (r.top + pageSize - 1) &^ (pageSize - 1)
		return r, r.top
	}
	for i, c := range steps {
		r, mark := stage(f, i)
		cmd, _ := r.build(c)
		f.Add(uint8(i), cmd, bytes.TrimRight(r.at(mark, int(r.top-mark)), "\x00"))
	}
	f.Fuzz(func(t *testing.T, n uint8, cmd, mem []byte) {
		r, mark := stage(t, int(n)%len(steps))
		copy(r.arena.mem[mark-userBase:], mem)
		before := r.snapshot()
		cmd = slices.Clone(cmd)
		if err := r.f.Ioctl(cmd); err != nil {
			if _, ok := err.(syscall.Errno); !ok {
				t.Errorf("%v is no bare errno", err)
			}
			destroy := len(cmd) >= hdrBytes && methods[methodID{le.Uint16(cmd[2:]), le.Uint16(cmd[4:])}].destroys()
			if after := r.snapshot(); after != before && !destroy {
				t.Errorf("%v, but %v became %v", err, before, after)
			}
		}
		if err := r.f.Close(); err != nil {
			t.Fatal(err)
		}
		if after := r.snapshot(); after != ([9]int{1: len(r.f.events)}) {
			t.Errorf("Close left %v", after)
		}
	})
}

func (m *method) destroys() bool { return m != nil && m.destroy }

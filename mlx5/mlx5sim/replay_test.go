package mlx5sim

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// A recorded session of the real libmlx5, testdata/golden/mlx5/control_plane*.json.
type recording struct {
	Commands []recorded
}

type recorded struct {
	Seq      int
	Via, Key string
	Object   uint16 `json:"object_id"`
	Method   uint16 `json:"method_id"`
	Ret      int
	Offset   int64
	Len      int
	Prot     int
	Attrs    []recordedAttr
}

type recordedAttr struct {
	ID    uint16
	Name  string
	Kind  string
	Len   uint16
	Flags uint16
	Value json.RawMessage
	Data  *struct{ Hex string }
}

// bytes are the attribute's content in the recording; user pointers are 0.
func (a *recordedAttr) bytes(t testing.TB) []byte {
	t.Helper()
	if a.Data != nil {
		b, err := hex.DecodeString(a.Data.Hex)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var w [8]byte
	if v, err := strconv.ParseUint(strings.Trim(string(a.Value), `"`), 0, 64); err == nil {
		le.PutUint64(w[:], v)
	}
	return w[:min(int(a.Len), 8)]
}

func loadRecording(t testing.TB, name string) *recording {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "testdata", "golden", "mlx5", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	r := new(recording)
	if err := json.Unmarshal(b, r); err != nil {
		t.Fatal(err)
	}
	return r
}

// replay feeds a recording to a file, with this file's handles, descriptors
// and addresses in place of the recorded ones.
type replay struct {
	*user
	handles map[uint32]uint32
	fds     map[uint64]uint64
	pages   map[uint32]uint32 // UAR page ids
	loose   bool              // do not compare numbers that depend on what ran before
}

func newReplay(u *user) *replay {
	return &replay{user: u, handles: map[uint32]uint32{}, fds: map[uint64]uint64{}, pages: map[uint32]uint32{}}
}

// Fields of core requests and answers that are handles.
var (
	coreInHandle  = map[string]int{"WRITE.REG_MR": 32, "WRITE.CREATE_AH": 16, "WRITE.MODIFY_QP": 64}
	coreOutHandle = map[string]bool{"WRITE.ALLOC_PD": true, "WRITE.REG_MR": true, "WRITE.CREATE_AH": true}
)

// build makes the command of c with this file's numbers.
func (r *replay) build(c *recorded) ([]byte, []tattr) {
	var attrs []tattr
	for i := range c.Attrs {
		a := &c.Attrs[i]
		ta := tattr{id: a.ID, len: a.Len, flags: a.Flags &^ attrValid}
		switch a.Kind {
		case "in", "const_in":
			b := a.bytes(r.t)
			r.substitute(c.Key, a.Name, b)
			x := r.in(a.ID, b)
			ta.data = x.data
		case "out":
			ta.data = r.out(a.ID, int(a.Len)).data
		case "idr":
			ta.data = uint64(r.handles[le.Uint32(append(a.value(), 0, 0, 0, 0))])
		case "fd":
			ta.data = r.fds[le.Uint64(a.value())]
		case "idr_new", "fd_new":
		default:
			r.t.Fatalf("%s: attribute kind %q", c.Key, a.Kind)
		}
		attrs = append(attrs, ta)
	}
	return command(c.Object, c.Method, attrs...), attrs
}

// value is a handle or descriptor of the recording, 8 bytes.
func (a *recordedAttr) value() []byte {
	var w [8]byte
	v, _ := strconv.ParseUint(string(a.Value), 0, 64)
	le.PutUint64(w[:], v)
	return w[:]
}

// substitute puts our addresses and handles into a recorded request.
func (r *replay) substitute(key, attr string, b []byte) {
	switch {
	case key == "DEVICE.GET_CONTEXT" && attr == "UHW_IN":
		le.PutUint32(b[8:], 0) // the library's second try: without DEVX
	case key == "WRITE.REG_MR" && attr == "CORE_IN":
		a := r.alloc(int(le.Uint64(b[16:])))
		le.PutUint64(b[8:], a)
		le.PutUint64(b[24:], a)
	case key == "CQ.CREATE" && attr == "UHW_IN":
		le.PutUint64(b[0:], r.alloc(256*64))
		le.PutUint64(b[8:], r.alloc(8))
		le.PutUint32(b[24:], r.pages[le.Uint32(b[24:])])
	case key == "SRQ.CREATE" && attr == "UHW_IN":
		le.PutUint64(b[0:], r.alloc(64*64))
		le.PutUint64(b[8:], r.alloc(8))
	case key == "QP.CREATE" && attr == "UHW_IN":
		le.PutUint64(b[0:], r.alloc(int(le.Uint32(b[16:])*64+le.Uint32(b[20:])<<le.Uint32(b[24:]))))
		le.PutUint64(b[8:], r.alloc(8))
		le.PutUint32(b[36:], r.pages[le.Uint32(b[36:])])
	}
	if off, ok := coreInHandle[key]; ok && attr == "CORE_IN" {
		le.PutUint32(b[off:], r.handles[le.Uint32(b[off:])])
	}
}

func (r *replay) run(c *recorded) {
	t := r.t
	t.Helper()
	cmd, attrs := r.build(c)
	if err := r.f.Ioctl(cmd); err != nil && c.Ret == 0 || err == nil && c.Ret != 0 || err != nil && err != syscall.Errno(c.Ret) {
		t.Fatalf("#%d %s: %v, the recording has errno %d", c.Seq, c.Key, err, c.Ret)
	}
	if c.Ret != 0 {
		return
	}
	for i := range c.Attrs {
		a := &c.Attrs[i]
		flags := le.Uint16(cmd[hdrBytes+i*attrBytes+4:])
		want := a.Flags
		if a.Kind == "out" && strings.HasPrefix(c.Key, "WRITE.") {
			want |= attrValid // a kernel marks the answers of INVOKE_WRITE too; the recording's stand-in did not
		}
		if flags != want {
			t.Errorf("#%d %s %s: flags %d, want %d", c.Seq, c.Key, a.Name, flags, want)
		}
		if n := le.Uint16(cmd[hdrBytes+i*attrBytes+2:]); n != a.Len {
			t.Errorf("#%d %s %s: len %d, want %d", c.Seq, c.Key, a.Name, n, a.Len)
		}
		switch a.Kind {
		case "idr_new":
			r.handles[le.Uint32(a.value())] = uint32(dataWord(cmd, i))
		case "fd_new":
			r.fds[le.Uint64(a.value())] = dataWord(cmd, i)
		case "out":
			r.answer(c, a, r.at(attrs[i].data, int(a.Len)))
		}
	}
}

// answer compares an answer with the recorded one, but for what is this
// device's own.
func (r *replay) answer(c *recorded, a *recordedAttr, got []byte) {
	want := a.bytes(r.t)
	if len(want) < len(got) { // larger than the recording keeps
		want = append(want, make([]byte, len(got)-len(want))...)
	}
	mask := func(off, n int) {
		clear(want[off : off+n])
		clear(got[off : off+n])
	}
	if coreOutHandle[c.Key] && a.Name == "CORE_OUT" {
		r.handles[le.Uint32(want)] = le.Uint32(got)
		mask(0, 4)
	}
	switch c.Key + "/" + a.Name {
	case "WRITE.CREATE_COMP_CHANNEL/CORE_OUT":
		r.fds[uint64(le.Uint32(want))] = uint64(le.Uint32(got))
		mask(0, 4)
	case "WRITE.REG_MR/CORE_OUT":
		if l, rk := le.Uint32(got[4:]), le.Uint32(got[8:]); l == 0 || l != rk {
			r.t.Errorf("MR keys %#x and %#x", l, rk)
		}
		mask(4, 8)
	case "MLX5_UAR.ALLOC/PAGE_ID":
		r.pages[le.Uint32(want)] = le.Uint32(got)
	case "WRITE.EX_QUERY_DEVICE/CORE_OUT":
		mask(8, 16)   // GUIDs
		mask(184, 24) // on-demand paging, which that kernel had not
	case "DEVICE.QUERY_GID_ENTRY/RESP_ENTRY":
		mask(28, 4) // ifindex
	case "MLX5_DEVX.OTHER/CMD_OUT":
		mask(16, len(got)-16) // the capabilities, which the recording does not keep
	case "DEVICE.GET_CONTEXT/UHW_OUT":
		// No clock pages, and no registers beyond the static ones: comp_mask
		// lacks CORE_CLOCK_OFFSET, and what belongs to them is 0.
		if m := le.Uint32(want[36:]) &^ 1; le.Uint32(got[36:]) != m {
			r.t.Errorf("comp_mask %#x, want %#x", le.Uint32(got[36:]), m)
		}
		mask(36, 4)
		mask(47, 1) // clock_info_versions
		mask(48, 8) // hca_core_clock_offset
		mask(64, 4) // num_dyn_bfregs
	}
	if d := cmp.Diff(want, got); d != "" && !r.loose {
		r.t.Errorf("#%d %s %s: answer differs (-recorded +ours):\n%s", c.Seq, c.Key, a.Name, d)
	}
}

// TestReplayOfLibmlx5Session runs every command of a recorded session of the
// unmodified library and compares every answer.
func TestReplayOfLibmlx5Session(t *testing.T) {
	for _, name := range []string{"control_plane", "control_plane_static_uar"} {
		t.Run(name, func(t *testing.T) {
			rec := loadRecording(t, name)
			u := newUser(t)
			r := newReplay(u)
			ran, skipped := 0, map[string]int{}
			for i := range rec.Commands {
				c := &rec.Commands[i]
				switch {
				case c.Via == "mmap":
					mem, err := u.f.Mmap(c.Offset, c.Len, kernel.Prot(c.Prot))
					if c.Offset == 5<<20 || c.Offset == 7<<20 {
						if err != syscall.EINVAL {
							t.Errorf("#%d: clock page: %v", c.Seq, err)
						}
						skipped["clock pages are not modelled"]++
						continue
					}
					if err != nil {
						t.Fatalf("#%d mmap %#x: %v", c.Seq, c.Offset, err)
					}
					if err := u.f.Munmap(mem); err != nil {
						t.Fatal(err)
					}
				case c.Via != "ioctl":
					t.Fatalf("#%d comes by %q", c.Seq, c.Via)
				case c.Key == "DEVICE.GET_CONTEXT":
					u.want(syscall.EINVAL, u.withDEVX(c, r)) // the library's first tries
					if name == "control_plane_static_uar" {
						r.withoutDynUAR(c)
					}
					r.run(c)
				default:
					r.run(c)
				}
				ran++
			}
			if n := len(u.f.handles); n != 0 {
				t.Errorf("%d objects are left", n)
			}
			if ran == 0 {
				t.Fatal("nothing ran")
			}
			t.Logf("%d commands ran, not modelled: %v", ran, skipped)
		})
	}
}

// withoutDynUAR makes the request one of a library that does not know dynamic
// UARs, for the session with a kernel that did not.
func (r *replay) withoutDynUAR(c *recorded) {
	for i := range c.Attrs {
		if a := &c.Attrs[i]; a.Name == "UHW_IN" {
			b := a.bytes(r.t)
			b[24] &^= libCapDynUAR
			a.Data.Hex = hex.EncodeToString(b)
		}
	}
}

// withDEVX is GET_CONTEXT as the library tries it first.
func (u *user) withDEVX(c *recorded, r *replay) []byte {
	cmd, attrs := r.build(c)
	for i, a := range c.Attrs {
		if a.Name == "UHW_IN" {
			le.PutUint32(u.at(attrs[i].data, int(a.Len))[8:], uctxDEVX)
		}
	}
	return cmd
}

package mlx5

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
)

// The session that libmlx5 held by write(2). We have the ioctl alone, so that the
// envelopes differ: what is compared is what they hold, the driver's structs and
// the fields of the kernel's.

// legacy is what stands for a command of write(2). core is the kernel's struct
// as our command's attributes would fill it, with 0 for pointers and handles.
type legacy struct {
	object, method uint16
	write          uint64
	core           func(c *command) []byte
}

func legacyCommands() map[string]legacy {
	le := binary.LittleEndian
	u32 := func(c *command, id uint16) uint32 { return uint32(c.attrs[id].data) }
	none := func(*command) []byte { return nil }
	same := func(c *command) []byte { return bytes.Clone(c.attrs[kabi.UVERBS_ATTR_CORE_IN].in) }
	words := func(pad int, v ...uint32) []byte {
		b := make([]byte, pad)
		for _, x := range v {
			b = le.AppendUint32(b, x)
		}
		return b
	}
	invoke := func(write uint64) legacy {
		return legacy{kabi.UVERBS_OBJECT_DEVICE, kabi.UVERBS_METHOD_INVOKE_WRITE, write, same}
	}
	return map[string]legacy{
		"WRITE.GET_CONTEXT":         {kabi.UVERBS_OBJECT_DEVICE, kabi.UVERBS_METHOD_GET_CONTEXT, 0, func(*command) []byte { return make([]byte, 8) }},
		"WRITE.EX_QUERY_DEVICE":     invoke(kabi.IB_USER_VERBS_EX_CMD_QUERY_DEVICE),
		"WRITE.ALLOC_PD":            invoke(kabi.IB_USER_VERBS_CMD_ALLOC_PD),
		"WRITE.CREATE_COMP_CHANNEL": invoke(kabi.IB_USER_VERBS_CMD_CREATE_COMP_CHANNEL),
		"WRITE.REG_MR":              invoke(kabi.IB_USER_VERBS_CMD_REG_MR),
		"WRITE.MODIFY_QP":           invoke(kabi.IB_USER_VERBS_CMD_MODIFY_QP),
		"WRITE.CREATE_AH":           invoke(kabi.IB_USER_VERBS_CMD_CREATE_AH),
		"WRITE.QUERY_PORT": {kabi.UVERBS_OBJECT_DEVICE, kabi.UVERBS_METHOD_QUERY_PORT, 0, func(c *command) []byte {
			return words(8, u32(c, kabi.UVERBS_ATTR_QUERY_PORT_PORT_NUM), 0) // response, port_num, reserved
		}},
		"WRITE.CREATE_CQ": {kabi.UVERBS_OBJECT_CQ, kabi.UVERBS_METHOD_CQ_CREATE, 0, func(c *command) []byte {
			channel := ^uint32(0)
			if a, ok := c.attrs[kabi.UVERBS_ATTR_CREATE_CQ_COMP_CHANNEL]; ok {
				channel = uint32(a.data)
			}
			// response, user_handle, cqe, comp_vector, comp_channel, reserved
			return words(16, u32(c, kabi.UVERBS_ATTR_CREATE_CQ_CQE), u32(c, kabi.UVERBS_ATTR_CREATE_CQ_COMP_VECTOR), channel, 0)
		}},
		"WRITE.CREATE_SRQ": {kabi.UVERBS_OBJECT_SRQ, kabi.UVERBS_METHOD_SRQ_CREATE, 0, func(c *command) []byte {
			// response, user_handle, pd_handle, max_wr, max_sge, srq_limit
			return words(16, 0, u32(c, kabi.UVERBS_ATTR_CREATE_SRQ_MAX_WR), u32(c, kabi.UVERBS_ATTR_CREATE_SRQ_MAX_SGE), u32(c, kabi.UVERBS_ATTR_CREATE_SRQ_LIMIT))
		}},
		"WRITE.CREATE_QP": {kabi.UVERBS_OBJECT_QP, kabi.UVERBS_METHOD_QP_CREATE, 0, func(c *command) []byte {
			// response, user_handle, pd, send_cq, recv_cq, srq; the capacities;
			// sq_sig_all, qp_type, is_srq, reserved
			b := append(words(32), c.attrs[kabi.UVERBS_ATTR_CREATE_QP_CAP].in...)
			sigAll := u32(c, kabi.UVERBS_ATTR_CREATE_QP_FLAGS) / kabi.IB_UVERBS_QP_CREATE_SQ_SIG_ALL
			_, srq := c.attrs[kabi.UVERBS_ATTR_CREATE_QP_SRQ_HANDLE]
			b = append(b, byte(sigAll), byte(c.attrs[kabi.UVERBS_ATTR_CREATE_QP_TYPE].data), 0, 0)
			if srq {
				b[54] = 1
			}
			return b
		}},
		"WRITE.DESTROY_AH":  {kabi.UVERBS_OBJECT_AH, kabi.UVERBS_METHOD_AH_DESTROY, 0, none},
		"WRITE.DESTROY_QP":  {kabi.UVERBS_OBJECT_QP, kabi.UVERBS_METHOD_QP_DESTROY, 0, none},
		"WRITE.DESTROY_SRQ": {kabi.UVERBS_OBJECT_SRQ, kabi.UVERBS_METHOD_SRQ_DESTROY, 0, none},
		"WRITE.DESTROY_CQ":  {kabi.UVERBS_OBJECT_CQ, kabi.UVERBS_METHOD_CQ_DESTROY, 0, none},
		"WRITE.DEREG_MR":    {kabi.UVERBS_OBJECT_MR, kabi.UVERBS_METHOD_MR_DESTROY, 0, none},
		"WRITE.DEALLOC_PD":  {kabi.UVERBS_OBJECT_PD, kabi.UVERBS_METHOD_PD_DESTROY, 0, none},
	}
}

// legacyPrivate is private for the structs that only write(2) has: pointers and
// handles.
var legacyPrivate = map[string][][2]int{
	"WRITE.QUERY_PORT": {{0, 8}},
	"WRITE.CREATE_CQ":  {{0, 16}},
	"WRITE.CREATE_SRQ": {{0, 20}},
	"WRITE.CREATE_QP":  {{0, 32}},
}

// runLegacyWrite repeats the session, and compares what our commands say with
// what libmlx5 wrote.
func runLegacyWrite(t *testing.T, f *goldenFile, y *tally) {
	t.Setenv("MLX5_SCATTER_TO_CQE", "1") // as libmlx5 has it
	r := goldenRig(t, f)
	k := r.k
	k.bfreg = 4
	k.onWrite = func(cmd uint64, _ []byte) bool { return cmd == kabi.IB_USER_VERBS_EX_CMD_QUERY_DEVICE }
	// The session repeats MODIFY_QP from its recording.
	session := slices.Clone(f.Commands)
	for i := range session {
		g := &session[i]
		if g.Key == "WRITE.CREATE_QP" {
			g.Key = "QP.CREATE"
			if g.CoreIn.Hex[54] != 0 {
				g.Attrs = []goldenAttr{{Name: "SRQ_HANDLE"}}
			}
		} else if g.Via == "write" {
			g.Attrs = []goldenAttr{{Name: "CORE_IN", Data: g.CoreIn}}
		}
	}
	repeatSession(t, r, session)

	left, mmaps, known := slices.Clone(k.commands), slices.Clone(k.mmaps), legacyCommands()
	find := func(object, method uint16, write uint64) int {
		return slices.IndexFunc(left, func(c command) bool { return c.object == object && c.method == method && c.write == write })
	}
	for i := range f.Commands {
		g := &f.Commands[i]
		if why := neverIssued[g.Key]; why != "" {
			y.skip(t, why)
			continue
		}
		if g.Via == "mmap" {
			mmaps = y.mapped(t, mmaps, i, g.Offset)
			continue
		}
		l := known[g.Key]
		if g.Via == "ioctl" {
			l = legacy{object: g.Object, method: g.Method, write: g.Write} // its first try, which that kernel refused
		}
		n := find(l.object, l.method, l.write)
		if n < 0 {
			t.Errorf("%d: %s has no counterpart", i, g.Key)
			continue
		}
		y.ran++
		c := left[n]
		if g.Via == "ioctl" {
			g.compare(t, y, i, &c) // and its repetition is compared below
			continue
		}
		left = slices.Delete(left, n, n+1)
		y.differ("by ioctl, with the same contents")
		if want := bytes.Clone(g.CoreIn.Hex); len(want) > 0 && !strings.HasPrefix(g.Key, "WRITE.DE") { // destroyed is by handle
			got := l.core(&c)
			private := private[g.CoreIn.Struct]
			if private == nil {
				private = legacyPrivate[g.Key]
			}
			if g.Key == "WRITE.GET_CONTEXT" {
				private = [][2]int{{0, 8}}
			}
			if len(got) != len(want) {
				t.Errorf("%d %s: %d bytes, want %d", i, g.Key, len(got), len(want))
				continue
			}
			for _, p := range private {
				clear(got[p[0]:][:p[1]])
				clear(want[p[0]:][:p[1]])
			}
			if g.Key == "WRITE.CREATE_QP" && le32(got[48:]) == 92 && le32(want[48:]) == 60 {
				copy(want[48:52], got[48:52]) // the inline size follows from the WQE's; see compareStruct
			}
			if g.Key == "WRITE.CREATE_QP" && want[54] != 0 {
				// The receives of a QP on an SRQ are nobody's; libibverbs says 0 in
				// the ioctl alone.
				for _, at := range []int{36, 44} {
					copy(want[at:at+4], got[at:at+4])
				}
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d %s: %s\n got %s\nwant %s", i, g.Key, g.CoreIn.Struct, hex.EncodeToString(got), hex.EncodeToString(want))
			}
		}
		uhw, ok := c.attrs[kabi.UVERBS_ATTR_UHW_IN]
		if ok != (g.UHWIn != nil) || ok && len(uhw.in) != len(g.UHWIn.Hex) {
			t.Errorf("%d %s: the driver's half is of %d bytes", i, g.Key, len(uhw.in))
			continue
		}
		if ok {
			got, want := bytes.Clone(uhw.in), bytes.Clone(g.UHWIn.Hex)
			for _, p := range private[g.UHWIn.Struct] {
				clear(got[p[0]:][:p[1]])
				clear(want[p[0]:][:p[1]])
			}
			g.compareStruct(t, y, i, g.UHWIn, got, want)
		}
	}
	if len(mmaps) != 0 {
		t.Errorf("mapped beyond libmlx5's: %#x", mmaps)
	}
	// libmlx5 takes the GID's type from sysfs here, and knows no async event file.
	left = slices.DeleteFunc(left, func(c command) bool {
		return c.object == kabi.UVERBS_OBJECT_ASYNC_EVENT || c.object == kabi.UVERBS_OBJECT_DEVICE && c.method == kabi.UVERBS_METHOD_QUERY_GID_ENTRY
	})
	for _, c := range left {
		t.Errorf("issued beyond libmlx5's: object %#x method %#x write %#x", c.object, c.method, c.write)
	}
}

func le32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }

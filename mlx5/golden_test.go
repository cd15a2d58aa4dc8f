package mlx5

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The golden vectors are what libmlx5 did; their README says how they were
// made. RRPC_GOLDEN names another directory in the same format. Every file is
// read; a vector that our API cannot express is skipped with the reason, and
// the counts are printed.

// u64 is a JSON integer or a "0x..." string.
type u64 uint64

func (v *u64) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseUint(strings.Trim(string(b), `"`), 0, 64)
	*v = u64(n)
	return err
}

// hexBytes is a string of bytes in memory order.
type hexBytes []byte

func (h *hexBytes) UnmarshalJSON(b []byte) error {
	d, err := hex.DecodeString(strings.Trim(string(b), `"`))
	*h = d
	return err
}

type goldenCap struct {
	MaxSendWR  uint32 `json:"max_send_wr"`
	MaxRecvWR  uint32 `json:"max_recv_wr"`
	MaxSendSGE uint32 `json:"max_send_sge"`
	MaxRecvSGE uint32 `json:"max_recv_sge"`
	MaxInline  uint32 `json:"max_inline_data"`
}

type goldenQP struct {
	Name      string    `json:"name"`
	Type      string    `json:"type"`
	Created   string    `json:"created_with"`
	QPN       uint32    `json:"qpn"`
	UIdx      uint32    `json:"uidx"`
	Requested goldenCap `json:"requested"`
	Returned  goldenCap `json:"returned"`
	SQCnt     uint32    `json:"sq_wqe_cnt"`
	RQCnt     uint32    `json:"rq_wqe_cnt"`
	RQStride  uint32    `json:"rq_stride"`
	BFSize    uint32    `json:"bf_size"`
	BFOffset  u64       `json:"bf_reg_page_offset"`
}

type goldenAH struct {
	Name        string   `json:"name"`
	IsGlobal    int      `json:"is_global"`
	SGIDIndex   uint8    `json:"sgid_index"`
	DGID        hexBytes `json:"dgid"`
	HopLimit    uint8    `json:"hop_limit"`
	TClass      uint8    `json:"traffic_class"`
	FlowLabel   uint32   `json:"flow_label"`
	SL          uint8    `json:"sl"`
	StaticRate  uint8    `json:"static_rate"`
	DLID        uint16   `json:"dlid"`
	SrcPathBits uint8    `json:"src_path_bits"`
	Port        uint8    `json:"port_num"`
	AV          hexBytes `json:"av"`
	DMAC        hexBytes `json:"dmac_from_kernel"`
	SportRandom bool     `json:"udp_sport_random"`
	Errno       int      `json:"create_errno"`
}

type goldenSGE struct {
	Addr   u64    `json:"addr"`
	Length uint32 `json:"length"`
	LKey   uint32 `json:"lkey"`
}

type goldenWR struct {
	WRID       u64         `json:"wr_id"`
	Opcode     string      `json:"opcode"`
	Flags      uint8       `json:"send_flags_num"`
	SGEs       []goldenSGE `json:"sges"`
	Inline     *[]hexBytes `json:"inline"`
	Imm        hexBytes    `json:"imm_data_wire"`
	RemoteAddr u64         `json:"remote_addr"`
	RKey       uint32      `json:"rkey"`
	Invalidate u64         `json:"invalidate_rkey"`
	CompareAdd u64         `json:"compare_add"`
	Swap       u64         `json:"swap"`
	AH         string      `json:"ah"`
	RemoteQPN  uint32      `json:"remote_qpn"`
	RemoteQKey uint32      `json:"remote_qkey"`
}

type goldenBytes struct {
	Hex       hexBytes `json:"hex"`
	Unwritten [][2]int `json:"unwritten"`
}

// diff returns where got differs from the recording outside what the library
// left unwritten, or "".
func (g *goldenBytes) diff(got []byte) string {
	if len(got) != len(g.Hex) {
		return fmt.Sprintf("%d bytes, want %d", len(got), len(g.Hex))
	}
	skip := make([]bool, len(got))
	for _, r := range g.Unwritten {
		for i := r[0]; i < r[0]+r[1]; i++ {
			skip[i] = true
		}
	}
	for i := range got {
		if got[i] != g.Hex[i] && !skip[i] {
			return fmt.Sprintf("byte %d\n got %x\nwant %x\nunwritten %v", i, got, []byte(g.Hex), g.Unwritten)
		}
	}
	return ""
}

type goldenFile struct {
	Group    string            `json:"group"`
	Env      map[string]string `json:"env"`
	QPs      []goldenQP        `json:"qps"`
	SRQs     []goldenSRQ       `json:"srqs"`
	AHs      []goldenAH        `json:"ahs"`
	Vectors  []json.RawMessage `json:"vectors"`
	Commands []goldenCommand   `json:"commands"`
}

// tally counts a group's vectors.
type tally struct {
	t           *testing.T
	ran         int
	skipped     map[string]int
	differences map[string]int
}

func (y *tally) skip(t *testing.T, reason string) {
	y.skipped[reason]++
	t.Logf("skipped: %s", reason)
}

// differ notes a deliberate difference of a vector that ran.
func (y *tally) differ(what string) { y.differences[what]++ }

func (y *tally) report(group string) {
	n := 0
	for _, c := range y.skipped {
		n += c
	}
	y.t.Logf("%s: %d ran, %d skipped", group, y.ran, n)
	for _, why := range slices.Sorted(maps.Keys(y.skipped)) {
		y.t.Logf("%s: %d skipped: %s", group, y.skipped[why], why)
	}
	for _, what := range slices.Sorted(maps.Keys(y.differences)) {
		y.t.Logf("%s: %d with a deliberate difference: %s", group, y.differences[what], what)
	}
}

// goldenRunner runs all vectors of a file.
type goldenRunner func(t *testing.T, f *goldenFile, y *tally)

var goldenGroups = map[string]goldenRunner{
	"ud_send":         runSendFile,
	"ud_send_wr_api":  runSendFile,
	"ud_send_ib_link": runSendFile,
	"rc_send":         runSendFile,
	"rc_send_wr_api":  runSendFile,
	"send_lists":      runSendFile,
	"send_wrap":       runSendFile,
	"bf_modes":        runSendFile,
	"recv":            runRecvFile,
	"cqe":             runCQEFile,
	"cq_arm":          runCQArmFile,
	"create_qp":       runCreateQPFile,
	"create_cq":       runCreateCQFile,
	"create_srq":      runCreateSRQFile,
	"srq_recv":        runSRQRecvFile,
	"control_plane":   runControlPlane,
}

// TestGolden compares the provider with libmlx5, byte for byte.
func TestGolden(t *testing.T) {
	dir := os.Getenv("RRPC_GOLDEN")
	own := dir == ""
	if own {
		dir = "../testdata/golden/mlx5"
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no vectors in %s: %v", dir, err)
	}
	for _, name := range names {
		base := strings.TrimSuffix(filepath.Base(name), ".json")
		t.Run(base, func(t *testing.T) {
			f := readGolden(t, name)
			y := &tally{t: t, skipped: make(map[string]int), differences: make(map[string]int)}
			defer y.report(base)
			total := len(f.Vectors) + len(f.Commands)
			run := goldenGroups[f.Group]
			if run == nil {
				why := "unknown group " + f.Group
				if own {
					t.Error(why)
				}
				y.skipped[why] = total
				return
			}
			if total == 0 {
				t.Fatal("no vectors")
			}
			run(t, f, y)
			n := y.ran
			for _, c := range y.skipped {
				n += c
			}
			if n != total {
				t.Errorf("%d vectors ran or were skipped, of %d", n, total)
			}
		})
	}
}

// readGolden reads a file of vectors.
func readGolden(t *testing.T, name string) *goldenFile {
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	f := new(goldenFile)
	if err := json.Unmarshal(data, f); err != nil {
		t.Fatal(err)
	}
	if f.Group == "" {
		t.Fatal("no group")
	}
	return f
}

// vectors decodes all vectors and runs each as a subtest.
func vectors[V any](t *testing.T, f *goldenFile, run func(t *testing.T, v *V)) {
	for i, raw := range f.Vectors {
		v := new(V)
		if err := json.Unmarshal(raw, v); err != nil {
			t.Errorf("vector %d: %v", i, err)
			continue
		}
		var named struct{ Name string }
		json.Unmarshal(raw, &named)
		t.Run(fmt.Sprintf("%d_%s", i, named.Name), func(t *testing.T) { run(t, v) })
	}
}

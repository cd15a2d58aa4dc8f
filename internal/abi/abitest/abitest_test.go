package abitest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var headers = []string{"rdma/ib_user_ioctl_verbs.h", "rdma/rdma_user_ioctl_cmds.h"}

// differences compares a Go package of that source with the kernel's headers.
func differences(t *testing.T, source string, cfg Config) ([]string, error) {
	t.Helper()
	cc := need(t, headers)
	cfg.Dir, cfg.Headers = t.TempDir(), headers
	if err := os.WriteFile(filepath.Join(cfg.Dir, "p.go"), []byte("package p\n"+source), 0o600); err != nil {
		t.Fatal(err)
	}
	problems, _, err := compare(cc, t.TempDir(), cfg)
	return problems, err
}

func TestDifferencesAreFound(t *testing.T) {
	for _, tt := range []struct {
		name, source string
		cfg          Config
		want         []string
	}{
		{"right", "const RDMA_DRIVER_RXE = 14\ntype Ib_uverbs_qp_cap struct { Max_send_wr, Max_recv_wr, Max_send_sge, Max_recv_sge, Max_inline_data uint32 }", Config{}, nil},
		{"constant", "const RDMA_DRIVER_SIW = 17", Config{}, []string{"RDMA_DRIVER_SIW: Go has 17, the headers have 18"}},
		{"forgotten field", "type Ib_uverbs_qp_cap struct { Max_send_wr, Max_recv_wr, Max_send_sge, Max_recv_sge uint32 }", Config{},
			[]string{"sizeof Ib_uverbs_qp_cap: Go has 16, the headers have 20"}},
		{"swapped fields", "type Ib_uverbs_qp_cap struct { Max_recv_wr, Max_send_wr, Max_send_sge, Max_recv_sge, Max_inline_data uint32 }", Config{},
			[]string{"offset of Ib_uverbs_qp_cap.Max_recv_wr: Go has 0, the headers have 4", "offset of Ib_uverbs_qp_cap.Max_send_wr: Go has 4, the headers have 0"}},
		{"hidden padding", "type X struct { Attr_id uint16; Data uint64 }", Config{C: map[string]string{"X": "struct ib_uverbs_attr"}},
			[]string{"X.Data: 6 bytes before it have no name"}},
		{"entry for nothing", "const RDMA_DRIVER_RXE = 14", Config{Skip: map[string]string{"RDMA_DRIVER_RX": "misspelt"}},
			[]string{"RDMA_DRIVER_RX: no such constant, struct or field"}},
	} {
		got, err := differences(t, tt.source, tt.cfg)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

func TestNameThatTheHeadersLackIsNamed(t *testing.T) {
	_, err := differences(t, "const RDMA_DRIVER_NOBODY = 99", Config{})
	if err == nil || !strings.Contains(err.Error(), "RDMA_DRIVER_NOBODY") {
		t.Error(err)
	}
}

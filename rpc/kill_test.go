package rpc_test

import (
	"cmp"
	"os"
	"strconv"
	"testing"

	"github.com/rrppcc-go/rrppcc/rpc/rpctest"
)

// killCount is how often each kind of process is killed: RRPC_KILLS says so, for
// a long run.
func killCount(t *testing.T) int {
	text := cmp.Or(os.Getenv("RRPC_KILLS"), "4")
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("RRPC_KILLS is %q", text)
	}
	return n
}

func TestKills(t *testing.T) { rpctest.Kills(t, rpctest.TwoProcesses(), killCount(t)) }

func TestDeviceKills(t *testing.T) { rpctest.Kills(t, device(t), killCount(t)) }

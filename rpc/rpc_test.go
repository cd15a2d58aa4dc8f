package rpc_test

import (
	"cmp"
	"os"
	"testing"

	"github.com/rrppcc-go/rrppcc/rpc/rpctest"
)

func TestMain(m *testing.M) { rpctest.Main(m) }

func TestInProcess(t *testing.T) { rpctest.Run(t, rpctest.InProcess()) }

func TestInfiniBand(t *testing.T) { rpctest.Run(t, rpctest.InfiniBand()) }

func TestLoopback(t *testing.T) { rpctest.Run(t, rpctest.Loopback()) }

func TestTwoProcesses(t *testing.T) { rpctest.Run(t, rpctest.TwoProcesses()) }

func TestDevice(t *testing.T) { rpctest.Run(t, device(t)) }

// device is the backend of the device that RRPC_DEVICE names.
func device(t *testing.T) rpctest.Backend {
	name := os.Getenv("RRPC_DEVICE")
	if name == "" {
		t.Skip("RRPC_DEVICE names no device")
	}
	b, err := rpctest.Device(name, cmp.Or(os.Getenv("RRPC_DEVICE2"), name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

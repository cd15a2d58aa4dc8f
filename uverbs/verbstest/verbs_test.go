package verbstest_test

import (
	"os"
	"testing"

	"github.com/rrppcc-go/rrppcc/uverbs/verbstest"
)

func TestMain(m *testing.M) { verbstest.Main(m) }

func TestVerbsOfSimulatedDevices(t *testing.T) {
	if os.Getenv("RRPC_GUEST") != "" {
		t.Skip("this machine is for its kernel's devices; simulated ones are the same anywhere")
	}
	for _, b := range []verbstest.Backend{verbstest.InProcess(), verbstest.InProcessOneDevice(), verbstest.Loopback(), verbstest.Foreign(), verbstest.ForeignLoopback(),
		verbstest.InfiniBand(), verbstest.InfiniBandOneDevice()} {
		verbstest.Run(t, b)
	}
}

func TestVerbsOfDevicesInEnvironment(t *testing.T) {
	backends, err := verbstest.FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	if len(backends) == 0 {
		t.Skip("RRPC_DEVICE names no device")
	}
	for _, b := range backends {
		verbstest.Run(t, b)
	}
}

package uverbs

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

func TestOpenErrorsNameCauseAndCure(t *testing.T) {
	for _, tt := range []struct {
		err   error
		words string
	}{
		{syscall.ENOENT, "/dev/infiniband/uverbs9|ib_uverbs|--device"},
		{syscall.EACCES, "/dev/infiniband/uverbs9|udev|group"},
		{syscall.EPERM, "container"},
		{syscall.ENXIO, "removed"},
		{syscall.EMFILE, "ulimit -n"},
		{kernel.ErrWrongNode, "left over"},
	} {
		k := newFakeKernel()
		k.openErr = &fs.PathError{Op: "open", Path: k.info.Node, Err: tt.err}
		_, err := NewDevice(k).Open()
		if !errors.Is(err, tt.err) {
			t.Errorf("%v is not %v", err, tt.err)
			continue
		}
		for _, word := range strings.Split(tt.words, "|") {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%q lacks %q", err, word)
			}
		}
	}
}

func TestOpenOnKernelWithoutIoctlsSaysWhichIsNeeded(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOTTY, syscall.EPROTONOSUPPORT} {
		k := newFakeKernel()
		k.fail = func(int, *fakeCommand) syscall.Errno { return errno }
		_, err := NewDevice(k).Open()
		if !errors.Is(err, errno) || !strings.Contains(err.Error(), minKernel) {
			t.Error(err)
		}
		checkNothingLeft(t, k)
	}
}

func TestOpenWithoutProviderNamesTheDriver(t *testing.T) {
	k := newFakeKernel()
	k.info.Driver, k.info.DriverID = "odd", abi.RDMA_DRIVER_EFA
	if _, err := NewDevice(k).Open(); !errors.Is(err, ErrNoProvider) || !strings.Contains(err.Error(), `"odd"`) {
		t.Error(err)
	}
}

func TestNoDeviceIsRecognisableAndSaysWhatToDo(t *testing.T) {
	for _, tt := range []struct {
		cause error
		none  bool
		word  string
	}{
		{nil, true, "rdma link add"},
		{kernel.ErrNoModule, true, "modprobe"},
		{fmt.Errorf("%w (plan9)", kernel.ErrNoInterface), true, "simulated"},
		{kernel.ErrABI, false, "ABI"},
		{syscall.EACCES, false, "permission"},
	} {
		err := listError(tt.cause)
		if errors.Is(err, ErrNoDevice) != tt.none || !strings.Contains(err.Error(), tt.word) {
			t.Errorf("%v: %v", tt.cause, err)
		}
		if tt.cause != nil && !errors.Is(err, tt.cause) {
			t.Errorf("%v does not wrap %v", err, tt.cause)
		}
	}
}

func TestDevicesOfThisMachineOrTheReasonForNone(t *testing.T) {
	devices, err := Devices()
	if (err == nil) == (len(devices) == 0) {
		t.Fatalf("%d devices and %v", len(devices), err)
	}
	if err != nil && !errors.Is(err, ErrNoDevice) {
		t.Error(err)
	}
	if _, err := DeviceByName("no such device"); !errors.Is(err, ErrNoDevice) {
		t.Error(err)
	}
}

func TestUnknownNameListsTheDevices(t *testing.T) {
	a, b := newFakeKernel(), newFakeKernel()
	a.info.Name, b.info.Name = "mlx5_0", "mlx5_1"
	devices := []*Device{NewDevice(a), NewDevice(b)}
	if d, err := pick(devices, "mlx5_1"); err != nil || d != devices[1] {
		t.Error(d, err)
	}
	if _, err := pick(devices, "mlx4_0"); !errors.Is(err, ErrNoDevice) || !strings.Contains(err.Error(), "mlx5_0 (fake), mlx5_1 (fake)") {
		t.Error(err)
	}
}

func TestRegisteringOneDriverTwicePanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("accepted")
		}
	}()
	RegisterProvider(&fakeProvider{})
}

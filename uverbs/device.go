package uverbs

import (
	"fmt"
	"slices"
	"strings"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// Device is an RDMA device that can be opened. Devices lists the machine's;
// a simulated device brings its own.
type Device struct {
	k    kernel.Device
	info kernel.DeviceInfo
}

// Devices lists the RDMA devices of this machine, ordered by name. The error
// wraps [ErrNoDevice] where there is none, and says what to do about it; any
// other error means that there may be devices which could not be listed.
// Simulated devices are not on the list.
func Devices() ([]*Device, error) {
	found, err := kernel.Devices()
	if err != nil || len(found) == 0 {
		return nil, listError(err)
	}
	devices := make([]*Device, len(found))
	for i, k := range found {
		devices[i] = NewDevice(k)
	}
	return devices, nil
}

// DeviceByName returns the machine's RDMA device of that name, such as mlx5_0.
// If there is no such device the error wraps [ErrNoDevice] and names those that
// there are.
func DeviceByName(name string) (*Device, error) {
	devices, err := Devices()
	if err != nil {
		return nil, opError("find", "device "+name, err)
	}
	return pick(devices, name)
}

func pick(devices []*Device, name string) (*Device, error) {
	names := make([]string, len(devices))
	for i, d := range devices {
		if d.Name() == name {
			return d, nil
		}
		names[i] = d.String()
	}
	return nil, &Error{Op: "find", Object: "device " + name, Err: ErrNoDevice, Hint: "there are: " + strings.Join(names, ", ")}
}

// NewDevice wraps something that answers the uverbs ABI. It is for simulators
// of this module; users get devices from [Devices].
func NewDevice(k kernel.Device) *Device { return &Device{k: k, info: k.Info()} }

// Name returns the RDMA device name, such as mlx5_0.
func (d *Device) Name() string { return d.info.Name }

// Driver returns the name of the kernel driver, such as mlx5_core.
func (d *Device) Driver() string { return d.info.Driver }

// DriverID returns the kernel's enum rdma_driver_id.
func (d *Device) DriverID() uint32 { return d.info.DriverID }

// DriverABI returns the version of the driver's own half of the ABI.
func (d *Device) DriverABI() int { return d.info.ABI }

// NodeGUID returns the node GUID in network order.
func (d *Device) NodeGUID() [8]byte { return d.info.NodeGUID }

// Simulated reports whether a simulator in this process answers.
func (d *Device) Simulated() bool { return d.info.Simulated }

func (d *Device) String() string {
	if d.info.Simulated {
		return fmt.Sprintf("%s (simulated %s)", d.info.Name, d.info.Driver)
	}
	return fmt.Sprintf("%s (%s)", d.info.Name, d.info.Driver)
}

// Netdev is the network interface under a port of a RoCE device. IfIndex is 0
// where only the name is known.
type Netdev = kernel.Netdev

// Netdevs returns the network interfaces under the device's ports; none for
// InfiniBand and for simulated devices, and where the kernel does not say.
func (d *Device) Netdevs() []Netdev { return slices.Clone(d.info.Netdevs) }

// Open opens the device with the provider of its driver. The context must be
// closed.
func (d *Device) Open() (*Context, error) {
	p := providerFor(d.info.DriverID)
	if p == nil {
		return nil, &Error{Op: "open", Object: "device " + d.info.Name, Err: ErrNoProvider,
			Hint: fmt.Sprintf("driver %q, id %d; is the provider's package imported?", d.info.Driver, d.info.DriverID)}
	}
	file, err := d.k.Open()
	if err != nil {
		return nil, openError(d, err)
	}
	return newContext(d, file, p)
}

package kernel

import "context"

// DeviceInfo is what is known of a device before it is opened.
type DeviceInfo struct {
	Name      string  // RDMA device name: mlx5_0, rxe0
	Node      string  // character device: /dev/infiniband/uverbs0; empty for a simulated device
	Driver    string  // kernel driver's name: mlx5_core, rdma_rxe
	DriverID  uint32  // enum rdma_driver_id; 0 (RDMA_DRIVER_UNKNOWN) where it could not be told
	ABI       int     // the driver's own uverbs ABI version
	NodeGUID  [8]byte // network order
	Simulated bool    // answered by a simulator in this process, not by a kernel
	Netdevs   []Netdev
}

// Netdev is the network interface under a port of a RoCE or iWARP device.
type Netdev struct {
	Port    uint8 // counts from 1
	IfIndex int   // in this process's network namespace
	Name    string
}

// Device is an RDMA device that answers the uverbs ABI.
type Device interface {
	Info() DeviceInfo

	// Attr reads the text attribute at path below
	// /sys/class/infiniband/<name>/, for example "ports/1/pkeys/0", without
	// the trailing newline. A missing attribute is fs.ErrNotExist; an empty
	// GID slot reads as syscall.EINVAL, as in the kernel.
	Attr(path string) (string, error)

	// Open opens the character device. No command has been issued on the
	// returned File.
	Open() (File, error)
}

// Prot is the access of a device mapping.
type Prot int

const (
	ProtRead  Prot = 1 << 0
	ProtWrite Prot = 1 << 1
)

// File is one open uverbs character device.
type File interface {
	// Ioctl issues RDMA_VERBS_IOCTL. cmd is a struct ib_uverbs_ioctl_hdr with
	// its attributes; the answer is written into it and into the buffers that
	// it points to, which the caller keeps pinned. The error is nil or a bare
	// syscall.Errno.
	Ioctl(cmd []byte) error

	// Mmap maps length bytes of the device's memory at offset, shared. The
	// slice stays valid until Munmap, which takes exactly the same slice.
	Mmap(offset int64, length int, prot Prot) ([]byte, error)
	Munmap(mem []byte) error

	// Events takes ownership of an event descriptor that a command returned
	// (a completion channel or the async event file); on error it is closed.
	Events(fd int32) (EventFile, error)

	// Close destroys all objects, after the commands that are under way have
	// returned. Commands after it fail with EBADF. A kernel keeps the objects
	// as long as one of the file's mappings remains: unmap first.
	Close() error
}

// EventFile is a stream of event records.
type EventFile interface {
	// FD is the number by which commands name this file, until Close.
	FD() int32

	// ReadEvent blocks until one record is there, and copies it to p. It
	// returns ctx.Err() when ctx ends, fs.ErrClosed after Close, and a bare
	// syscall.Errno where the kernel refuses: EIO once the device is gone. A
	// record that is there when ctx ends is returned or stays for the next
	// reader. Several goroutines may wait; each record goes to one.
	ReadEvent(ctx context.Context, p []byte) (int, error)

	Close() error
}

// Kicker is implemented by a File whose device cannot see stores to its UAR
// pages: a simulator.
type Kicker interface {
	// Kicker returns the function to call after every store to a UAR register
	// (doorbell, BlueFlame or CQ arm). offset is the register's byte offset in
	// the mapping that Mmap returned, uar the mapping. The memory already
	// holds the stored value, and the doorbell record was written before.
	Kicker() func(uar *byte, offset uint32)
}

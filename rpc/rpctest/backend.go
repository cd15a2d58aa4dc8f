package rpctest

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	_ "github.com/rrppcc-go/rrppcc/mlx5" // the simulated and real ConnectX need their provider
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/nexus"
	"github.com/rrppcc-go/rrppcc/uverbs"
	_ "github.com/rrppcc-go/rrppcc/uverbs/rxe" // and Soft-RoCE
)

// Backend makes the processes that the suite lets talk to each other.
type Backend interface {
	// Name is the name of the suite's subtest.
	Name() string
	// Lacks says why the backend does not have a capability; "" if it has it.
	Lacks(Capability) (reason string)
	// NewProcess makes a process within this one.
	NewProcess(ProcessConfig) (*Process, error)
	// StartServer starts a process whose endpoints have the handlers of this
	// package (see TypeEcho and the others), and drives them.
	StartServer(ServerConfig) (Server, error)
}

// Capability is something that not every backend can do.
type Capability string

const (
	// LocalPeers: two processes of NewProcess reach each other, so that tests
	// can bring handlers of their own.
	LocalPeers Capability = "handlers of the test's own at both ends"
	// DeviceRemoval: Process.Remove takes the device away.
	DeviceRemoval Capability = "removal of the device"
	// DirectWire: a message is delivered while the doorbell rings, so that one
	// goroutine that polls both ends is all that moves.
	DirectWire Capability = "delivery within the sender's goroutine"
	// SlowTests: time for tests that wait a second or more for a peer's death, or for
	// what was lost to be sent again.
	SlowTests Capability = "time for tests that wait for seconds"
)

// ProcessConfig says how a process is to be made. The zero value will do.
type ProcessConfig struct {
	URI string // of the session manager; empty: 127.0.0.1 and any port
	// Rebind is how long to try for the port of a process that has just died: the
	// kernel may hold a killed process's sockets for a moment after it was reaped.
	Rebind time.Duration
	// Heartbeat and DeadAfter are the session manager's; 0 is its default
	// heartbeat, and death after 5 s: tests that are not about deaths share
	// machines with others, and must not see any.
	Heartbeat, DeadAfter time.Duration
}

// Process is what makes a process out in the world: a session manager, and a
// device.
type Process struct {
	Nexus *nexus.Nexus
	Verbs *uverbs.Context

	conn   *mortalConn
	device *mlx5sim.Device // nil for a real one
}

// newProcess opens the session manager. It takes over the device and the
// context, also when it fails.
func newProcess(cfg ProcessConfig, dev *mlx5sim.Device, verbs *uverbs.Context) (*Process, error) {
	p := &Process{Verbs: verbs, device: dev}
	uri := cfg.URI
	if uri == "" {
		uri = "127.0.0.1:0"
	}
	err := p.listen(uri, cfg)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Process) listen(uri string, cfg ProcessConfig) error {
	at, err := netip.ParseAddrPort(uri)
	if err != nil {
		return err
	}
	sock, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	for end := time.Now().Add(cfg.Rebind); errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
		sock, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	}
	if err != nil {
		return err
	}
	p.conn = &mortalConn{UDPConn: sock, closed: make(chan struct{})}
	p.Nexus, err = nexus.New(uri, nexus.WithConn(p.conn), nexus.WithHeartbeat(cfg.Heartbeat, cmp.Or(cfg.DeadAfter, 5*time.Second)))
	if err != nil {
		p.conn.Close()
	}
	return err
}

// Kill makes the process unreachable at once, without a goodbye: to others it
// looks as if it had died. It must still be closed. Whoever drives its
// endpoints should stop doing so.
func (p *Process) Kill() { p.conn.kill() }

// Remove takes the simulated device away, as if the NIC had been pulled out.
func (p *Process) Remove() error { return p.device.Close() }

// Close ends the process. Its endpoints must be closed.
func (p *Process) Close() error {
	var errs []error
	if p.Nexus != nil {
		errs = append(errs, p.Nexus.Close())
	}
	if p.Verbs != nil {
		errs = append(errs, p.Verbs.Close())
	}
	if p.device != nil {
		errs = append(errs, p.device.Close())
	}
	return errors.Join(errs...)
}

// mortalConn is a UDP socket that can be made to die: it gives its port back,
// and its user finds that nothing comes and that what is sent gets lost.
type mortalConn struct {
	*net.UDPConn
	dead   atomic.Bool
	closed chan struct{}
	once   sync.Once
}

func (c *mortalConn) kill() {
	c.dead.Store(true)
	c.UDPConn.Close()
}

func (c *mortalConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	n, from, err := c.UDPConn.ReadFromUDPAddrPort(b)
	if err != nil && c.dead.Load() {
		<-c.closed
		err = net.ErrClosed
	}
	return n, from, err
}

func (c *mortalConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if c.dead.Load() {
		return len(b), nil
	}
	return c.UDPConn.WriteToUDPAddrPort(b, to)
}

func (c *mortalConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	if c.dead.Load() {
		return nil
	}
	return c.UDPConn.Close()
}

// simBackend has simulated devices in this process.
type simBackend struct {
	name string
	opts func() []mlx5sim.Option
	has  map[Capability]bool
	fast string // why it lacks SlowTests; "" if it has them
}

// InProcess returns a backend whose processes are all here, with simulated
// devices that reach each other without a network.
func InProcess() Backend {
	fabric := mlx5sim.NewFabric()
	return &simBackend{
		name: "in process",
		opts: func() []mlx5sim.Option {
			return []mlx5sim.Option{mlx5sim.InProcess(), mlx5sim.WithFabric(fabric)}
		},
		has: map[Capability]bool{LocalPeers: true, DeviceRemoval: true, DirectWire: true},
	}
}

// InfiniBand returns a backend like InProcess, of devices whose ports are
// InfiniBand: they reach each other by LID.
func InfiniBand() Backend {
	fabric := mlx5sim.NewFabric()
	return &simBackend{
		name: "in process, InfiniBand",
		opts: func() []mlx5sim.Option {
			return []mlx5sim.Option{mlx5sim.WithInfiniBand(), mlx5sim.WithFabric(fabric)}
		},
		has:  map[Capability]bool{LocalPeers: true, DeviceRemoval: true, DirectWire: true},
		fast: "peers die and timers expire alike on both link layers, and in process they do",
	}
}

// Loopback returns a backend whose processes are all here, with simulated
// devices that send RoCEv2 packets over UDP to each other.
func Loopback() Backend {
	return &simBackend{
		name: "udp loopback",
		opts: func() []mlx5sim.Option {
			return []mlx5sim.Option{mlx5sim.WithFabric(mlx5sim.NewFabric())}
		},
		has: map[Capability]bool{LocalPeers: true, DeviceRemoval: true},
	}
}

func (b *simBackend) Name() string { return b.name }

func (b *simBackend) Lacks(c Capability) string {
	if c == SlowTests {
		return b.fast
	}
	if b.has[c] {
		return ""
	}
	return fmt.Sprintf("the simulated device over UDP has no %s", c)
}

func (b *simBackend) NewProcess(cfg ProcessConfig) (*Process, error) {
	dev, err := mlx5sim.New(b.opts()...)
	if err != nil {
		return nil, err
	}
	verbs, err := dev.Verbs().Open()
	if err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	return newProcess(cfg, dev, verbs)
}

func (b *simBackend) StartServer(cfg ServerConfig) (Server, error) { return startLocal(b, cfg) }

// deviceBackend has real devices.
type deviceBackend struct {
	dev    *uverbs.Device // of all processes but servers
	server *uverbs.Device
}

// Device returns a backend whose processes are all here, with a context each of
// the machine's RDMA device of that name. Those that StartServer starts have the
// device server, which may be the same; if it is not, the two must reach each
// other.
func Device(name, server string) (Backend, error) {
	dev, err1 := uverbs.DeviceByName(name)
	srv, err2 := uverbs.DeviceByName(server)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	return &deviceBackend{dev, srv}, nil
}

func (b *deviceBackend) Name() string {
	if b.server.Name() != b.dev.Name() {
		return "device " + b.dev.Name() + " and " + b.server.Name()
	}
	return "device " + b.dev.Name()
}

func (b *deviceBackend) Lacks(c Capability) string {
	if c == LocalPeers || c == SlowTests {
		return ""
	}
	return fmt.Sprintf("a real device has no %s", c)
}

func (b *deviceBackend) NewProcess(cfg ProcessConfig) (*Process, error) {
	verbs, err := b.dev.Open()
	if err != nil {
		return nil, err
	}
	return newProcess(cfg, nil, verbs)
}

func (b *deviceBackend) StartServer(cfg ServerConfig) (Server, error) {
	return startLocal(&deviceBackend{dev: b.server, server: b.server}, cfg)
}

package verbstest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/leakcheck"
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// childEnv makes a test binary the second process of a test. Its value is the
// backend's Child.
const childEnv = "RRPC_VERBSTEST_CHILD"

// simChild is the Child of a backend with simulated devices.
const simChild = "mlx5sim"

// Main is for TestMain: it runs the tests of a package under leakcheck, or the
// second process of a test where the binary was started to be that.
func Main(m interface{ Run() int }) {
	if device, ok := os.LookupEnv(childEnv); ok {
		if err := childMain(device, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "verbstest, second process:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	leakcheck.Main(m)
}

// The two processes tell each other a line of JSON each, and then work: the
// child echoes messages, on RC and UD, until standard input ends. The parent
// writes to the child's memory and reads from it.
const (
	echoBytes    = 3000     // of an RC message
	exposedBytes = 64 << 10 // of the child's memory
	echoRecvs    = 16       // receives that are posted
	childLimit   = 2 * patience
)

// peerParams is what one process tells the other.
type peerParams struct {
	GID    uverbs.GID
	LID    uint16 // on InfiniBand
	RC, UD uint32 // QPNs
	Addr   uint64 // of the exposed memory
	RKey   uint32
	MTU    uverbs.MTU
}

// openChild opens the device that Child names.
func openChild(child string) (*uverbs.Context, func() error, error) {
	if child == simChild {
		d, err := mlx5sim.New()
		if err != nil {
			return nil, nil, err
		}
		ctx, err := d.Verbs().Open()
		if err != nil {
			return nil, nil, errors.Join(err, d.Close())
		}
		return ctx, d.Close, nil
	}
	d, err := uverbs.DeviceByName(child)
	if err != nil {
		return nil, nil, err
	}
	ctx, err := d.Open()
	return ctx, func() error { return nil }, err
}

var processTests = []test{
	{name: "TwoProcessesTalk", needs: []Capability{Processes}, run: func(e *env) {
		c := e.startChild()
		a, u := e.a.end(shape{}), e.a.end(shape{typ: uverbs.QPTypeUD})
		peer := c.exchange(peerParams{GID: e.a.gid, LID: e.a.lid, RC: a.qp.QPN(), UD: u.qp.QPN(), MTU: e.a.mtu})
		remote := &host{e: e, gid: peer.GID, lid: peer.LID}
		conn := rc{mtu: min(peer.MTU, e.a.mtu)}
		e.must(a.qp.Modify(conn.init(), rcInit))
		e.must(a.qp.Modify(conn.rtr(a.av(remote), peer.RC, 0), rcRTR))
		e.must(a.qp.Modify(conn.rts(a.qp.QPN(), 0), rcRTS))
		u.upUD()
		c.line("ready")

		out, in := a.mr(exposedBytes, localOnly), a.mr(exposedBytes, localOnly)
		for i := range scaled(200, 20) {
			n := (i * 517) % (echoBytes + 1)
			fill(out.Bytes()[:n], byte(i))
			a.recv(2, in.SGE(0, echoBytes))
			a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSendWithImm, ImmData: uint32(i), Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{out.SGE(0, n)}})
			a.sent(1, uverbs.WCSend)
			if wc := a.received(2, uverbs.WCRecv, n); wc.ImmData != uint32(i) {
				e.Fatalf("echo %d of message %d", wc.ImmData, i)
			}
			e.same(in.Bytes()[:n], out.Bytes()[:n])
		}
		fill(out.Bytes(), 77)
		a.send(uverbs.SendWR{WRID: 3, Opcode: uverbs.WRRDMAWrite, SGList: []uverbs.SGE{out.SGE(0, exposedBytes)}, RemoteAddr: peer.Addr, RKey: peer.RKey},
			uverbs.SendWR{WRID: 4, Opcode: uverbs.WRRDMARead, Flags: uverbs.SendSignaled | uverbs.SendFence, SGList: []uverbs.SGE{in.SGE(0, exposedBytes)}, RemoteAddr: peer.Addr, RKey: peer.RKey})
		a.sent(4, uverbs.WCRDMARead)
		e.same(in.Bytes(), out.Bytes())

		uout, uin := u.mr(256, localOnly), u.mr(256+grhBytes, localOnly)
		ah := u.ah(u.prot, remote)
		for i := range scaled(100, 20) {
			fill(uout.Bytes(), byte(i))
			// A datagram may get lost on a real network, or in a full socket.
			u.recv(2, uin.SGE(0, 256+grhBytes))
			u.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{uout.SGE(0, 256)}, AH: ah, RemoteQPN: peer.UD, RemoteQKey: qkey})
			u.sent(1, uverbs.WCSend)
			if wc := u.received(2, uverbs.WCRecv, 256+grhBytes); wc.SrcQP != peer.UD {
				e.Errorf("echo of QP %#x, want %#x", wc.SrcQP, peer.UD)
			}
			e.same(uin.Bytes()[grhBytes:], uout.Bytes())
		}
		c.end()
	}},
	{name: "ProcessThatDiesIsNoticed", needs: []Capability{Processes}, run: func(e *env) {
		c := e.startChild()
		a := e.a.end(shape{})
		peer := c.exchange(peerParams{GID: e.a.gid, LID: e.a.lid, RC: a.qp.QPN(), MTU: e.a.mtu})
		remote := &host{e: e, gid: peer.GID, lid: peer.LID}
		conn := rc{timeout: 10, retries: 2}
		e.must(a.qp.Modify(conn.init(), rcInit))
		e.must(a.qp.Modify(conn.rtr(a.av(remote), peer.RC, 0), rcRTR))
		e.must(a.qp.Modify(conn.rts(a.qp.QPN(), 0), rcRTS))
		c.line("ready")
		out, in := a.mr(8, localOnly), a.mr(echoBytes, localOnly)
		a.recv(2, in.SGE(0, echoBytes))
		send := uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{out.SGE(0, 8)}}
		a.send(send)
		a.sent(1, uverbs.WCSend)
		a.received(2, uverbs.WCRecv, 8)
		c.kill()
		a.send(send)
		if got := a.failed(a.sendCQ, 1); got != status(uverbs.WCRetryExcErr) {
			e.Errorf("send to a dead process: %s", got)
		}
	}},
}

// child is the second process, as the first sees it.
type child struct {
	e      *env
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr strings.Builder
	timer  *time.Timer
	over   bool
}

func (e *env) startChild() *child {
	e.Helper()
	self, err := os.Executable()
	e.must(err)
	c := &child{e: e, cmd: exec.Command(self)}
	c.cmd.Env = append(os.Environ(), childEnv+"="+e.b.Child)
	c.cmd.Stderr = &c.stderr
	c.cmd.WaitDelay = patience
	c.stdin, err = c.cmd.StdinPipe()
	e.must(err)
	out, err := c.cmd.StdoutPipe()
	e.must(err)
	c.stdout = bufio.NewReader(out)
	e.must(c.cmd.Start())
	c.timer = time.AfterFunc(childLimit, func() { c.cmd.Process.Kill() })
	e.Cleanup(func() {
		if !c.over {
			c.kill()
		}
		if c.e.Failed() && c.stderr.Len() > 0 {
			c.e.Logf("second process: %s", c.stderr.String())
		}
	})
	return c
}

// exchange tells ours and returns the child's.
func (c *child) exchange(ours peerParams) (theirs peerParams) {
	c.e.Helper()
	text, err := json.Marshal(ours)
	c.e.must(err)
	c.line(string(text))
	line, err := c.stdout.ReadString('\n')
	if err != nil {
		c.kill()
		c.e.Fatalf("the second process says nothing: %v; %s", err, c.stderr.String())
	}
	c.e.must(json.Unmarshal([]byte(line), &theirs))
	return theirs
}

func (c *child) line(s string) {
	c.e.Helper()
	_, err := fmt.Fprintln(c.stdin, s)
	c.e.must(err)
}

// end lets the process end, which must find nothing wrong.
func (c *child) end() {
	c.e.Helper()
	c.over = true
	defer c.timer.Stop()
	c.e.must(c.stdin.Close())
	if err := c.cmd.Wait(); err != nil {
		c.e.Errorf("the second process: %v: %s", err, c.stderr.String())
	}
}

// kill ends the process at once.
func (c *child) kill() {
	c.over = true
	c.timer.Stop()
	c.cmd.Process.Kill()
	c.stdin.Close()
	c.cmd.Wait() // killed, as it says
}

package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	// The two processes of a measurement poll; a third thread would take turns
	// with them.
	runtime.GOMAXPROCS(1)
	var err error
	if len(os.Args) == 2 && os.Args[1] == "peer" {
		err = peerMain(os.Stdin, os.Stdout)
	} else {
		err = measureMain(os.Args[1:], os.Stdout)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

// figure is one line of the table.
type figure struct {
	name string
	unit string
	// ours and theirs measure once.
	ours   func(*machine) (float64, error)
	theirs func(*machine) (float64, error)
	note   string // how the two differ
}

// machine is what a measurement works with.
type machine struct {
	device, device2 string
	seen            map[string]float64 // of this round's runs of perftest, by command
}

const (
	smallBytes = 64
	rpcBytes   = 32
)

var figures = []figure{
	{"UD latency, 64 B", "us", oursLatency(jobUDLatency), theirs(perftest{"ib_send_lat", "UD", smallBytes, 2000, 0}, latencyColumn, 1), ""},
	{"RC latency, 64 B", "us", oursLatency(jobRCLatency), theirs(perftest{"ib_send_lat", "RC", smallBytes, 2000, 0}, latencyColumn, 1), ""},
	{"UD rate, 64 B", "1000/s", oursRate(jobUDRate), theirs(perftest{"ib_send_bw", "UD", smallBytes, 20_000, 0}, rateColumn, 1000), "ours posts 16 at a time, ib_send_bw 1"},
	{"RC rate, 64 B", "1000/s", oursRate(jobRCRate), theirs(perftest{"ib_send_bw", "RC", smallBytes, 20_000, 0}, rateColumn, 1000), "ours posts 16 at a time, ib_send_bw 1"},
	{"READ, 64 KiB", "MiB/s", oursRead(64<<10, 400), theirs(perftest{"ib_read_bw", "RC", 64 << 10, 400, readDepth}, bandwidthColumn, 1), ""},
	{"READ, 1 MiB", "MiB/s", oursRead(1<<20, 50), theirs(perftest{"ib_read_bw", "RC", 1 << 20, 50, readDepth}, bandwidthColumn, 1), ""},
	{"RPC latency, 32 B", "us", rpcLatency, theirs(perftest{"ib_send_lat", "UD", smallBytes, 2000, 0}, latencyColumn, 2), "there and back; theirs is twice the UD latency"},
	{"RPC rate, 32 B", "1000/s", rpcRate, theirs(perftest{"ib_send_bw", "UD", smallBytes, 20_000, 0}, rateColumn, 1000), "an RPC is two messages; 32 under way; theirs is one message"},
	{"RPC, 1 MiB requests", "MiB/s", rpcLarge, theirs(perftest{"ib_read_bw", "RC", 1 << 20, 50, readDepth}, bandwidthColumn, 1), "4 under way"},
}

func measureMain(args []string, w io.Writer) error {
	flags := flag.NewFlagSet("figures", flag.ContinueOnError)
	rounds := flags.Int("rounds", 5, "how often everything is measured")
	crossing := flags.Bool("crossing", false, "nothing but requests of a few datagrams, in datagrams and by RDMA READ")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *rounds < 1 || flags.NArg() > 0 {
		return errors.New("usage: figures [--rounds N] [--crossing], N at least 1")
	}
	m := &machine{device: os.Getenv("RRPC_DEVICE"), device2: os.Getenv("RRPC_DEVICE2")}
	if m.device == "" {
		return errors.New("RRPC_DEVICE names no device")
	}
	m.device2 = cmp.Or(m.device2, m.device)
	if *crossing {
		return crossings(m, *rounds, w)
	}

	ours, theirs := make([][]float64, len(figures)), make([][]float64, len(figures))
	for round := range *rounds {
		m.seen = map[string]float64{}
		for i, f := range figures {
			begin := time.Now()
			a, err := f.ours(m)
			if err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			b, err := f.theirs(m)
			if err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			fmt.Fprintf(w, "round %d: %-20s %10.1f %10.1f %s (%.1fs)\n", round+1, f.name, a, b, f.unit, time.Since(begin).Seconds())
			ours[i], theirs[i] = append(ours[i], a), append(theirs[i], b)
		}
	}
	fmt.Fprintln(w)
	return table(w, figures, ours, theirs)
}

// table prints medians: of the values, and of each round's ratio, ours to theirs,
// because what disturbs a round disturbs both.
func table(w io.Writer, figures []figure, ours, theirs [][]float64) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "figure\tours\tperftest\tunit\tratio\t")
	for i, f := range figures {
		ratios := make([]float64, len(ours[i]))
		for r := range ratios {
			ratios[r] = ours[i][r] / theirs[i][r]
		}
		fmt.Fprintf(t, "%s\t%.1f\t%.1f\t%s\t%.2f\t%s\n", f.name, median(ours[i]), median(theirs[i]), f.unit, median(ratios), f.note)
	}
	return t.Flush()
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// peer is the other process.
type peer struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	err strings.Builder
}

// startPeer starts the other process with its job, and waits until it answers.
func startPeer(m *machine, j job) (_ *peer, answer job, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, job{}, err
	}
	p := &peer{cmd: exec.Command(self, "peer")}
	p.cmd.Stderr = &p.err
	p.cmd.WaitDelay = patience
	p.in, err = p.cmd.StdinPipe()
	if err != nil {
		return nil, job{}, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, job{}, err
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		return nil, job{}, err
	}
	j.Device = m.device2
	err = send(p.in, j)
	if err == nil {
		answer, err = receive(p.out)
	}
	if err != nil {
		return nil, job{}, errors.Join(err, p.end())
	}
	return p, answer, nil
}

// end tells the peer to end, and waits for it.
func (p *peer) end() error {
	p.in.Close()
	kill := time.AfterFunc(patience, func() { p.cmd.Process.Kill() })
	defer kill.Stop()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("the other process: %w: %s", err, strings.TrimSpace(p.err.String()))
	}
	return nil
}

// The two processes exchange jobs as lines of JSON.
func send(w io.Writer, j job) error {
	text, err := json.Marshal(j)
	if err == nil {
		_, err = w.Write(append(text, '\n'))
	}
	return err
}

func receive(r *bufio.Reader) (j job, err error) {
	line, err := r.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &j)
	}
	return j, err
}

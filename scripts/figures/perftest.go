package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// perftest is one run of a program of that package.
type perftest struct {
	program string
	service string // RC or UD
	bytes   int
	rounds  int
	reads   int // under way; 0: not a program that reads
}

// Columns of perftest's results.
const (
	latencyColumn   = "t_typical[usec]"
	rateColumn      = "MsgRate[Mpps]"
	bandwidthColumn = "BW average[MiB/sec]"
)

func (p perftest) args(device string) []string {
	args := []string{"-d", device, "-F", "-c", p.service, "-s", strconv.Itoa(p.bytes), "-n", strconv.Itoa(p.rounds)}
	if p.reads > 0 {
		args = append(args, "-o", strconv.Itoa(p.reads), "-t", strconv.Itoa(p.reads))
	}
	return args
}

// serverAddr is where perftest's two processes meet by TCP, on this machine.
const serverAddr = "127.0.0.1"

// theirs runs perftest once per round and returns what a column says, scaled.
func theirs(p perftest, column string, scale float64) func(*machine) (float64, error) {
	return func(m *machine) (float64, error) {
		key := fmt.Sprint(p, column)
		if v, ok := m.seen[key]; ok {
			return v * scale, nil
		}
		v, err := p.run(m, column)
		if err == nil {
			m.seen[key] = v
		}
		return v * scale, err
	}
}

func (p perftest) run(m *machine, column string) (float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var serverSaid bytes.Buffer
	server := exec.CommandContext(ctx, p.program, p.args(m.device2)...)
	server.Stdout, server.Stderr = &serverSaid, &serverSaid
	if err := server.Start(); err != nil {
		return 0, err
	}
	var out []byte
	var err error
	// The server needs a while before it listens, and does not say when: until
	// then, the client ends at once.
	for ctx.Err() == nil {
		client := exec.CommandContext(ctx, p.program, append(p.args(m.device), serverAddr)...)
		if out, err = client.CombinedOutput(); err == nil || !strings.Contains(string(out), "Couldn't connect") {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		cancel()
	}
	if err := errors.Join(err, server.Wait()); err != nil {
		return 0, fmt.Errorf("%s: %w\n%s\nthe server:\n%s", p.program, err, out, serverSaid.Bytes())
	}
	v, err := parsePerftest(string(out), column)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", p.program, err)
	}
	return v, nil
}

// parsePerftest returns what the column says in the line of results, the one
// after that of the names. Both have a unit in brackets after most names, and
// names of two words.
func parsePerftest(text, column string) (float64, error) {
	var names []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#bytes") {
			// "MB" is 2^20 bytes in all versions, which newer ones write.
			line = strings.ReplaceAll(line, "MB/sec", "MiB/sec")
			names = strings.Fields(strings.NewReplacer("BW peak", "BW_peak", "BW average", "BW_average").Replace(line))
			continue
		}
		if names == nil {
			continue
		}
		values := strings.Fields(line)
		for i, name := range names {
			if name == strings.ReplaceAll(column, " ", "_") && i < len(values) {
				v, err := strconv.ParseFloat(values[i], 64)
				if err == nil && v <= 0 {
					err = fmt.Errorf("%s is %v", column, v)
				}
				return v, err
			}
		}
		break
	}
	return 0, fmt.Errorf("no %s in what it printed:\n%s", column, text)
}

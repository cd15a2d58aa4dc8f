package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/rrppcc-go/rrppcc/rpc"
)

// crossingParts are the lengths of the requests that are compared, in datagrams,
// and crossingWindow how many are under way.
var (
	crossingParts  = []int{2, 3, 4, 6, 8, 16}
	crossingWindow = []int{1, 8}
)

// crossingCredits are such that messages of all these lengths may go in
// datagrams.
const crossingCredits = 8 * 18

// partBlock is what a datagram that is part of a message has before its data.
const partBlock = 8

// ways are thresholds of rpc.WithLargeThreshold by which all of these requests go
// in datagrams, or by RDMA READ.
var ways = [2]int{1 << 20, 1}

// crossings compares the two ways of requests of a few datagrams, with an answer
// of 8 bytes. It prints medians of the rounds, in microseconds a request, and of
// each round's ratio of the first to the second.
func crossings(m *machine, rounds int, w io.Writer) error {
	type key struct{ underWay, parts int }
	us, sizes := map[key]*[2][]float64{}, map[int]int{}
	for round := range rounds {
		for way, threshold := range ways {
			begin, again := time.Now(), uint64(0)
			err := withLoadOf(m, crossingCredits, typeLength, longest, 8, slices.Max(crossingWindow), func(l *load) error {
				resps := l.resps
				for _, underWay := range crossingWindow {
					l.resps = resps[:underWay]
					for _, parts := range crossingParts {
						sizes[parts] = parts * (l.ep.MaxSmall() - partBlock)
						took, err := l.crossing(sizes[parts], threshold == 1)
						if err != nil {
							return fmt.Errorf("%d datagrams, %d under way: %w", parts, underWay, err)
						}
						k := key{underWay, parts}
						if us[k] == nil {
							us[k] = new([2][]float64)
						}
						us[k][way] = append(us[k][way], took)
					}
				}
				st, err := l.ep.Stats(context.Background())
				again = st.Retransmits
				return err
			}, rpc.WithCredits(crossingCredits), rpc.WithLargeThreshold(threshold))
			if err != nil {
				return err
			}
			fmt.Fprintf(w, "round %d, threshold %d: %d sent again (%.1fs)\n", round+1, threshold, again, time.Since(begin).Seconds())
			for _, underWay := range crossingWindow {
				fmt.Fprintf(w, "  %d under way:", underWay)
				for _, parts := range crossingParts {
					fmt.Fprintf(w, " %.1f", us[key{underWay, parts}][way][round])
				}
				fmt.Fprintln(w)
			}
		}
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "requests of\tunder way\tin datagrams, us\tby READ, us\tratio\t")
	for _, underWay := range crossingWindow {
		for _, parts := range crossingParts {
			v := us[key{underWay, parts}]
			ratios := make([]float64, rounds)
			for i := range ratios {
				ratios[i] = v[0][i] / v[1][i]
			}
			fmt.Fprintf(t, "%d datagrams (%d B)\t%d\t%.1f\t%.1f\t%.2f\t\n", parts, sizes[parts], underWay, median(v[0]), median(v[1]), median(ratios))
		}
	}
	return t.Flush()
}

// longest is the length of the longest request.
func longest(ep *rpc.Endpoint) int { return slices.Max(crossingParts) * (ep.MaxSmall() - partBlock) }

// crossing returns how long a request of size bytes takes, in microseconds. It is
// the tenth percentile of many short measurements, in most of which another
// program has the processor of one of the two processes, if the machine is busy.
func (l *load) crossing(size int, read bool) (us float64, err error) {
	const short = 200
	n := 1 // requests of one measurement
	if underWay := len(l.resps); underWay > 1 {
		n = 3 * underWay
	}
	if err := l.req.SetLen(size); err != nil {
		return 0, err
	}
	before, err := l.ep.Stats(context.Background())
	if err != nil {
		return 0, err
	}
	if err := l.run(20); err != nil {
		return 0, err
	}
	took := make([]time.Duration, short)
	for i := range took {
		begin := time.Now()
		if err := l.run(n); err != nil {
			return 0, err
		}
		took[i] = time.Since(begin)
	}
	slices.Sort(took)
	after, err := l.ep.Stats(context.Background())
	if err == nil && (after.TxBytes-before.TxBytes < uint64(short*n*size)) != read {
		err = errors.New("the requests went the other way")
	}
	return float64(took[short/10].Nanoseconds()) / 1000 / float64(n), err
}

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

// crossingParts are the lengths of the requests that are compared, in datagrams.
var crossingParts = []int{2, 3, 4, 6, 8, 12, 16}

// crossingCredits are such that messages of all these lengths may go in
// datagrams.
const crossingCredits = 8 * 18

// ways are thresholds of rpc.WithLargeThreshold by which every request goes in
// datagrams, or by RDMA READ.
var ways = [2]int{1 << 20, 1}

// crossings compares the two ways of requests of a few datagrams, with an answer
// of 8 bytes. It prints medians, in microseconds, and of each round's ratio of the
// first to the second.
func crossings(m *machine, rounds int, w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "requests of\tunder way\tdatagrams, us\tREAD, us\tratio\t")
	for _, underWay := range []int{1, 8} {
		for _, parts := range crossingParts {
			var us [2][]float64
			var ratios []float64
			size := 0
			for range rounds {
				for i, threshold := range ways {
					var took float64
					var err error
					if took, size, err = oneCrossing(m, threshold, parts, underWay); err != nil {
						return fmt.Errorf("%d datagrams, %d under way: %w", parts, underWay, err)
					}
					us[i] = append(us[i], took)
				}
				ratios = append(ratios, us[0][len(us[0])-1]/us[1][len(us[1])-1])
			}
			fmt.Fprintf(t, "%d datagrams (%d B)\t%d\t%.1f\t%.1f\t%.2f\t\n", parts, size, underWay, median(us[0]), median(us[1]), median(ratios))
		}
	}
	return t.Flush()
}

// oneCrossing returns how long a request of so many datagrams takes, if it goes
// the way that threshold says, in microseconds: the median with one under way,
// else the average.
func oneCrossing(m *machine, threshold, parts, underWay int) (us float64, size int, err error) {
	const rounds = 400
	length := func(ep *rpc.Endpoint) int {
		size = parts * (ep.MaxSmall() - 8) // behind the block of a part
		return size
	}
	err = withLoadOf(m, crossingCredits, typeLength, length, 8, underWay, func(l *load) error {
		if _, err := l.rate(50, 50); err != nil {
			return err
		}
		if underWay > 1 {
			rate, err := l.rate(0, rounds)
			us = 1e6 / rate
			return err
		}
		took := make([]time.Duration, rounds)
		for i := range took {
			begin := time.Now()
			if err := l.run(1); err != nil {
				return err
			}
			took[i] = time.Since(begin)
		}
		slices.Sort(took)
		us = float64(took[rounds/2].Nanoseconds()) / 1000
		st, err := l.ep.Stats(context.Background())
		if err == nil && (st.TxBytes >= uint64(rounds*size)) != (threshold > 1) {
			err = errors.New("the requests went the other way")
		}
		return err
	}, rpc.WithCredits(crossingCredits), rpc.WithLargeThreshold(threshold))
	return us, size, err
}

package rpc

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// The sizes in bytes at which messages by datagrams and by RDMA READ are compared:
// a little more than one datagram of the simulated device, and 2 to 16 full ones.
var crossingSizes = []int{4096, 2 * 4072, 3 * 4072, 4 * 4072, 6 * 4072, 8 * 4072, 12 * 4072, 16 * 4072}

// crossing are the options by which messages of crossingSizes go one way or the
// other.
func crossing(read bool) []Option {
	threshold := 16 * 4072
	if read {
		threshold = 1
	}
	return []Option{WithCredits(8 * 17), WithLargeThreshold(threshold)}
}

// BenchmarkCrossing compares the two ways of messages of more than a datagram,
// in process, both ends on this goroutine: requests with an answer of 8 bytes, and
// answers to a request of 8 bytes, one or eight at a time. The processor's time is
// what tells on a machine that has other work.
func BenchmarkCrossing(b *testing.B) {
	for _, response := range []bool{false, true} {
		for _, outstanding := range []int{1, 8} {
			for _, size := range crossingSizes {
				for _, read := range []bool{false, true} {
					what, way, req, resp := "request", "UD", size, 8
					if response {
						what, req, resp = "response", 8, size
					}
					if read {
						way = "READ"
					}
					b.Run(fmt.Sprintf("%s/%d/%dB/%s", what, outstanding, size, way), func(b *testing.B) {
						r := newRig(b, crossing(read)...)
						// The handler looks at the request, as handlers do.
						r.srv.Handle(rigEcho, func(h *RequestHandle) (msgbuf.Buf, error) {
							sum := uint64(0)
							for data := h.Bytes(); len(data) >= 64; data = data[64:] {
								sum += binary.LittleEndian.Uint64(data)
							}
							buf, err := h.Response(resp)
							if err == nil {
								binary.LittleEndian.PutUint64(buf.Bytes(), sum)
							}
							return buf, err
						})
						p := newPump(r, req, resp, outstanding)
						p.run(200)
						b.ReportAllocs()
						b.SetBytes(int64(size))
						b.ResetTimer()
						before := cpuTime(b)
						p.run(b.N)
						b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
						if large := r.srv.e.Stats.Reads+r.cli.e.Stats.Reads > 0; large != read {
							b.Fatalf("by READ: %v", large)
						}
					})
				}
			}
		}
	}
}

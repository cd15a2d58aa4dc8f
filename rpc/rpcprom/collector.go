package rpcprom

import (
	"context"
	"iter"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rrppcc-go/rrppcc/nexus"
	"github.com/rrppcc-go/rrppcc/rpc"
)

// patience is how long a scrape waits for an endpoint's loop.
const patience = time.Second

// help says what metrics count whose names do not tell. The others have their
// names for help.
var help = map[string]string{
	"TxDatagrams":   "Datagrams handed to the device.",
	"RxDatagrams":   "Datagrams received, good or bad.",
	"TxBytes":       "Payload of the datagrams sent, bytes.",
	"RxBytes":       "Payload of the datagrams received, bytes.",
	"Reads":         "Large messages pulled by RDMA READ.",
	"ReadBytes":     "Bytes of the large messages pulled.",
	"Requests":      "Requests begun as a client.",
	"Responses":     "Requests ended with a response.",
	"Failed":        "Requests ended with an error.",
	"Handled":       "Requests given to a handler.",
	"Retransmits":   "Datagrams sent again, by either side's word.",
	"Duplicates":    "Requests and responses that had come before.",
	"RecvErrors":    "Failed receive completions.",
	"SendErrors":    "Failed send and READ completions.",
	"Chunks":        "RDMA READs posted.",
	"Repairs":       "RC connections that broke and were re-established.",
	"Sessions":      "Sessions there are, both ends, connecting ones and lanes included.",
	"RingFree":      "Receive buffers that no session has.",
	"Pings":         "Heartbeats sent.",
	"Peers":         "Processes there are connections with.",
	"Conns":         "Connections there are.",
	"Unsealed":      "Messages in clear to a process with a key, or sealed to one without.",
	"Challenges":    "Connects that had to come again with a cookie.",
	"DropMalformed": "Datagrams that contradict themselves or the protocol.",
}

// gauges are what does not only grow.
var gauges = map[string]bool{"Sessions": true, "RingFree": true, "Peers": true, "Conns": true}

// source is something that has counters.
type source struct {
	prefix  string
	labels  prometheus.Labels
	up      *prometheus.Desc
	metrics map[string]metric // by field
	read    func() (iter.Seq2[string, uint64], bool)
}

type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

// Endpoint returns a collector of an endpoint's counters. It may be registered as
// long as the process likes, also when the endpoint is closed.
func Endpoint(ep *rpc.Endpoint) prometheus.Collector {
	labels := prometheus.Labels{"process": ep.URI(), "endpoint": strconv.Itoa(int(ep.ID()))}
	return newSource("rrpc_", labels, rpc.Stats{}.All(), func() (iter.Seq2[string, uint64], bool) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		st, err := ep.Stats(ctx)
		return st.All(), err == nil
	})
}

// Nexus returns a collector of a session manager's counters.
func Nexus(nx *nexus.Nexus) prometheus.Collector {
	return newSource("rrpc_nexus_", prometheus.Labels{"process": nx.URI()}, fields(nexus.Stats{}), func() (iter.Seq2[string, uint64], bool) {
		return fields(nx.Stats()), true
	})
}

// fields yields the numbers of a struct of counters.
func fields(s any) iter.Seq2[string, uint64] {
	return func(yield func(string, uint64) bool) {
		v := reflect.ValueOf(s)
		for i := range v.NumField() {
			n := uint64(0)
			if f := v.Field(i); f.CanUint() {
				n = f.Uint()
			} else {
				n = uint64(f.Int())
			}
			if !yield(v.Type().Field(i).Name, n) {
				return
			}
		}
	}
}

func newSource(prefix string, labels prometheus.Labels, names iter.Seq2[string, uint64], read func() (iter.Seq2[string, uint64], bool)) *source {
	s := &source{prefix: prefix, labels: labels, metrics: make(map[string]metric), read: read}
	s.up = prometheus.NewDesc(prefix+"up", "1 if the counters could be read.", nil, labels)
	for name := range names {
		m := metric{kind: prometheus.CounterValue}
		full := prefix + snake(name)
		if gauges[name] {
			m.kind = prometheus.GaugeValue
		} else {
			full += "_total"
		}
		text := help[name]
		if text == "" {
			text = strings.ReplaceAll(snake(name), "_", " ") + "; see the package's Stats."
		}
		m.desc = prometheus.NewDesc(full, text, nil, labels)
		s.metrics[name] = m
	}
	return s
}

// Describe implements prometheus.Collector.
func (s *source) Describe(ch chan<- *prometheus.Desc) {
	ch <- s.up
	for _, m := range s.metrics {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (s *source) Collect(ch chan<- prometheus.Metric) {
	values, ok := s.read()
	if !ok {
		ch <- prometheus.MustNewConstMetric(s.up, prometheus.GaugeValue, 0)
		return
	}
	ch <- prometheus.MustNewConstMetric(s.up, prometheus.GaugeValue, 1)
	for name, n := range values {
		m := s.metrics[name]
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, float64(n))
	}
}

// snake turns TxBytes into tx_bytes.
func snake(name string) string {
	var b strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

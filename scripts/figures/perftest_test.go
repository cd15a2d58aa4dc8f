package main

import (
	"bytes"
	"strings"
	"testing"
)

const sendLat = `---------------------------------------------------------------------------------------
                    Send Latency Test
 Dual-port       : OFF		Device         : rxe0
---------------------------------------------------------------------------------------
 #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]   99% percentile[usec]   99.9% percentile[usec] 
 64      2000          60.10          2500.00      91.25     	       118.00     	300.0		400.00  		2000.00
---------------------------------------------------------------------------------------
`

const readBW = ` #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 65536      400              123.45             98.70		     0.001579
`

func TestParsePerftestFindsColumns(t *testing.T) {
	for _, c := range []struct {
		text, column string
		want         float64
	}{
		{sendLat, latencyColumn, 91.25},
		{readBW, bandwidthColumn, 98.70},
		{readBW, rateColumn, 0.001579},
		{strings.ReplaceAll(readBW, "MB/sec", "MiB/sec"), bandwidthColumn, 98.70},
	} {
		if got, err := parsePerftest(c.text, c.column); err != nil || got != c.want {
			t.Errorf("%s: %v, %v; want %v", c.column, got, err, c.want)
		}
	}
}

func TestParsePerftestRefusesWhatIsNoResult(t *testing.T) {
	for _, text := range []string{
		"", "Couldn't connect to 127.0.0.1:18515\n",
		strings.Join(strings.SplitAfter(readBW, "\n")[:1], ""),
		strings.ReplaceAll(readBW, "98.70", "nothing"), strings.ReplaceAll(readBW, "98.70", "0.00"),
	} {
		if got, err := parsePerftest(text, bandwidthColumn); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
	for n := range len(readBW) - len("             98.70\t\t     0.001579\n") {
		if got, err := parsePerftest(readBW[:n], bandwidthColumn); err == nil {
			t.Errorf("%q: %v", readBW[:n], got)
		}
	}
}

func TestTableHasMediansOfValuesAndOfRatios(t *testing.T) {
	var out bytes.Buffer
	f := []figure{{name: "x", unit: "us", note: "a note"}}
	if err := table(&out, f, [][]float64{{30, 10, 20, 40}}, [][]float64{{10, 5, 4, 16}}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(strings.Fields(strings.SplitAfter(out.String(), "\n")[1]), " "); got != "x 25.0 7.5 us 2.75 a note" {
		t.Errorf("%q", got)
	}
}

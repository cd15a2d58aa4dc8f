package programs

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// TestDevinfo has ibv_devinfo print what it finds of two devices.
func TestDevinfo(t *testing.T) {
	needs(t, "ibv_devinfo")
	out := runSim(t, []string{"--devices", "2"}, "ibv_devinfo -v")
	for _, want := range []string{"hca_id:\tmlx5_0", "hca_id:\tmlx5_1", "transport:\t\t\tInfiniBand (0)", "vendor_id:\t\t\t0x02c9",
		"PORT_ACTIVE (4)", "link_layer:\t\tEthernet", "RoCE v2"} {
		if !strings.Contains(out, want) {
			t.Errorf("ibv_devinfo -v does not say %q:\n%s", want, out)
		}
	}
}

// iters is how many messages go each way. Two programs that poll and the device
// share the processors, and two cores are few: each turn may cost a time slice.
const iters = 100

// TestPingpongs runs both ends of rdma-core's examples, checking contents where
// they can.
func TestPingpongs(t *testing.T) {
	for _, c := range []struct{ program, args string }{
		{"ibv_rc_pingpong", ""},
		{"ibv_rc_pingpong", "-e"},
		{"ibv_rc_pingpong", "-c -s 65536 -m 4096"},
		{"ibv_rc_pingpong", "-N"}, // ibv_wr_start and friends
		{"ibv_uc_pingpong", ""},
		{"ibv_uc_pingpong", "-e -c"},
		{"ibv_ud_pingpong", ""},
		{"ibv_ud_pingpong", "-e -c"},
		{"ibv_srq_pingpong", ""},
		{"ibv_srq_pingpong", "-e -c"},
	} {
		t.Run(strings.TrimSpace(c.program+" "+c.args), func(t *testing.T) {
			needs(t, c.program)
			port := freePort(t)
			args := fmt.Sprintf("%s -g 3 -n %d -p %d", c.args, iters, port)
			out := pair(t, nil, c.program+" -d mlx5_0 "+args, c.program+" -d mlx5_1 "+args+" 127.0.0.1", port)
			if n := strings.Count(out, fmt.Sprint(iters, " iters")); n != 2 && c.program != "ibv_srq_pingpong" {
				t.Errorf("%d of 2 ends say that they made them allations:\n%s", n, out)
			}
			if strings.Contains(out, "invalid data") {
				t.Errorf("wrong data:\n%s", out)
			}
		})
	}
}

// TestPerftest runs both ends of the programs that everybody measures with.
func TestPerftest(t *testing.T) {
	for _, c := range []struct{ program, args string }{
		{"ib_send_bw", "-s 4096 -n 1000"},
		{"ib_send_bw", "-s 1048576 -n 50"},
		{"ib_send_bw", "-c UC -s 4096 -n 1000"},
		{"ib_send_bw", "-c UD -s 2048 -n 1000"},
		{"ib_send_bw", "-e -s 4096 -n 1000"},
		{"ib_send_bw", "-I 64 -s 64 -n 1000"},
		{"ib_send_bw", "-b -s 4096 -n 1000"},
		{"ib_send_lat", "-n 100"},
		{"ib_send_lat", "-e -n 500"},
		{"ib_send_lat", "-c UD -n 100"},
		{"ib_write_bw", "-s 65536 -n 1000"},
		{"ib_write_bw", "-q 8 -s 4096 -n 500"},
		{"ib_write_bw", "-c UC -s 4096 -n 1000"},
		{"ib_write_lat", "-n 100"},
		{"ib_write_lat", "-I 32 -s 32 -n 100"},
		{"ib_read_bw", "-s 65536 -n 1000"},
		{"ib_read_bw", "-q 8 -s 4096 -n 500"},
		{"ib_read_lat", "-n 100"},
		{"ib_atomic_bw", "-n 1000"},
		{"ib_atomic_bw", "-A CMP_AND_SWAP -n 1000"},
		{"ib_atomic_lat", "-n 100"},
	} {
		t.Run(c.program+" "+c.args, func(t *testing.T) {
			needs(t, c.program)
			port := freePort(t)
			args := fmt.Sprintf("%s -x 3 -F -p %d", c.args, port)
			out := pair(t, nil, c.program+" -d mlx5_0 "+args, c.program+" -d mlx5_1 "+args+" 127.0.0.1", port)
			if !strings.Contains(out, "#bytes") {
				t.Errorf("no result:\n%s", out)
			}
			t.Log(lastResult(out))
		})
	}
}

// lastResult is the last line of figures that a perftest program printed, with
// its heading.
func lastResult(out string) string {
	var head, last string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		switch {
		case len(f) > 0 && f[0] == "#bytes":
			head = strings.Join(f, " ")
		case len(f) > 3 && strings.Trim(f[0]+f[1], "0123456789") == "":
			last = strings.Join(f, " ")
		}
	}
	return head + ": " + last
}

// pair runs a server and a client under one "rrpc sim" with two devices, and
// returns what they printed. Each must end with success.
func pair(t *testing.T, simArgs []string, server, client string, port int) string {
	t.Helper()
	// The client is started once the server listens: /proc/net/tcp tells, without
	// a connection that the server would take for its client.
	script := fmt.Sprintf(`%s & server=$!
while ! grep -q ':%04X 00000000:0000 0A' /proc/net/tcp /proc/net/tcp6 2>/dev/null && ! grep -q ':%04X 00000000000000000000000000000000:0000 0A' /proc/net/tcp6; do
	kill -0 $server || exit 97
	sleep 0.02
done
%s; code=$?
[ $code = 0 ] || kill $server
wait $server || exit 98
exit $code`, server, port, port, client)
	return runSim(t, append([]string{"--devices", "2"}, simArgs...), script)
}

// runSim runs a shell script under "rrpc sim".
func runSim(t *testing.T, simArgs []string, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := sim(ctx, t, append(simArgs, "--", "sh", "-c", script)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v:\n%s", err, out.String())
	}
	return out.String()
}

// freePort is a TCP port that nobody had a moment ago, below those that the
// kernel gives away.
func freePort(t *testing.T) int {
	t.Helper()
	for p := 18515 + os.Getpid()%4000; p < 32000; p++ {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", p))
		if err != nil {
			continue
		}
		l.Close()
		return p
	}
	t.Fatal("no free port")
	return 0
}

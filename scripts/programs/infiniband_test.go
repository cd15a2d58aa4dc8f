package programs

import (
	"fmt"
	"strings"
	"testing"
)

// TestInfiniBandPrograms has programs on the real libmlx5 reach each other by LID,
// and by LID and GID (-g 0, -x 0).
func TestInfiniBandPrograms(t *testing.T) {
	link := []string{"--link", "infiniband"}
	t.Run("ibv_devinfo", func(t *testing.T) {
		needs(t, "ibv_devinfo")
		out := runSim(t, link, "ibv_devinfo -v")
		for _, want := range []string{"link_layer:\t\tInfiniBand", "port_lid:\t\t2", "sm_lid:\t\t\t1", "GID[  0]:\t\tfe80:0000:0000:0000:"} {
			if !strings.Contains(out, want) {
				t.Errorf("ibv_devinfo -v does not say %q:\n%s", want, out)
			}
		}
	})
	for _, c := range []struct{ program, args, want string }{
		{"ibv_rc_pingpong", "-c", "LID 0x0003"},
		{"ibv_rc_pingpong", "-c -g 0", "GID fe80::"},
		{"ibv_uc_pingpong", "-c", "LID 0x0003"},
		{"ibv_ud_pingpong", "-c", "LID 0x0003"},
		{"ibv_ud_pingpong", "-c -g 0", "GID fe80::"},
		{"ibv_srq_pingpong", "-c", "LID 0x0003"},
		{"ib_send_bw", "-F -c UD -s 2048", "Link type       : IB"},
		{"ib_write_bw", "-F -s 65536 -x 0", "Link type       : IB"},
	} {
		t.Run(c.program+" "+c.args, func(t *testing.T) {
			needs(t, c.program)
			port := freePort(t)
			args := fmt.Sprintf("%s -n %d -p %d", c.args, iters, port)
			out := pair(t, link, c.program+" -d mlx5_0 "+args, c.program+" -d mlx5_1 "+args+" 127.0.0.1", port)
			if !strings.Contains(out, c.want) || strings.Contains(out, "invalid data") {
				t.Errorf("want %q, and no wrong data:\n%s", c.want, out)
			}
		})
	}
}

package kernel

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	nlFamily      = 20      // NETLINK_RDMA
	nlBufferBytes = 1 << 16 // the kernel's dumps take 32 KiB at most per datagram
	nlPatience    = 2       // seconds for one datagram; the kernel answers at once
	nlDatagrams   = 1 << 12 // in one answer, against a kernel that does not end
)

// withNetlink calls f with a connection to the kernel's RDMA netlink.
func withNetlink(f func(ask nlAsk) error) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, nlFamily)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: nlPatience}); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	buf := make([]byte, nlBufferBytes)
	seq := uint32(0)
	return f(func(cmd uint16, dump bool, attrs []byte) ([]nlAttrs, error) {
		seq++
		request := nlRequestMessage(seq, cmd, dump, attrs)
		if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return nil, fmt.Errorf("netlink: %w", err)
		}
		answer := nlAnswer{seq: seq, typ: nlType(cmd)}
		for range nlDatagrams {
			n, from, err := unix.Recvfrom(fd, buf, unix.MSG_TRUNC)
			switch {
			case err == unix.EINTR:
				continue
			case err != nil:
				return nil, fmt.Errorf("netlink: %w", err)
			case n > len(buf):
				return nil, fmt.Errorf("%w: datagram of %d bytes", errNetlink, n)
			}
			if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
				continue // not of the kernel
			}
			// The attributes are kept: they must not lie in buf.
			if done, err := answer.add(append([]byte(nil), buf[:n]...)); done || err != nil {
				return answer.list, err
			}
		}
		return nil, fmt.Errorf("%w: no end", errNetlink)
	})
}

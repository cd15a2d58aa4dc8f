package mlx5sim

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openLink binds the UDP link of d.
func openLink(d *Device) (link, error) {
	l, err := openUDPLink(d)
	if err != nil {
		return nil, err
	}
	return l, nil
}

const (
	sendVec = 32 // runs per sendmmsg
	recvVec = 8  // datagrams, or coalesced runs of them, per recvmmsg
)

// mmsghdr is struct mmsghdr of <sys/socket.h>.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// cmsg is a control message with room for an int, which most of them are;
// UDP_SEGMENT's takes a uint16, and a received IP_TOS is a byte.
type cmsg struct {
	hdr unix.Cmsghdr
	val [8]byte
}

var _ [24]byte = [unsafe.Sizeof(cmsg{})]byte{}

// cmsgs is the control messages of one datagram: of its size, its traffic class
// and its hop limit.
type cmsgs [3]cmsg

// udpLink is a UDP link with Linux's batches: sendmmsg and recvmmsg, in which
// one entry is a run of packets that the kernel cuts (UDP_SEGMENT) or has
// joined (UDP_GRO).
//
// The system calls are raw ones: the socket is non-blocking, each call is
// bounded by the copy of its data, and a call that told the scheduler could
// lose its processor while it holds the fabric's mutex. The receiver is a
// goroutine that the runtime's poller parks.
//
// Packets carry IP identification 0 and DF, which the ICRC covers: that is
// what an unconnected socket with IP_PMTUDISC_DO sends. A run that the kernel
// cuts is numbered 0, 1, 2 instead. Where the packets stay on this host nobody
// sees that number, and elsewhere runs are not used.
type udpLink struct {
	dev  *Device
	conn *net.UDPConn
	raw  syscall.RawConn

	level, tclass, hops int // control messages of IP or IPv6

	// Of send; guarded by fab.mu.
	gso     bool
	runs    []run
	refused int
	sendFn  func(fd uintptr) bool
	tx      [sendVec]mmsghdr
	txIov   [sendVec]unix.Iovec
	txName  [sendVec]unix.RawSockaddrInet6
	txCtl   [sendVec]cmsgs
	txCount [sendVec]int // packets in the entry

	// Of the receiver.
	recvFn  func(fd uintptr) bool
	recvN   int
	recvErr syscall.Errno
	rx      [recvVec]mmsghdr
	rxIov   [recvVec]unix.Iovec
	rxName  [recvVec]unix.RawSockaddrInet6
	rxCtl   [recvVec]cmsgs
	rxBuf   []byte
	bursts  []burst

	wg   sync.WaitGroup
	once sync.Once
	err  error
}

const rxBufBytes = 64 << 10 // per entry

func openUDPLink(d *Device) (*udpLink, error) {
	conn, err := listen(d)
	if err != nil {
		return nil, err
	}
	l := &udpLink{dev: d, conn: conn}
	if l.raw, err = conn.SyscallConn(); err != nil {
		conn.Close()
		return nil, err
	}
	var soErr error
	err = l.raw.Control(func(fd uintptr) { soErr = l.options(int(fd)) })
	if err = errors.Join(err, soErr); err != nil {
		conn.Close()
		return nil, err
	}
	l.rxBuf = make([]byte, recvVec*rxBufBytes)
	l.bursts = make([]burst, 0, recvVec)
	l.sendFn, l.recvFn = l.sendAll, l.recv
	l.wg.Go(l.reader)
	return l, nil
}

// options sets what the link needs; only the identification and DF, which the
// ICRC depends on, are mandatory.
func (l *udpLink) options(fd int) error {
	if l.dev.addr.Is4() {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO); err != nil {
			return err
		}
		l.level, l.tclass, l.hops = unix.IPPROTO_IP, unix.IP_TOS, unix.IP_TTL
		unix.SetsockoptInt(fd, l.level, unix.IP_TTL, wireHopLimit)
		unix.SetsockoptInt(fd, l.level, unix.IP_RECVTOS, 1)
		unix.SetsockoptInt(fd, l.level, unix.IP_RECVTTL, 1)
	} else {
		l.level, l.tclass, l.hops = unix.IPPROTO_IPV6, unix.IPV6_TCLASS, unix.IPV6_HOPLIMIT
		unix.SetsockoptInt(fd, l.level, unix.IPV6_UNICAST_HOPS, wireHopLimit)
		unix.SetsockoptInt(fd, l.level, unix.IPV6_RECVTCLASS, 1)
		unix.SetsockoptInt(fd, l.level, unix.IPV6_RECVHOPLIMIT, 1)
	}
	for _, o := range [...][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], socketBufferBytes) != nil {
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], socketBufferBytes) // the system's limit cuts it
		}
	}
	l.gso = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT, 0) == nil
	unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1) // without it packets come one by one
	return nil
}

func (l *udpLink) send(runs []run) (refused int) {
	l.runs, l.refused = runs, 0
	if err := l.raw.Write(l.sendFn); err != nil {
		for i := range runs {
			l.refused += runs[i].packets()
		}
	}
	l.runs = nil
	return l.refused
}

// sendAll sends l.runs without waiting. It returns true: it is done.
func (l *udpLink) sendAll(fd uintptr) bool {
	n := 0
	for i := range l.runs {
		r := &l.runs[i]
		step := r.size
		if l.gso && l.stays(r.to.Addr()) {
			step = len(r.b)
		}
		for b := r.b; len(b) > 0; {
			piece := b[:min(step, len(b))]
			b = b[len(piece):]
			l.entry(n, r, piece)
			if n++; n == sendVec {
				l.flush(fd, n)
				n = 0
			}
		}
	}
	l.flush(fd, n)
	return true
}

// stays reports whether packets to a do not leave this host.
func (l *udpLink) stays(a netip.Addr) bool { return a.IsLoopback() || a == l.dev.addr }

// entry makes b, one packet or several of r.size, entry i of the next
// sendmmsg.
func (l *udpLink) entry(i int, r *run, b []byte) {
	m := &l.tx[i].hdr
	l.txIov[i].Base = &b[0]
	l.txIov[i].SetLen(len(b))
	m.Iov = &l.txIov[i]
	m.SetIovlen(1)
	m.Name = (*byte)(unsafe.Pointer(&l.txName[i]))
	m.Namelen = putSockaddr(&l.txName[i], r.to)
	n := 0
	l.txCount[i] = 1
	if len(b) > r.size {
		l.txCount[i] = (len(b) + r.size - 1) / r.size
		c := &l.txCtl[i][n]
		c.hdr.Level, c.hdr.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		c.hdr.SetLen(unix.CmsgLen(2))
		*(*uint16)(unsafe.Pointer(&c.val)) = uint16(r.size)
		n++
	}
	if r.class != plainClass { // which the socket has by itself
		for _, v := range [...][2]int{{l.tclass, int(r.class.traffic)}, {l.hops, int(r.class.hops)}} {
			c := &l.txCtl[i][n]
			c.hdr.Level, c.hdr.Type = int32(l.level), int32(v[0])
			c.hdr.SetLen(unix.CmsgLen(4))
			*(*int32)(unsafe.Pointer(&c.val)) = int32(v[1])
			n++
		}
	}
	m.Control = nil
	if n > 0 {
		m.Control = (*byte)(unsafe.Pointer(&l.txCtl[i]))
	}
	m.SetControllen(n * int(unsafe.Sizeof(cmsg{})))
}

// flush sends the first n entries. What the socket has no room for is
// refused; an entry that the kernel does not take does not hold up the rest.
func (l *udpLink) flush(fd uintptr, n int) {
	for done := 0; done < n; {
		sent, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&l.tx[done])), uintptr(n-done), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			done += int(sent)
		case unix.EINTR:
		case unix.EAGAIN, unix.ENOBUFS:
			for ; done < n; done++ {
				l.refused += l.txCount[done]
			}
		default:
			if l.txCount[done] > 1 && (errno == unix.EIO || errno == unix.EINVAL) {
				l.gso = false // the interface can't; next time without
			}
			l.refused += l.txCount[done]
			done++
		}
	}
}

func (l *udpLink) reader() {
	for {
		err := l.raw.Read(l.recvFn)
		if err != nil || l.recvErr == unix.EBADF {
			return // closed
		}
		if l.recvErr != 0 {
			continue // an error of an earlier send; reading cleared it
		}
		l.bursts = l.bursts[:0]
		for i := range l.recvN {
			m := &l.rx[i]
			if m.n == 0 || m.hdr.Flags&unix.MSG_TRUNC != 0 {
				continue
			}
			off := i * rxBufBytes
			size, class := l.ancillary(i)
			l.bursts = append(l.bursts, burst{from: sockaddr(&l.rxName[i]), class: class, size: size, b: l.rxBuf[off : off+int(m.n)]})
		}
		l.dev.deliver(l.bursts)
	}
}

// recv receives what is there. False parks the reader until there is more.
func (l *udpLink) recv(fd uintptr) bool {
	for i := range l.rx {
		m := &l.rx[i].hdr
		l.rxIov[i].Base = &l.rxBuf[i*rxBufBytes]
		l.rxIov[i].SetLen(rxBufBytes)
		m.Iov = &l.rxIov[i]
		m.SetIovlen(1)
		m.Name = (*byte)(unsafe.Pointer(&l.rxName[i]))
		m.Namelen = uint32(unsafe.Sizeof(l.rxName[i]))
		m.Control = (*byte)(unsafe.Pointer(&l.rxCtl[i]))
		m.SetControllen(int(unsafe.Sizeof(l.rxCtl[i])))
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&l.rx)), recvVec, unix.MSG_DONTWAIT, 0, 0)
		l.recvN, l.recvErr = int(n), errno
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		return true
	}
}

// ancillary is the size of the packets in entry i, and their class. The kernel
// joins only packets of one class.
func (l *udpLink) ancillary(i int) (size int, class ipClass) {
	size, class = int(l.rx[i].n), plainClass
	n := min(int(l.rx[i].hdr.Controllen)+int(unsafe.Sizeof(cmsg{}))-1, int(unsafe.Sizeof(cmsgs{}))) / int(unsafe.Sizeof(cmsg{}))
	for k := range n { // all of them take as much room
		c := &l.rxCtl[i][k]
		v := *(*int32)(unsafe.Pointer(&c.val))
		level, typ := int(c.hdr.Level), int(c.hdr.Type)
		switch {
		case level == unix.SOL_UDP && typ == unix.UDP_GRO && v > 0:
			size = int(v)
		case level == unix.IPPROTO_IP && typ == unix.IP_TOS:
			class.traffic = c.val[0]
		case level == l.level && typ == l.tclass:
			class.traffic = uint8(v)
		case level == l.level && typ == l.hops:
			class.hops = uint8(v)
		}
	}
	return size, class
}

// putSockaddr lays out a as struct sockaddr_in or sockaddr_in6, and returns
// its length.
func putSockaddr(sa *unix.RawSockaddrInet6, a netip.AddrPort) uint32 {
	port := (*[2]byte)(unsafe.Pointer(&sa.Port)) // at the same place in both
	port[0], port[1] = byte(a.Port()>>8), byte(a.Port())
	if a.Addr().Is4() {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		sa4.Family = unix.AF_INET
		sa4.Addr = a.Addr().As4()
		return unix.SizeofSockaddrInet4
	}
	sa.Family = unix.AF_INET6
	sa.Flowinfo, sa.Scope_id = 0, 0
	sa.Addr = a.Addr().As16()
	return unix.SizeofSockaddrInet6
}

// sockaddr reads what putSockaddr lays out. The zero AddrPort is that of
// another family.
func sockaddr(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := (*[2]byte)(unsafe.Pointer(&sa.Port))
	n := uint16(port[0])<<8 | uint16(port[1])
	switch sa.Family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr), n)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), n)
	}
	return netip.AddrPort{}
}

func (l *udpLink) Close() error {
	l.once.Do(func() {
		l.err = l.conn.Close() // wakes the reader
		l.wg.Wait()
	})
	return l.err
}

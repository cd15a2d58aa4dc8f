package main

import "net"

// dgram is the host's end of QEMU's "-netdev dgram" on sockets in the file
// system: one datagram is one frame, and a full queue makes the sender wait.
type dgram struct {
	*net.UnixConn
	to *net.UnixAddr // may appear later, and go away
}

func listenDgram(own, peer string) (*dgram, error) {
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: own, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	return &dgram{c, &net.UnixAddr{Name: peer, Net: "unixgram"}}, nil
}

func (d *dgram) Write(b []byte) (int, error) { return d.WriteToUnix(b, d.to) }

package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// capture writes all frames that pass to a file that tshark and others read
// (pcap, nanoseconds).
type capture struct {
	io.ReadWriteCloser
	mu   sync.Mutex
	file *os.File
	w    *bufio.Writer
}

func newCapture(frames io.ReadWriteCloser, name string) (*capture, error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	c := &capture{ReadWriteCloser: frames, file: f, w: bufio.NewWriter(f)}
	head := make([]byte, 0, 24)
	head = binary.LittleEndian.AppendUint32(head, 0xa1b23c4d)
	head = binary.LittleEndian.AppendUint16(head, 2)
	head = binary.LittleEndian.AppendUint16(head, 4)
	head = append(head, make([]byte, 8)...)              // time zone, accuracy
	head = binary.LittleEndian.AppendUint32(head, 1<<16) // longest frame
	head = binary.LittleEndian.AppendUint32(head, 1)     // Ethernet
	_, err = c.w.Write(head)
	return c, err
}

func (c *capture) frame(b []byte) {
	now := time.Now()
	var head [16]byte
	for i, v := range []uint32{uint32(now.Unix()), uint32(now.Nanosecond()), uint32(len(b)), uint32(len(b))} {
		binary.LittleEndian.PutUint32(head[4*i:], v)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.w.Write(head[:]) // the first error stays, and Close returns it
	c.w.Write(b)
}

func (c *capture) Read(b []byte) (int, error) {
	n, err := c.ReadWriteCloser.Read(b)
	if err == nil {
		c.frame(b[:n])
	}
	return n, err
}

func (c *capture) Write(b []byte) (int, error) {
	c.frame(b)
	return c.ReadWriteCloser.Write(b)
}

func (c *capture) Close() error {
	err := c.ReadWriteCloser.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(err, c.w.Flush(), c.file.Close())
}

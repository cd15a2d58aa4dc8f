package rpctest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/rrppcc-go/rrppcc/rpc"
)

// caller is a client that calls without end, with more requests at a time than
// the window lets through.
type caller struct {
	Process ProcessConfig
	URI     string // of the server
	Type    uint8  // what it calls; answered with the request backwards
	Size    int    // of requests and responses, 4 at least
	Tag     uint32 // the first 4 bytes of each request
}

// callersAtOnce is how many goroutines call.
const callersAtOnce = 12

// run calls until standard input ends. It prints a line when the first response
// is there.
func (c *caller) run(b Backend) (err error) {
	p, err := b.NewProcess(c.Process)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	ep, err := rpc.NewEndpoint(p.Nexus, 1, p.Verbs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ep.Close()) }()
	ctx, cancel := context.WithCancel(context.Background())
	var loop sync.WaitGroup
	loop.Go(func() { ep.Run(ctx) })
	defer loop.Wait()
	defer cancel()
	s, err := connectOnceFree(ctx, ep, c.URI, 1)
	if err != nil {
		return err
	}
	enough := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(enough)
	}()
	var first sync.Once
	err = c.call(s, func() bool {
		first.Do(func() { fmt.Println("calling") })
		select {
		case <-enough:
			return false
		default:
			return true
		}
	})
	return errors.Join(err, s.Close())
}

// call has goroutines call until more says no, or a call fails. It asks more
// after each response. Its error is what the calls ended with, all of them.
func (c *caller) call(s *rpc.Session, more func() bool) error {
	var wg sync.WaitGroup
	errs := make([]error, callersAtOnce)
	for i := range errs {
		wg.Go(func() { errs[i] = c.callAlone(s, uint32(i), more) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (c *caller) callAlone(s *rpc.Session, seed uint32, more func() bool) error {
	req, err := s.Endpoint().Alloc(c.Size)
	if err != nil {
		return err
	}
	defer req.Free()
	resp, err := s.Endpoint().Alloc(c.Size)
	if err != nil {
		return err
	}
	defer resp.Free()
	for {
		seed += callersAtOnce
		Pattern(req.Bytes(), seed)
		binary.LittleEndian.PutUint32(req.Bytes(), c.Tag)
		if err := s.Call(context.Background(), c.Type, req, resp); err != nil {
			return err
		}
		if !bytes.Equal(resp.Bytes(), reversed(req.Bytes())) {
			return errors.New("a response is not that of its request")
		}
		if !more() {
			return nil
		}
	}
}

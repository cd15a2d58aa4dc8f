package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc"
)

const (
	clientID = 3

	helloText = "hello over RDMA!" // 16 bytes
	seed      = 20240607

	// connectPatience is how long a server that does not answer is asked. One
	// that is there answers at once, or to one of the repetitions.
	connectPatience = 10 * time.Second
)

// runClient calls the server at uri and checks every answer.
func (f *helloFlags) runClient(ctx context.Context, uri string, stdout io.Writer, log *slog.Logger) (err error) {
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		}
	}()
	near := addressTowards(uri)
	dev, err := f.open(near)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	fmt.Fprintf(stdout, "client   %v: %s\n", dev, dev.why)

	local := "127.0.0.1:0"
	if near.IsValid() {
		local = net.JoinHostPort(near.String(), "0")
	}
	nx, err := f.nexus(local, log)
	if err != nil {
		return err
	}
	defer nx.Close()
	ep, err := rpc.NewEndpoint(nx, clientID, dev.ctx, rpc.WithPort(uint8(f.port)), rpc.WithGIDIndex(f.gid), rpc.WithLogger(log))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ep.Close()) }()
	connectCtx, cancel := context.WithTimeout(ctx, connectPatience)
	sess, err := ep.Connect(connectCtx, uri, frontID)
	cancel()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sess.Close()) }()
	fmt.Fprintf(stdout, "session  endpoint %d at %s\n\n", frontID, uri)

	c := &helloClient{ctx: ctx, ep: ep, sess: sess, out: stdout}
	fmt.Fprintf(stdout, "%-16s %12s %4s  %12s %4s  %10s\n", "", "request", "over", "response", "over", "time")
	failed := 0
	for _, step := range []func() error{c.hello, c.upload(f.large), c.fetch(f.large), c.nested} {
		if err := step(); err != nil {
			fmt.Fprintf(stdout, "FAILED: %v\n", err)
			failed++
			if ctx.Err() != nil {
				break
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d checks failed", failed)
	}
	fmt.Fprintln(stdout, "\nevery check held")
	return nil
}

type helloClient struct {
	ctx  context.Context
	ep   *rpc.Endpoint
	sess *rpc.Session
	out  io.Writer
}

// call sends n bytes that fill makes and returns what check says of the
// response.
func (c *helloClient) call(name string, typ uint8, n, respCap int, fill func([]byte), check func(req, resp []byte) (string, error)) error {
	req, err := c.ep.Alloc(n)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer req.Free()
	resp, err := c.ep.Alloc(respCap)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer resp.Free()
	fill(req.Bytes())
	start := time.Now()
	r := c.sess.Go(typ, req, resp)
	if err := r.Wait(c.ctx); err != nil {
		if errors.Is(err, rpc.ErrDeadlock) || errors.Is(err, rpc.ErrClosed) {
			req, resp = msgbuf.Buf{}, msgbuf.Buf{} // not ours again
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	took := time.Since(start)
	note, err := check(req.Bytes(), resp.Bytes())
	reqLarge, respLarge := r.Large()
	moved := req.Len() + resp.Len()
	fmt.Fprintf(c.out, "%-16s %12s %4s  %12s %4s  %10v  %s", name, size(req.Len()), path(reqLarge), size(resp.Len()), path(respLarge), took.Round(100*time.Nanosecond), note)
	if moved >= 1<<20 {
		fmt.Fprintf(c.out, ", %.2f GB/s", float64(moved)/took.Seconds()/1e9)
	}
	fmt.Fprintln(c.out)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (c *helloClient) hello() error {
	return c.call("hello", typeHello, len(helloText), len(helloAnswer), func(b []byte) { copy(b, helloText) },
		func(_, resp []byte) (string, error) {
			if string(resp) != helloAnswer {
				return "", fmt.Errorf("answer %q, want %q", resp, helloAnswer)
			}
			return fmt.Sprintf("%q", resp), nil
		})
}

func (c *helloClient) upload(n int) func() error {
	return func() error {
		return c.call("large request", typeUpload, n, 4, func(b []byte) { pattern(b, seed) }, func(req, resp []byte) (string, error) {
			if len(resp) != 4 {
				return "", fmt.Errorf("answer of %d bytes, want 4", len(resp))
			}
			return checksum(binary.BigEndian.Uint32(resp), crc32.Checksum(req, castagnoli))
		})
	}
}

func (c *helloClient) fetch(n int) func() error {
	return func() error {
		return c.call("large response", typeFetch, 8, n, func(b []byte) {
			binary.BigEndian.PutUint32(b, seed)
			binary.BigEndian.PutUint32(b[4:], uint32(n))
		}, func(_, resp []byte) (string, error) {
			want := make([]byte, n)
			pattern(want, seed)
			return checksum(crc32.Checksum(resp, castagnoli), crc32.Checksum(want, castagnoli))
		})
	}
}

func (c *helloClient) nested() error {
	return c.call("nested", typeNested, len(helloText), len(helloText), func(b []byte) { copy(b, helloText) },
		func(req, resp []byte) (string, error) {
			if len(resp) != len(req) {
				return "", fmt.Errorf("answer of %d bytes, want %d", len(resp), len(req))
			}
			for i := range req {
				if resp[len(req)-1-i] != req[i] {
					return "", fmt.Errorf("answer %q is not %q in reverse", resp, req)
				}
			}
			return fmt.Sprintf("%q, by endpoint %d through %d", resp, backID, frontID), nil
		})
}

func checksum(got, want uint32) (string, error) {
	if got != want {
		return "", fmt.Errorf("CRC-32C %08x, want %08x", got, want)
	}
	return fmt.Sprintf("CRC-32C %08x", got), nil
}

func path(large bool) string {
	if large {
		return "RC"
	}
	return "UD"
}

func size(n int) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}

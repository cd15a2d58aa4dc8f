package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/rrppcc-go/rrppcc/nexus"
)

// helloFlags are the flags of rrpc hello.
type helloFlags struct {
	deviceFlags
	serve   string
	connect string
	timeout time.Duration
	large   int
	child   bool
	keyFile string
}

// hello runs both halves, or one of them.
func hello(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	var f helloFlags
	fs := flag.NewFlagSet("hello", flag.ContinueOnError)
	f.register(fs)
	fs.StringVar(&f.serve, "serve", "", "be the server alone, reached at this `host:port` (UDP)")
	fs.StringVar(&f.connect, "connect", "", "be the client alone, of the server at this `host:port`")
	fs.DurationVar(&f.timeout, "timeout", time.Minute, "give up after this time (not with --serve)")
	fs.IntVar(&f.large, "large", 16<<20, "`bytes` of the large messages")
	fs.StringVar(&f.keyFile, "key-file", "", "seal session management with the secret that is this `file`, the same for both halves")
	fs.StringVar(&f.pcap, "pcap", "", "write the packets of the client's simulated device to this `file`; with --serve the server's")
	fs.BoolVar(&f.child, "until-eof", false, "with --serve: end when standard input ends")
	if err := parse(fs, args, stderr); err != nil {
		return err
	}
	if f.serve != "" && f.connect != "" {
		return fmt.Errorf("%w: --serve and --connect exclude each other", errUsage)
	}
	if f.large < 1 || f.large > maxLarge {
		return fmt.Errorf("%w: --large %d; 1 to %d are possible", errUsage, f.large, maxLarge)
	}
	if err := f.check(); err != nil {
		return err
	}
	log := f.logger(stderr)
	if f.serve != "" {
		return f.runServer(ctx, stdin, stdout, log)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, f.timeout, fmt.Errorf("not done after %v", f.timeout))
	defer cancel()
	if f.connect != "" {
		return f.runClient(ctx, f.connect, stdout, log)
	}
	return f.runBoth(ctx, stdout, stderr, log)
}

// nexus opens session management at uri, with the key if there is one.
func (f *helloFlags) nexus(uri string, log *slog.Logger) (*nexus.Nexus, error) {
	// A demonstration runs where much else does, and emulated machines stall.
	opts := []nexus.Option{nexus.WithLogger(log), nexus.WithHeartbeat(0, 3*time.Second)}
	if f.keyFile != "" {
		secret, err := os.ReadFile(f.keyFile)
		if err != nil {
			return nil, fmt.Errorf("key: %w", err)
		}
		opts = append(opts, nexus.WithKey(secret))
	}
	return nexus.New(uri, opts...)
}

// runBoth starts a server process and is its client.
func (f *helloFlags) runBoth(ctx context.Context, stdout, stderr io.Writer, log *slog.Logger) (err error) {
	srv, err := startServer(ctx, f, stderr)
	if err != nil {
		return err
	}
	defer func() {
		if serr := srv.stop(); serr != nil && err == nil {
			err = fmt.Errorf("server process: %w", serr)
		}
	}()
	fmt.Fprintf(stdout, "server   process %d: %s\n", srv.cmd.Process.Pid, srv.device)
	return f.runClient(ctx, srv.uri, stdout, log)
}

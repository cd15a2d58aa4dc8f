package rpctest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/rrppcc-go/rrppcc/rpc"
)

// ServerConfig says what a server is to be. The zero value will do.
type ServerConfig struct {
	ProcessConfig
	Endpoints  int // numbered from 1; 0 means 1
	RingDepth  int // 0: rpc's default
	MaxMessage int // 0: rpc's default
	Window     int // 0: rpc's default
	Workers    int // 0: rpc's default
	Credits    int // 0: rpc's default
	Threshold  int // of rpc.WithLargeThreshold
}

// Server is a process with endpoints that have the handlers of this package.
type Server interface {
	// URI is where the process is reached.
	URI() string
	// Kill ends the process without a goodbye. It must still be closed.
	Kill() error
	// Close ends the process. It fails if the process has lost a buffer.
	Close() error
}

// localServer is a server within this process.
type localServer struct {
	p     *Process
	eps   []*rpc.Endpoint
	sets  []*Handlers
	stop  context.CancelFunc
	loops sync.WaitGroup
	watch watcher

	mu     sync.Mutex
	runErr error
}

func startLocal(b interface {
	NewProcess(ProcessConfig) (*Process, error)
}, cfg ServerConfig) (Server, error) {
	p, err := b.NewProcess(cfg.ProcessConfig)
	if err != nil {
		return nil, err
	}
	return serve(p, cfg)
}

// serve starts the endpoints of a server. It takes over p.
func serve(p *Process, cfg ServerConfig) (_ *localServer, err error) {
	s := &localServer{p: p}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	opts := []rpc.Option{rpc.WithLogger(slog.New(&s.watch))}
	if cfg.RingDepth != 0 {
		opts = append(opts, rpc.WithRingDepth(cfg.RingDepth))
	}
	if cfg.MaxMessage != 0 {
		opts = append(opts, rpc.WithMaxMessage(cfg.MaxMessage))
	}
	if cfg.Window != 0 {
		opts = append(opts, rpc.WithWindow(cfg.Window))
	}
	if cfg.Credits != 0 {
		opts = append(opts, rpc.WithCredits(cfg.Credits))
	}
	if cfg.Threshold != 0 {
		opts = append(opts, rpc.WithLargeThreshold(cfg.Threshold))
	}
	if cfg.Workers != 0 {
		opts = append(opts, rpc.WithWorkers(cfg.Workers))
	}
	for id := range max(cfg.Endpoints, 1) {
		ep, err := rpc.NewEndpoint(p.Nexus, uint16(id+1), p.Verbs, opts...)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.eps = append(s.eps, ep)
		s.sets = append(s.sets, Bind(ep))
		s.loops.Go(func() {
			if err := ep.Run(ctx); err != nil {
				s.mu.Lock()
				s.runErr = errors.Join(s.runErr, err)
				s.mu.Unlock()
			}
		})
	}
	return s, nil
}

func (s *localServer) URI() string { return s.p.Nexus.URI() }

func (s *localServer) Kill() error {
	s.p.Kill()
	s.stop()
	s.loops.Wait()
	return nil
}

func (s *localServer) Close() error {
	for _, h := range s.sets {
		h.Close()
	}
	s.stop()
	s.loops.Wait()
	var errs []error
	for _, ep := range s.eps {
		errs = append(errs, ep.Close())
	}
	errs = append(errs, s.p.Close(), s.runErr, s.watch.err())
	return errors.Join(errs...)
}

// watcher is a log that remembers what must not happen in a test: buffers that
// are lost, and queues that cannot be destroyed.
type watcher struct {
	mu       sync.Mutex
	findings []string
}

var mishaps = []string{"buffers in use", "destroy"}

func (w *watcher) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (w *watcher) WithAttrs([]slog.Attr) slog.Handler           { return w }
func (w *watcher) WithGroup(string) slog.Handler                { return w }

func (w *watcher) Handle(_ context.Context, r slog.Record) error {
	for _, m := range mishaps {
		if strings.Contains(r.Message, m) {
			text := r.Message
			r.Attrs(func(a slog.Attr) bool {
				text += fmt.Sprintf(" %v", a)
				return true
			})
			w.mu.Lock()
			w.findings = append(w.findings, text)
			w.mu.Unlock()
		}
	}
	return nil
}

// err returns what was found.
func (w *watcher) err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.findings) == 0 {
		return nil
	}
	return errors.New(strings.Join(w.findings, "; "))
}

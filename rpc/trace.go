package rpc

import (
	"errors"
	"log/slog"
	"time"

	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
)

// Trace is how one request went, as one end of its session saw it. Times are as
// exact as the loop's turns: what happens in one turn happens at once.
type Trace struct {
	Session *Session
	Server  bool   // this end answered the request; otherwise it sent it
	Type    uint8  // of the request
	Slot    uint8  // of the session's window, or of its lane's
	Seq     uint32 // number of the request in its slot, which both ends know; 0 if it was never sent

	// Begin is when the request was started; at the server, when it arrived.
	// Waited is until it was first sent, or until it ended without; at the
	// server, until the handler was called: the time of its RDMA READ. Took is
	// until it ended, buffers and all; at the server, until it was answered.
	Begin        time.Time
	Waited, Took time.Duration

	ReqBytes, RespBytes int  // RespBytes is 0 where there is an error
	ReqLarge, RespLarge bool // went by RDMA READ
	Resent              int  // how often the client repeated itself; counted up to 255

	// Err is how the request ended, as the client gets it.
	Err error
}

// WithTrace has fn called for every request that ends, at the client, and for
// every one that is answered, at the server. fn runs in the loop, in between other
// things: it must not block, nor call anything of the endpoint, and t is its own
// only until it returns. Without it, tracing costs nothing.
func WithTrace(fn func(t *Trace)) Option { return func(o *options) { o.trace = fn } }

// tracer returns the engine's hook, nil without WithTrace.
func (ep *Endpoint) tracer() func(*engine.Trace) {
	fn := ep.opt.trace
	if fn == nil {
		return nil
	}
	t := new(Trace)
	return func(e *engine.Trace) {
		*t = Trace{
			Server: e.Server, Type: e.Type, Slot: e.Slot, Seq: e.Seq,
			Begin: ep.epoch.Add(time.Duration(e.Begun)), Took: time.Duration(e.Ended - e.Begun),
			ReqBytes: e.ReqBytes, RespBytes: e.RespBytes, ReqLarge: e.ReqLarge, RespLarge: e.RespLarge, Resent: e.Resent, Err: publicError(e.Err),
		}
		if t.Waited = t.Took; e.Sent != 0 {
			t.Waited = time.Duration(e.Sent - e.Begun)
		}
		if r, ok := e.User.(*Request); ok {
			t.Session = r.sess
		} else if e.Session != nil {
			t.Session, _ = e.Session.User.(*Session)
			if t.Session != nil && t.Session.main != nil {
				t.Session = t.Session.main
			}
		}
		fn(t)
	}
}

// LogValue makes t a group of attributes for slog.
func (t *Trace) LogValue() slog.Value {
	attrs := []slog.Attr{
		slog.Bool("server", t.Server), slog.Int("type", int(t.Type)), slog.Int("slot", int(t.Slot)), slog.Uint64("seq", uint64(t.Seq)),
		slog.Time("begin", t.Begin), slog.Duration("waited", t.Waited), slog.Duration("took", t.Took),
		slog.Int("request", t.ReqBytes), slog.Int("response", t.RespBytes),
	}
	if t.Session != nil {
		attrs = append(attrs, slog.String("remote", t.Session.remote))
	}
	if t.ReqLarge || t.RespLarge {
		attrs = append(attrs, slog.Bool("request read", t.ReqLarge), slog.Bool("response read", t.RespLarge))
	}
	if t.Resent > 0 {
		attrs = append(attrs, slog.Int("resent", t.Resent))
	}
	if t.Err != nil {
		attrs = append(attrs, slog.Any("error", t.Err))
	}
	return slog.GroupValue(attrs...)
}

// attrs name a session in a log.
func (s *Session) attrs() []any {
	role := "server"
	if s.es != nil && s.es.Client() || s.es == nil && s.opening != nil {
		role = "client"
	}
	a := []any{"endpoint", s.ep.id, "role", role, "remote", s.remote}
	if role == "client" {
		a = append(a, "remote endpoint", s.id)
	}
	if s.es != nil {
		a = append(a, "session", s.es.Index())
	}
	if s.lane != 0 {
		a = append(a, "lane", s.lane)
	}
	return a
}

// logEnd tells the log that a session that was up has ended.
func (s *Session) logEnd() {
	level := slog.LevelInfo
	if !errors.Is(s.err, ErrSessionClosed) && !errors.Is(s.err, ErrClosed) {
		level = slog.LevelWarn
	}
	s.ep.log.Log(s.ep.life, level, "rpc: session has ended", append(s.attrs(), "error", s.err)...)
}

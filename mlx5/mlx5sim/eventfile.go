package mlx5sim

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// maxEvents bounds the events that wait in one file. A reader that far behind
// has stopped reading; what comes then is dropped and counted.
const maxEvents = 1 << 16

// eventFile is a completion channel or an async event file. It is memory only,
// so that it works on every platform and a reader parks on Go channels alone.
//
// Its mutex is taken inside fab.mu, never the other way round.
type eventFile struct {
	file  *file
	fd    int32
	async bool
	sink  EventSink // where records go; nil: to ReadEvent
	taken bool      // Events gave it to its owner; guarded by fab.mu

	wake chan struct{} // holds a token while events or a final state may be unseen
	done chan struct{} // closed by Close

	mu     sync.Mutex
	queue  []event // queue[head:] waits
	head   int
	closed bool
	gone   bool // no event will come any more: readers get EIO
}

// event is one record. count, if not nil, counts the events that its object
// has had reported; it is guarded by the eventFile's mutex.
type event struct {
	rec   [16]byte
	n     int
	count *uint32
}

var _ kernel.EventFile = (*eventFile)(nil)

// firstFD keeps the numbers of event files apart from real descriptors.
const firstFD = 1 << 20

// newEventFile makes an event file with a number of its own in f. Caller holds
// fab.mu.
func (f *file) newEventFile(async bool) *eventFile {
	e := &eventFile{file: f, fd: firstFD + f.nextFD, async: async, wake: make(chan struct{}, 1), done: make(chan struct{})}
	f.nextFD++
	f.events[e.fd] = e
	return e
}

// newEvents makes an event file for the program of c. Caller holds fab.mu.
func (c *call) newEvents(async bool) (*eventFile, error) {
	f := c.f
	if f.foreign == nil {
		return f.newEventFile(async), nil
	}
	sink := f.foreign.offered
	if sink == nil {
		return nil, errNeedSink(async)
	}
	fd := sink.FD()
	if old := f.events[fd]; old != nil { // its close was not seen
		old.close()
	}
	e := &eventFile{file: f, fd: fd, async: async, sink: sink, wake: make(chan struct{}, 1), done: make(chan struct{})}
	f.events[fd] = e
	return e, nil
}

// FD implements kernel.EventFile.
func (e *eventFile) FD() int32 { return e.fd }

func (e *eventFile) signal() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// push queues one record. It never blocks. It reports false if the record was
// dropped.
func (e *eventFile) push(rec []byte, count *uint32) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || e.gone || len(e.queue)-e.head >= maxEvents {
		return false
	}
	if e.head == len(e.queue) {
		e.queue, e.head = e.queue[:0], 0
	} else if e.head > 64 && e.head > len(e.queue)/2 {
		n := copy(e.queue, e.queue[e.head:])
		clear(e.queue[n:])
		e.queue, e.head = e.queue[:n], 0
	}
	ev := event{count: count}
	ev.n = copy(ev.rec[:], rec)
	e.queue = append(e.queue, ev)
	e.signal()
	e.forward()
	return !e.closed
}

// forward hands records to the sink until there is no room. Caller holds e.mu.
func (e *eventFile) forward() {
	if e.sink == nil {
		return
	}
	for e.head < len(e.queue) && !e.closed {
		ev := &e.queue[e.head]
		switch err := e.sink.Send(ev.rec[:ev.n]); {
		case err == nil:
		case errors.Is(err, syscall.EAGAIN):
			e.file.foreign.stuck.Store(true)
			return
		default:
			e.shut() // nobody reads any more
			return
		}
		if ev.count != nil {
			*ev.count++
		}
		*ev = event{}
		e.head++
	}
	if e.gone && !e.closed {
		e.shut()
	}
}

// shut closes the file to events. Caller holds e.mu.
func (e *eventFile) shut() {
	e.closed = true
	e.queue, e.head = nil, 0
	close(e.done)
	if e.sink != nil {
		e.disown()
		e.sink.Close()
	}
}

// disown takes back what nobody will read any more, so that no object counts it
// as reported: a library waits at destruction until it has seen as many. Caller
// holds e.mu and fab.mu.
func (e *eventFile) disown() {
	f := e.file
	if e.async && f.async != e {
		return
	}
	for _, o := range f.handles {
		switch o := o.(type) {
		case *cq:
			if e.async {
				e.retract(o.user, &o.asyncEvents)
			} else if o.channel == e {
				e.retract(o.user, &o.compEvents)
			}
		case *qp:
			if e.async {
				e.retract(o.user, &o.asyncEvents)
			}
		case *srq:
			if e.async {
				e.retract(o.user, &o.asyncEvents)
			}
		}
	}
}

// retract takes the unread events about element back from the sink, and out of
// count. Caller holds e.mu.
func (e *eventFile) retract(element uint64, count *uint32) {
	if *count > 0 {
		*count -= min(*count, uint32(max(e.sink.TakeBack(element), 0)))
	}
}

// takeBack removes the unread events that would have counted in count, all of
// which name element, and returns how many events count has. After it nothing
// refers to count.
func (e *eventFile) takeBack(element uint64, count *uint32) uint32 {
	e.mu.Lock()
	defer e.mu.Unlock()
	kept := e.queue[:0]
	for _, ev := range e.queue[e.head:] {
		if ev.count != count {
			kept = append(kept, ev)
		}
	}
	clear(e.queue[len(kept):])
	e.queue, e.head = kept, 0
	if e.sink != nil && !e.closed {
		e.retract(element, count)
	}
	return *count
}

// deviceRemoved queues DEVICE_FATAL on an async file and ends a completion
// channel: after what is queued, readers get EIO.
func (e *eventFile) deviceRemoved() {
	if e.async {
		e.push(asyncRecord(0, eventDeviceFatal), nil)
		return
	}
	e.end()
}

// end makes readers that find no record fail with EIO.
func (e *eventFile) end() {
	e.mu.Lock()
	e.gone = true
	e.forward()
	e.mu.Unlock()
	e.signal()
}

// ReadEvent implements kernel.EventFile. A buffer that is too short for the
// record is EINVAL and takes nothing.
func (e *eventFile) ReadEvent(ctx context.Context, p []byte) (int, error) {
	for {
		if n, err, ok := e.pop(p); ok {
			return n, err
		}
		select {
		case <-e.wake:
		case <-e.done:
			return 0, fs.ErrClosed
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// pop takes the oldest record; ok is false if there is nothing to say yet.
func (e *eventFile) pop(p []byte) (n int, err error, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.closed:
		return 0, fs.ErrClosed, true
	case e.head < len(e.queue):
		ev := &e.queue[e.head]
		if len(p) < ev.n {
			e.signal() // the token that woke us is still another reader's
			return 0, syscall.EINVAL, true
		}
		n = copy(p, ev.rec[:ev.n])
		if ev.count != nil {
			*ev.count++
		}
		*ev = event{}
		e.head++
		if e.head < len(e.queue) || e.gone {
			e.signal() // one token, many readers: pass it on
		}
		return n, nil, true
	case e.gone:
		e.signal()
		return 0, syscall.EIO, true
	}
	return 0, nil, false
}

// Close implements kernel.EventFile. CQs that still name the file lose their
// events.
func (e *eventFile) Close() error {
	fab := e.file.dev.fab
	fab.mu.Lock()
	defer fab.mu.Unlock()
	return e.close()
}

// close is Close for who holds fab.mu.
func (e *eventFile) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	closed := e.closed
	if !closed {
		e.shut()
	}
	if e.file.events[e.fd] != e {
		return fs.ErrClosed
	}
	delete(e.file.events, e.fd)
	if e.file.async == e {
		e.file.async = nil
	}
	return nil
}

// Event types, enum ib_event_type.
const (
	eventCQErr       = 0
	eventQPFatal     = 1
	eventQPReqErr    = 2
	eventQPAccessErr = 3
	eventCommEst     = 4
	eventSQDrained   = 5
	eventDeviceFatal = 8
	eventPortActive  = 9
	eventPortErr     = 10

	eventSRQErr          = 14
	eventSRQLimitReached = 15
	eventLastWQEReached  = 16
)

func asyncRecord(element uint64, typ uint32) []byte {
	var rec [16]byte // struct ib_uverbs_async_event_desc
	le.PutUint64(rec[0:], element)
	le.PutUint32(rec[8:], typ)
	return rec[:]
}

// raise reports the async event typ about the object that the user named
// element. count counts it once it is read. Caller holds fab.mu.
func (f *file) raise(element uint64, typ uint32, count *uint32) {
	if f.async == nil {
		return
	}
	if !f.async.push(asyncRecord(element, typ), count) {
		f.dev.stats.Drops.Events++
	}
}

// takeBackAsync removes the unread async events of an object that is gone, and
// returns how many it has had reported. Caller holds fab.mu.
func (f *file) takeBackAsync(element uint64, count *uint32) uint32 {
	if f.async == nil {
		return *count // the file that they were read from is closed
	}
	return f.async.takeBack(element, count)
}

// asyncEvent reports typ about the CQ. Caller holds fab.mu.
func (c *cq) asyncEvent(typ uint32) { c.file.raise(c.user, typ, &c.asyncEvents) }

// asyncEvent reports typ about the QP. Caller holds fab.mu.
func (q *qp) asyncEvent(typ uint32) { q.file.raise(q.user, typ, &q.asyncEvents) }

// notify writes a completion event to the CQ's channel, if it has one. Caller
// holds fab.mu.
func (c *cq) notify() {
	if c.channel == nil {
		return
	}
	var rec [8]byte // struct ib_uverbs_comp_event_desc
	le.PutUint64(rec[:], c.user)
	if !c.channel.push(rec[:], &c.compEvents) {
		c.file.dev.stats.Drops.Events++
	}
}

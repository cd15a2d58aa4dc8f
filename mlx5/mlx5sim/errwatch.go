package mlx5sim

import "time"

// errWatch looks at the receive queues of QPs in ERR. What is posted to them is
// to be flushed, and no doorbell tells of it: hardware reads their doorbell
// records by itself, and so does this, by a timer. It looks often after something
// happened, and ever less after that, so that dead QPs which nobody uses cost
// nothing. Guarded by the fabric's mutex.
type errWatch struct {
	qps   map[*qp]struct{}
	pause time.Duration
	timer *time.Timer // nil: not set
}

const (
	errWatchMin = 100 * time.Microsecond
	errWatchMax = 100 * time.Millisecond
)

// add has q watched, which went to ERR.
func (w *errWatch) add(d *Device, q *qp) {
	if w.qps == nil {
		w.qps = make(map[*qp]struct{})
	}
	w.qps[q] = struct{}{}
	w.pause = errWatchMin
	if w.timer == nil {
		w.timer = time.AfterFunc(w.pause, d.lookAtErrors)
	} else {
		w.timer.Reset(w.pause)
	}
}

// remove forgets q, which left ERR.
func (w *errWatch) remove(q *qp) {
	delete(w.qps, q)
	if len(w.qps) == 0 {
		w.stop()
	}
}

func (w *errWatch) stop() {
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
}

// lookAtErrors flushes what was posted, and sets the timer anew.
func (d *Device) lookAtErrors() {
	d.fab.mu.Lock()
	defer d.fab.mu.Unlock()
	w := &d.errors
	if d.closed || w.timer == nil {
		return
	}
	w.pause = min(2*w.pause, errWatchMax)
	for q := range w.qps {
		if ci := q.rq.ci; q.attr.state == stateErr {
			if q.flushRQ(); q.rq.ci != ci {
				w.pause = errWatchMin
			}
		}
	}
	w.timer.Reset(w.pause)
}

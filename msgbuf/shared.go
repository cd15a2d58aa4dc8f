package msgbuf

import "sync"

// SharedPool is a Pool that any goroutine may use, behind a mutex. Freeing
// takes no lock.
type SharedPool struct {
	mu   sync.Mutex
	pool *Pool
}

// NewSharedPool returns an empty pool; see [NewPool].
func NewSharedPool(reg Registrar, access Access, opts ...Option) *SharedPool {
	return &SharedPool{pool: NewPool(reg, access, opts...)}
}

// Alloc is [Pool.Alloc].
func (s *SharedPool) Alloc(n int) (Buf, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pool.Alloc(n)
}

// Collect is [Pool.Collect].
func (s *SharedPool) Collect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pool.Collect()
}

// Trim is [Pool.Trim].
func (s *SharedPool) Trim() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pool.Trim()
}

// Stats is [Pool.Stats].
func (s *SharedPool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pool.Stats()
}

// Close is [Pool.Close].
func (s *SharedPool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pool.Close()
}

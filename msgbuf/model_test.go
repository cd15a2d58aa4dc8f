package msgbuf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// checkRegions compares the pool's bookkeeping with itself: within each region
// the free blocks, the cached ones and those that are out cover every byte
// exactly once, and no free block lies beside its free buddy.
func checkRegions(p *Pool, out map[Buf]byte) error {
	type span struct{ off, size int }
	spans := make(map[*region][]span)
	add := func(r *region, addr uint64, size int) {
		spans[r] = append(spans[r], span{int(addr - uint64(addrOf(r.mem))), size})
	}
	busy := make(map[*region]int)
	for b := range out {
		add(b.b.region, b.Addr(), b.Cap())
		busy[b.b.region] += b.Cap()
	}
	for o := range p.cache {
		n := 0
		for b := p.cache[o].head; b != nil; b = b.next {
			add(b.region, b.addr, len(b.mem))
			busy[b.region] += len(b.mem)
			n++
		}
		if n != p.cache[o].count {
			return fmt.Errorf("cache of order %d counts %d of %d blocks", o, p.cache[o].count, n)
		}
	}
	var total int64
	for _, r := range p.regions {
		total += int64(len(r.mem))
		if busy[r] != r.used {
			return fmt.Errorf("region counts %d bytes as used, %d are", r.used, busy[r])
		}
		if r.whole {
			continue
		}
		for o := minOrder; o <= r.top; o++ {
			set := r.free[o-minOrder]
			if set.empty() != (r.avail&(1<<o) == 0) {
				return fmt.Errorf("order %d: avail is wrong", o)
			}
			for i := range len(r.mem) >> o {
				if !set.has(i) {
					continue
				}
				if o < r.top && set.has(i^1) {
					return fmt.Errorf("order %d: blocks %d and %d did not merge", o, i, i^1)
				}
				add(r, uint64(addrOf(r.mem))+uint64(i<<o), 1<<o)
			}
		}
		s := spans[r]
		slices.SortFunc(s, func(a, b span) int { return a.off - b.off })
		end := 0
		for _, sp := range s {
			if sp.off != end {
				return fmt.Errorf("block at %d, the last one ended at %d", sp.off, end)
			}
			end += sp.size
		}
		if end != len(r.mem) {
			return fmt.Errorf("blocks end at %d of %d", end, len(r.mem))
		}
	}
	if total != p.bytes {
		return fmt.Errorf("pool counts %d of %d bytes", p.bytes, total)
	}
	return nil
}

// model drives a pool and remembers, in a map, every buffer and the byte it was
// filled with.
type model struct {
	t    testing.TB
	p    *Pool
	bufs []Buf
	fill map[Buf]byte
	next byte
}

func newModel(t testing.TB, p *Pool) *model { return &model{t: t, p: p, fill: make(map[Buf]byte)} }

func (m *model) alloc(n int) {
	b, err := m.p.Alloc(n)
	if errors.Is(err, ErrNoMemory) {
		return
	}
	if err != nil {
		m.t.Fatal(err)
	}
	if b.Len() != n || b.Cap() < n {
		m.t.Fatalf("alloc %d: len %d, cap %d", n, b.Len(), b.Cap())
	}
	m.next++
	// The ends and a stripe suffice to notice an overlap; filling all is slow.
	full := b.Full()
	for i := 0; i < len(full); i += 64 {
		full[i] = m.next
	}
	full[len(full)-1] = m.next
	m.fill[b] = m.next
	m.bufs = append(m.bufs, b)
}

func (m *model) free(i int, local bool) {
	b := m.bufs[i]
	full, want := b.Full(), m.fill[b]
	for i := 0; i < len(full); i += 64 {
		if full[i] != want {
			m.t.Fatalf("byte %d of %d was overwritten", i, len(full))
		}
	}
	if full[len(full)-1] != want {
		m.t.Fatal("the last byte was overwritten")
	}
	if local {
		m.p.FreeLocal(b)
	} else {
		b.Free()
	}
	if b.Valid() {
		m.t.Fatal("freed and valid")
	}
	delete(m.fill, b)
	last := len(m.bufs) - 1
	m.bufs[i] = m.bufs[last]
	m.bufs = m.bufs[:last]
}

func (m *model) check() {
	s := m.p.Stats() // drains
	var used int64
	for b := range m.fill {
		used += int64(b.Cap())
	}
	if s.InUse != len(m.fill) || s.UsedBytes != used {
		m.t.Fatalf("%+v, want %d buffers of %d bytes", s, len(m.fill), used)
	}
	if err := checkRegions(m.p, m.fill); err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) finish() {
	for len(m.bufs) > 0 {
		m.free(len(m.bufs)-1, false)
	}
	m.check()
	if err := m.p.Trim(); err != nil {
		m.t.Fatal(err)
	}
	if s := m.p.Stats(); s != (Stats{}) {
		m.t.Fatalf("after trim: %+v", s)
	}
}

func TestPoolAgreesWithModel(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			p, _ := newTestPool(t, Local, WithMaxBytes(48<<20))
			m := newModel(t, p)
			rng := rand.New(rand.NewPCG(seed, 1))
			for i := range 3000 {
				grow := 0.6 // fill and drain in turns
				if i/300%2 == 1 {
					grow = 0.4
				}
				switch {
				case rng.Float64() < grow:
					m.alloc(rng.IntN(1 << (6 + rng.IntN(17))))
				case len(m.bufs) > 0:
					m.free(rng.IntN(len(m.bufs)), rng.IntN(2) == 0)
				}
				switch rng.IntN(200) {
				case 0:
					p.Collect()
				case 1:
					if err := p.Trim(); err != nil {
						t.Fatal(err)
					}
				case 2, 3:
					m.check()
				}
			}
			m.finish()
		})
	}
}

// FuzzPoolOperations runs any sequence of operations against the model: two
// bytes each, what and how much.
func FuzzPoolOperations(f *testing.F) {
	f.Add([]byte{0x00, 0x10, 0x80, 0x00, 0xc0, 0x00})
	f.Add(binary.BigEndian.AppendUint64(nil, 0x1512_1512_9001_a000))
	f.Add([]byte{0x17, 0xff, 0x16, 0xff, 0x15, 0xff, 0x14, 0x01, 0x80, 0, 0x80, 0, 0xc1, 0, 0x17, 0xff})
	f.Fuzz(func(t *testing.T, ops []byte) {
		p, _ := newTestPool(t, Local, WithMaxBytes(16<<20), WithKeepFree(0))
		m := newModel(t, p)
		for ops = ops[:min(len(ops), 400)]; len(ops) >= 2; ops = ops[2:] {
			op, arg := ops[0], int(ops[1])
			switch {
			case op < 0x80:
				m.alloc(arg << (op % 17))
			case op < 0xc0:
				if len(m.bufs) > 0 {
					m.free(arg%len(m.bufs), op&1 == 0)
				}
			case op&1 == 0:
				p.Collect()
			default:
				if err := p.Trim(); err != nil {
					t.Fatal(err)
				}
			}
		}
		m.check()
		m.finish()
	})
}

func TestBitsetAgreesWithMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, n := range []int{1, 2, 63, 64, 65, 4096, 4097, 1 << 20} {
		s := newBitset(n)
		want := make(map[int]bool)
		for range 2000 {
			i := rng.IntN(n)
			if want[i] {
				s.remove(i)
				delete(want, i)
			} else {
				s.add(i)
				want[i] = true
			}
			if s.has(i) != want[i] || s.empty() != (len(want) == 0) {
				t.Fatalf("n %d: has %d is %v", n, i, s.has(i))
			}
		}
		for len(want) > 0 {
			least := n
			for i := range want {
				least = min(least, i)
			}
			if got := s.first(); got != least {
				t.Fatalf("n %d: first %d, want %d", n, got, least)
			}
			s.remove(least)
			delete(want, least)
		}
	}
}

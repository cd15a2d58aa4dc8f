package msgbuf

import "math/bits"

// bitset is a set of small integers that finds its smallest member in a few
// steps: each word of a level tells which words of the level below are not
// zero. Four levels cover the 2^20 smallest blocks of the largest region.
type bitset struct {
	levels [4][]uint64
	top    int // the level that has one word
}

func newBitset(n int) bitset {
	var s bitset
	for l := 0; ; l++ {
		n = (n + 63) / 64
		s.levels[l] = make([]uint64, n)
		if n == 1 {
			s.top = l
			return s
		}
	}
}

func (s *bitset) has(i int) bool {
	return s.levels[0][i>>6]&(1<<(i&63)) != 0
}

func (s *bitset) add(i int) {
	for l := 0; l <= s.top; l++ {
		w := &s.levels[l][i>>6]
		was := *w
		*w = was | 1<<(i&63)
		if was != 0 {
			return // the levels above know already
		}
		i >>= 6
	}
}

func (s *bitset) remove(i int) {
	for l := 0; l <= s.top; l++ {
		w := &s.levels[l][i>>6]
		*w &^= 1 << (i & 63)
		if *w != 0 {
			return
		}
		i >>= 6
	}
}

func (s *bitset) empty() bool { return s.levels[s.top][0] == 0 }

// first returns the smallest member of a set that is not empty.
func (s *bitset) first() int {
	i := 0
	for l := s.top; l >= 0; l-- {
		i = i<<6 | bits.TrailingZeros64(s.levels[l][i])
	}
	return i
}

package mlx5sim

import (
	"bytes"
	"testing"
)

// TestGatherAndScatterAtEveryOffset moves windows of a three-piece list, as
// the wire does packet by packet.
func TestGatherAndScatterAtEveryOffset(t *testing.T) {
	both(t, func(t *testing.T, noView bool) {
		p := newDuo(t, "RC")
		p.arena.noView = noView
		m := p.a.mr(256, accessLocalWrite)
		p.a.fill(m, 1)
		lists := []uint64{200, 10, 100}
		sizes := []uint32{7, 1, 20}
		var op sendOp
		var flat []byte
		for i, off := range lists {
			op.sges = append(op.sges, dataSeg{addr: m.iova + off, n: sizes[i], lkey: m.key})
			flat = append(flat, p.a.bytes(m)[off:off+uint64(sizes[i])]...)
			op.length += uint64(sizes[i])
		}
		for off := range len(flat) + 1 {
			for n := range len(flat) - off + 1 {
				b := make([]byte, n)
				if s := p.qa.gather(&op, uint64(off), b); s != synOK || !bytes.Equal(b, flat[off:off+n]) {
					t.Fatalf("gather [%d,+%d): %v %x", off, n, s, b)
				}
			}
		}
		if s := p.qa.gather(&op, 20, make([]byte, 9)); s != synLocalLen {
			t.Errorf("gather beyond the list: %v", s)
		}
		w := &recvWQE{sges: op.sges, length: op.length}
		for off := range flat {
			fresh := bytes.Repeat([]byte{byte(off) + 0x80}, len(flat)-off)
			var s syndrome
			if off%2 == 0 {
				s = p.qa.scatterLocal(&op, uint64(off), fresh)
			} else {
				s = p.qa.scatterRecv(w, uint64(off), fresh)
			}
			b := make([]byte, len(flat))
			p.qa.gather(&op, 0, b)
			if s != synOK || !bytes.Equal(b[off:], fresh) {
				t.Fatalf("scatter at %d: %v %x", off, s, b)
			}
		}
		if s := p.qa.scatterLocal(&op, 27, []byte{1, 2}); s != synLocalLen {
			t.Errorf("scatter beyond the list: %v", s)
		}
		// The MR may go, or lose its right, between two packets.
		m.access = 0
		if s := p.qa.scatterLocal(&op, 0, flat); s != synLocalProt {
			t.Errorf("scatter into read-only memory: %v", s)
		}
		delete(p.a.d.mrs, m.key)
		if s := p.qa.gather(&op, 0, flat); s != synLocalProt {
			t.Errorf("gather from a dead MR: %v", s)
		}
	})
}

func TestScatterNeverWritesIntoTheWQE(t *testing.T) {
	p := newDuo(t, "RC")
	op := sendOp{wqe: make([]byte, 64), sges: []dataSeg{{addr: 20, n: 8, inline: true}}, length: 8}
	if s := p.qa.scatterLocal(&op, 0, make([]byte, 8)); s != synLocalProt {
		t.Errorf("scatter into inline data: %v", s)
	}
}

func TestRemoteAccessAtTheEdges(t *testing.T) {
	p := newDuo(t, "RC")
	m := p.b.mr(4096, accessLocalWrite|accessRemoteWrite)
	m.iova = ^uint64(0) - 8191 // near the end of the address space
	const w, r = accessRemoteWrite, accessRemoteRead
	for _, c := range []struct {
		addr, n uint64
		access  uint32
		want    syndrome
	}{
		{m.iova, 4096, w, synOK}, {m.iova + 4095, 1, w, synOK}, {m.iova + 4096, 0, w, synOK},
		{m.iova, 4097, w, synRemAccess}, {m.iova + 4095, 2, w, synRemAccess}, {m.iova - 1, 1, w, synRemAccess},
		{m.iova + 1, ^uint64(0), w, synRemAccess}, {0, ^uint64(0), w, synRemAccess}, {m.iova, 1, r, synRemAccess},
	} {
		got, s := p.b.d.remoteAccess(p.qb, m.key, c.addr, c.n, c.access)
		if s != c.want || (got != nil) != (s == synOK && c.n > 0) {
			t.Errorf("%d bytes at iova%+d: %v, want %v", c.n, int64(c.addr-m.iova), s, c.want)
		}
	}
	if _, s := p.b.d.remoteAccess(p.qb, m.key+1, m.iova, 1, w); s != synRemAccess {
		t.Errorf("unknown key: %v", s)
	}
}

// TestMoveJoinsUnevenLists copies between lists cut at different places, over
// every combination of memory with and without views.
func TestMoveJoinsUnevenLists(t *testing.T) {
	const n = 200_000 // more than one bounce
	cut := func(a *arenaDMA, lens ...uint64) (out []span) {
		addr := a.base
		for _, k := range lens {
			s := span{mem: a.View(addr, int(k)), dma: a, addr: addr, n: k}
			out, addr = append(out, s), addr+k
		}
		return out
	}
	for _, noView := range [][2]bool{{false, false}, {false, true}, {true, false}, {true, true}} {
		var fab Fabric
		src := &arenaDMA{base: 1 << 20, mem: make([]byte, n), noView: noView[0]}
		dst := &arenaDMA{base: 1 << 30, mem: make([]byte, n), noView: noView[1]}
		for i := range src.mem {
			src.mem[i] = byte(i * 7)
		}
		if fab.move(cut(dst, 1, 70_000, 5, 129_994), cut(src, 100_000, 99_999, 1)) != movedAll || !bytes.Equal(src.mem, dst.mem) {
			t.Errorf("noView %v: data differ", noView)
		}
		if fab.move(cut(dst, 8), []span{{dma: src, addr: 5, n: 8}}) != cannotRead {
			t.Errorf("noView %v: read outside the memory", noView)
		}
		if fab.move([]span{{dma: dst, addr: 5, n: 8}}, cut(src, 8)) != cannotWrite {
			t.Errorf("noView %v: wrote outside the memory", noView)
		}
	}
}

package nexus

import (
	"net/netip"
	"testing"
	"time"
)

func TestSendersAreBoundedAndForgotten(t *testing.T) {
	keyed(t, func(t *testing.T, m *memNet) {
		b := start(t, m, addrB)
		s := serve(t, b, 7)
		from := netip.MustParseAddrPort(addrA)
		// first opens a connection for a new process, and ends it.
		first := func(i uint64) {
			k := testKey(t, testSecret, i)
			c := message{version: version, kind: kindConnect, from: i, to: b.incarnation, id: i, endpoint: 8}
			c.payload = b.key.cookie(b.age(), from, &c)
			b.receive(from, k.seal(c.encode()))
		}
		for i := range uint64(maxIdle + 10) {
			first(i + 1)
		}
		b.mu.Lock()
		if len(b.senders) != maxIdle || len(b.idle) != maxIdle || b.stats.Busy != 10 {
			t.Errorf("%d senders, %d idle, %d turned away", len(b.senders), len(b.idle), b.stats.Busy)
		}
		b.mu.Unlock()
		time.Sleep(idleTime + time.Second)
		b.mu.Lock()
		if len(b.senders)+len(b.idle) != 0 {
			t.Errorf("%d senders, %d idle", len(b.senders), len(b.idle))
		}
		b.mu.Unlock()
		// One with a connection stays.
		a := start(t, m, addrA)
		c := connect(t, a, addrB, 7, nil)
		time.Sleep(3 * idleTime)
		b.mu.Lock()
		if len(b.senders) != 1 || len(b.idle) != 0 || s.accepted() != 1 {
			t.Errorf("%d senders, %d idle, %d accepted", len(b.senders), len(b.idle), s.accepted())
		}
		b.mu.Unlock()
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		time.Sleep(idleTime + tombstoneTime)
		b.mu.Lock()
		if len(b.senders)+len(b.idle) != 0 {
			t.Errorf("%d senders, %d idle", len(b.senders), len(b.idle))
		}
		b.mu.Unlock()
	})
}

func TestConnectCountsOnceAlsoWhenItWasRefused(t *testing.T) {
	keyed(t, func(t *testing.T, m *memNet) {
		b := start(t, m, addrB)
		from := netip.MustParseAddrPort(addrA)
		k := testKey(t, testSecret, 5)
		connect := func(k *key, id uint64) []byte {
			c := message{version: version, kind: kindConnect, from: 5, to: b.incarnation, id: id, endpoint: 8}
			c.payload = b.key.cookie(b.age(), from, &c)
			return k.seal(c.encode())
		}
		for id := range uint64(3) {
			msg := connect(k, id+1)
			for range 3 {
				b.receive(from, msg)
			}
		}
		if s := b.Stats(); s.Replayed != 6 || s.Duplicates != 0 {
			t.Errorf("%d replayed, %d duplicates", s.Replayed, s.Duplicates)
		}
		// Another process that has drawn the same incarnation is not it.
		twin := testKey(t, testSecret, 5)
		twin.sent.Store(100) // so it is not its counter that tells
		b.receive(from, connect(twin, 10))
		if s := b.Stats(); s.Replayed != 7 {
			t.Errorf("%d replayed", s.Replayed)
		}
	})
}

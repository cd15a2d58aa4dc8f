package transport

import (
	"testing"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

func TestPathsToPeers(t *testing.T) {
	own := uverbs.GIDEntry{GID: uverbs.GID{0: 0xfe, 1: 0x80, 8: 2, 15: 1}}
	same, other := uverbs.GID{0: 0xfe, 1: 0x80, 8: 2, 15: 9}, uverbs.GID{0: 0xfe, 1: 0x80, 7: 1, 8: 2, 15: 9}
	for _, c := range []struct {
		name   string
		global bool
		remote Address
		ok     bool
	}{
		{"InfiniBand, same subnet", false, Address{LID: 7, GID: same}, true},
		{"InfiniBand, the last LID", false, Address{LID: 0xbfff, GID: same}, true},
		{"InfiniBand, another subnet", false, Address{LID: 7, GID: other}, false},
		{"InfiniBand, a multicast LID", false, Address{LID: 0xc000, GID: same}, false},
		{"InfiniBand, to Ethernet", false, Address{GID: same}, false},
		{"Ethernet", true, Address{GID: other}, true},
		{"Ethernet, to InfiniBand", true, Address{LID: 7, GID: same}, false},
	} {
		tr := &Transport{cfg: Config{GID: own, Global: c.global}}
		if err := tr.pathTo(&c.remote); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

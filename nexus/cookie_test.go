package nexus

import (
	"net/netip"
	"testing"
	"time"
)

func TestCookieIsForOneConnectionAtOneAddressForAWhile(t *testing.T) {
	k := testKey(t, testSecret, 1)
	from := netip.MustParseAddrPort(addrA)
	m := &message{from: 5, id: 6}
	m.cookie = k.cookie(time.Minute, from, m)
	for name, tc := range map[string]struct {
		now  time.Duration
		from string
		m    message
		want bool
	}{
		"at once":             {time.Minute, addrA, *m, true},
		"at the end":          {time.Minute + cookieTime, addrA, *m, true},
		"too late":            {time.Minute + cookieTime + 1, addrA, *m, false},
		"before it was made":  {time.Minute - 1, addrA, *m, false},
		"other address":       {time.Minute, addrB, *m, false},
		"other port":          {time.Minute, "10.0.0.1:1001", *m, false},
		"other incarnation":   {time.Minute, addrA, message{from: 7, id: 6, cookie: m.cookie}, false},
		"other connection":    {time.Minute, addrA, message{from: 5, id: 7, cookie: m.cookie}, false},
		"other time":          {time.Minute, addrA, message{from: 5, id: 6, cookie: with(m.cookie, 7, m.cookie[7]^1)}, false},
		"other MAC":           {time.Minute, addrA, message{from: 5, id: 6, cookie: with(m.cookie, 31, m.cookie[31]^1)}, false},
		"no cookie":           {time.Minute, addrA, message{from: 5, id: 6, cookie: make([]byte, cookieBytes)}, false},
		"time beyond reason":  {time.Minute, addrA, message{from: 5, id: 6, cookie: with(m.cookie, 0, 0xff)}, false},
		"no cookie, at start": {0, addrA, message{from: 5, id: 6, cookie: make([]byte, cookieBytes)}, false},
	} {
		if got := k.validCookie(tc.now, netip.MustParseAddrPort(tc.from), &tc.m); got != tc.want {
			t.Errorf("%s: valid is %v", name, got)
		}
	}
	if other := testKey(t, testSecret, 1); other.validCookie(time.Minute, from, m) {
		t.Error("another process of the same key takes the cookie")
	}
}

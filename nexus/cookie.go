package nexus

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"time"
)

// cookieBytes is the size of a cookie: its time, and a part of an HMAC.
const cookieBytes = 32

// cookieTime is how long a cookie is good. It must be shorter than idleTime: the
// counters of who has used a cookie are remembered for longer than the cookie is
// good.
const cookieTime = 10 * time.Second

func newCookieKey() []byte {
	b := make([]byte, sha256.Size)
	rand.Read(b) // never fails
	return b
}

// cookie is what a client must have received at the address from to open the
// connection that m names. The server keeps nothing for it. at is the time since
// the Nexus started.
func (k *key) cookie(at time.Duration, from addrPort, m *message) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 64), uint64(at))
	in := binary.BigEndian.AppendUint64(b, m.from)
	in = binary.BigEndian.AppendUint64(in, m.id)
	in, _ = from.AppendBinary(in) // never fails
	h := hmac.New(sha256.New, k.mac)
	h.Write(in)
	return append(b[:8:8], h.Sum(nil)[:cookieBytes-8]...)
}

// validCookie reports whether m has brought a cookie that was made for it, and
// not long ago.
func (k *key) validCookie(now time.Duration, from addrPort, m *message) bool {
	at := time.Duration(binary.BigEndian.Uint64(m.cookie))
	if at < 0 || at > now || now-at > cookieTime {
		return false
	}
	return hmac.Equal(k.cookie(at, from, m), m.cookie)
}

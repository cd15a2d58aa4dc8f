package nexus

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// sealedMessages are valid ones of every kind, with what they should be read as.
func sealedMessages() []message {
	cookie := bytes.Repeat([]byte{7}, cookieBytes)
	ms := validMessages()
	for i := range ms {
		ms[i].sealed = true
		if ms[i].kind == kindConnect {
			ms[i].cookie = cookie
		}
	}
	return append(ms, message{version: version, kind: kindChallenge, acceptor: true, sealed: true, from: 2, to: 1, id: 3, payload: cookie})
}

// encoded is the clear form that seal takes.
func encoded(m message) []byte {
	m.payload = append(bytes.Clone(m.cookie), m.payload...)
	return m.encode()
}

func testKey(t testing.TB, secret []byte, incarnation uint64) *key {
	t.Helper()
	k, err := newKey(secret, incarnation)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// read decodes and opens, with the key of whoever m says it is from.
func (k *key) read(b []byte) (message, error) {
	m, err := decode(b)
	if err != nil || !m.sealed {
		return m, err
	}
	aead, err := k.of(m.from)
	if err != nil {
		return m, err
	}
	return m, m.open(aead, b)
}

func TestSealedMessagesSurviveAndNothingElseOpens(t *testing.T) {
	receiver := testKey(t, testSecret, 1000)
	other := testKey(t, append([]byte("x"), testSecret...), 1000)
	for _, want := range sealedMessages() {
		k := testKey(t, testSecret, want.from)
		b := k.seal(encoded(want))
		if len(b) > maxSealed || maxSealed > 1200 {
			t.Errorf("kind %d: %d bytes", want.kind, len(b))
		}
		if len(want.payload) >= 16 && bytes.Contains(b[headerBytes:], want.payload[:16]) {
			t.Errorf("kind %d: the payload can be read", want.kind)
		}
		before := bytes.Clone(b)
		got, err := receiver.read(b)
		if err != nil {
			t.Errorf("kind %d: %v", want.kind, err)
			continue
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(message{}), cmpopts.IgnoreFields(message{}, "salt", "counter"),
			cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("kind %d: %s", want.kind, diff)
		}
		if got.salt != k.salt || got.counter != 1 || !bytes.Equal(b, before) {
			t.Errorf("kind %d: salt %x, counter %d; datagram changed: %v", want.kind, got.salt, got.counter, !bytes.Equal(b, before))
		}
		refuse := func(what string, i int, b []byte) {
			if m, err := receiver.read(b); err == nil && m.sealed && m.version == version {
				t.Errorf("kind %d, %s %d: %+v", want.kind, what, i, m)
			}
		}
		for i := range b {
			refuse("cut to", i, b[:i:i])
			for bit := range 8 {
				refuse("flipped at", i, with(b, i, b[i]^1<<bit))
			}
		}
		refuse("with more bytes:", 1, append(bytes.Clone(b), 0))
		if _, err := other.read(b); !errors.Is(err, errForged) {
			t.Errorf("kind %d opens with another secret: %v", want.kind, err)
		}
		if aead, _ := receiver.of(want.from + 1); got.open(aead, b) == nil {
			t.Errorf("kind %d opens as another sender's", want.kind)
		}
	}
}

func TestMalformedSealedMessagesAreRefused(t *testing.T) {
	k := testKey(t, testSecret, 1)
	for name, m := range map[string]message{
		"connect without room for a cookie": {version: version, kind: kindConnect, from: 1, payload: make([]byte, cookieBytes-1)},
		"connect of the acceptor":           {version: version, kind: kindConnect, acceptor: true, from: 1, payload: make([]byte, cookieBytes)},
		"challenge without a cookie":        {version: version, kind: kindChallenge, acceptor: true, from: 1},
		"challenge of the client":           {version: version, kind: kindChallenge, from: 1, payload: make([]byte, cookieBytes)},
		"accept with too much":              {version: version, kind: kindAccept, acceptor: true, from: 1, payload: make([]byte, MaxPayload+1)},
		"connect with too much":             {version: version, kind: kindConnect, from: 1, payload: make([]byte, MaxPayload+cookieBytes+1)},
		"unknown kind":                      {version: version, kind: 99, from: 1},
	} {
		if got, err := k.read(k.seal(m.encode())); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	challenge := message{version: version, kind: kindChallenge, acceptor: true, from: 1, payload: make([]byte, cookieBytes)}
	if _, err := decode(challenge.encode()); !errors.Is(err, errMalformed) {
		t.Errorf("challenge in clear: %v", err)
	}
}

func TestNonceIsNeverUsedTwice(t *testing.T) {
	// Even two incarnations of one number, and many goroutines in each.
	var mu sync.Mutex
	seen := make(map[string]bool)
	var wg sync.WaitGroup
	for range 4 {
		k := testKey(t, testSecret, 1)
		for range 4 {
			wg.Go(func() {
				for range 1000 {
					b := k.seal((&message{version: version, kind: kindPing, from: 1}).encode())
					mu.Lock()
					seen[string(b[headerBytes:headerBytes+nonceBytes])] = true
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	if len(seen) != 16000 {
		t.Errorf("%d nonces in 16000 messages", len(seen))
	}
}

func TestKeyIsChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := WithLogger(slog.New(slog.NewTextHandler(&out, nil)))
		for _, secret := range [][]byte{nil, {}, make([]byte, minSecret-1)} {
			c := newMemNet(1).listen(addrA)
			n, err := New(addrA, WithConn(c), WithKey(secret), log)
			if err == nil || !strings.Contains(err.Error(), "at least 16") {
				t.Errorf("%d bytes: %v, %v", len(secret), n, err)
			}
			select {
			case <-c.done:
			default:
				t.Error("the socket was left open")
			}
		}
		secret := bytes.Clone(testSecret)
		o := WithKey(secret)
		clear(secret) // the option has its own
		m := newMemNet(1)
		a, b := start(t, m, addrA, o, log), start(t, m, addrB, WithKey(testSecret), log)
		serve(t, b, 7)
		connect(t, a, addrB, 7, nil)
		if out.Len() != 0 {
			t.Errorf("with a key, the log says %s", out.String())
		}
	})
}

func FuzzOpen(f *testing.F) {
	k := testKey(f, testSecret, 1)
	k.salt = 1 // so that the fuzzer's workers seal the same
	known := make(map[string]bool)
	for _, m := range sealedMessages() {
		m.from = 1
		b := k.seal(encoded(m))
		known[string(b)] = true
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := k.read(b)
		if err == nil && m.sealed && !known[string(b)] {
			t.Errorf("%x opens: %+v", b, m)
		}
	})
}

// FuzzOpened is the part of the decoder behind the authentication.
func FuzzOpened(f *testing.F) {
	for _, m := range sealedMessages() {
		f.Add(encoded(m))
	}
	k := testKey(f, testSecret, 1)
	aead, err := k.of(1)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerBytes {
			return
		}
		b = k.seal(b)
		m, err := decode(b)
		if err != nil || !m.sealed {
			return
		}
		if err := m.open(aead, b); err != nil {
			if errors.Is(err, errForged) {
				t.Errorf("%x does not open", b)
			}
			return
		}
		again := encoded(m)
		again[7] |= flagSealed
		if !bytes.Equal(again[:headerBytes], b[:headerBytes]) || len(again) != len(b)-sealBytes {
			t.Errorf("%x opens to %+v, which is %x", b, m, again)
		}
	})
}

func FuzzReceiveSealed(f *testing.F) {
	for _, m := range sealedMessages() {
		f.Add(testKey(f, testSecret, m.from).seal(encoded(m)))
	}
	fuzzReceive(f, WithKey(testSecret))
}

func BenchmarkSeal(b *testing.B) {
	k := testKey(b, testSecret, 1)
	for _, c := range []struct {
		name string
		size int
	}{{"empty", 0}, {"usual", 256}, {"largest", MaxPayload}} {
		name, size := c.name, c.size
		clear := (&message{version: version, kind: kindAccept, acceptor: true, from: 1, payload: make([]byte, size)}).encode()
		sealed := k.seal(clear)
		aead, _ := k.of(1)
		b.Run(name+"/seal", func(b *testing.B) {
			for b.Loop() {
				k.seal(clear)
			}
		})
		b.Run(name+"/open", func(b *testing.B) {
			m, _ := decode(sealed)
			for b.Loop() {
				if m.open(aead, sealed) != nil {
					b.Fatal("does not open")
				}
			}
		})
		b.Run(name+"/open unknown sender", func(b *testing.B) {
			for b.Loop() {
				if _, err := k.read(sealed); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("cookie", func(b *testing.B) {
		m := &message{from: 1, id: 2}
		for b.Loop() {
			k.cookie(1, addrPort{}, m)
		}
	})
}

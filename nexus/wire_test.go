package nexus

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func validMessages() []message {
	ids := make([]byte, 16)
	ids[7], ids[15] = 1, 2
	return []message{
		{version: 1, kind: kindConnect, from: 1, id: 3, endpoint: 65535, payload: []byte("hello")},
		{version: 1, kind: kindConnect, from: 1<<64 - 1, to: 5, id: 3, payload: make([]byte, MaxPayload)},
		{version: 1, kind: kindAccept, acceptor: true, from: 2, to: 1, id: 3, payload: []byte("reply")},
		{version: 1, kind: kindRefuse, acceptor: true, from: 2, to: 1, id: 3, reason: ReasonBusy, payload: []byte("später")},
		{version: 1, kind: kindDisconnect, from: 1, to: 2, id: 3, payload: []byte{}},
		{version: 1, kind: kindDisconnectAck, acceptor: true, from: 2, to: 1, id: 3, payload: []byte{}},
		{version: 1, kind: kindPing, acceptor: true, from: 1, to: 2, id: 9, payload: ids},
		{version: 1, kind: kindPong, from: 2, to: 1, id: 9, payload: []byte{}},
		{version: 1, kind: kindReset, from: 4, to: 1, id: 9, payload: []byte{}},
	}
}

func TestMessagesSurviveEncodingAndEveryCutIsRefused(t *testing.T) {
	for _, want := range validMessages() {
		b := want.encode()
		if len(b) > maxMessage {
			t.Errorf("kind %d: %d bytes", want.kind, len(b))
		}
		got, err := decode(b)
		if err != nil {
			t.Errorf("kind %d: %v", want.kind, err)
			continue
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(message{})); diff != "" {
			t.Errorf("kind %d: %s", want.kind, diff)
		}
		for n := range b {
			if m, err := decode(b[:n:n]); err == nil {
				t.Errorf("kind %d cut to %d of %d bytes: %+v", want.kind, n, len(b), m)
			}
		}
		if m, err := decode(append(b, 0)); err == nil {
			t.Errorf("kind %d with a byte too many: %+v", want.kind, m)
		}
	}
}

func TestMalformedMessagesAreRefused(t *testing.T) {
	good := (&message{version: 1, kind: kindConnect, from: 1, id: 3, payload: []byte("hello")}).encode()
	refuse := (&message{version: 1, kind: kindRefuse, acceptor: true, from: 1, id: 3, reason: 1, payload: []byte("no")}).encode()
	for name, b := range map[string][]byte{
		"unknown flag":         with(good, 6, 0x80),
		"connect of acceptor":  with(good, 7, flagAcceptor),
		"no incarnation":       with(good, 15, 0),
		"reason in connect":    with(good, 35, 1),
		"reserved byte":        with(good, 39, 1),
		"length beyond limit":  with(append(good, make([]byte, 2000)...), 36, 7),
		"unknown kind":         with(good, 5, 99),
		"kind 0":               with(good, 5, 0),
		"refuse without cause": with(refuse, 35, 0),
		"refuse, not UTF-8":    with(refuse, 41, 0xff),
		"endpoint in refuse":   with(refuse, 33, 1),
		"long text": (&message{version: 1, kind: kindRefuse, acceptor: true, from: 1, reason: 1,
			payload: make([]byte, maxText+1)}).encode(),
		"ping of 7 bytes": (&message{version: 1, kind: kindPing, from: 1, payload: make([]byte, 7)}).encode(),
		"disconnect with payload": (&message{version: 1, kind: kindDisconnect, from: 1,
			payload: make([]byte, 8)}).encode(),
	} {
		if m, err := decode(b); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
	if _, err := decode(with(good, 0, 'X')); !errors.Is(err, errForeign) {
		t.Error(err)
	}
}

func TestHeaderOfAnotherVersionIsRead(t *testing.T) {
	b := with((&message{version: 9, kind: kindConnect, from: 1, id: 3, payload: []byte("hello")}).encode(), 39, 77)
	m, err := decode(b)
	if err != nil || m.version != 9 || m.kind != kindConnect || m.id != 3 || m.payload != nil {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestClipCutsBetweenCharacters(t *testing.T) {
	for _, text := range []string{"", "short", strings.Repeat("a", 500), strings.Repeat("ä", 500), "x" + strings.Repeat("€", 500), "bad \xff\xfe"} {
		got := clip(text)
		m := message{version: 1, kind: kindRefuse, acceptor: true, from: 1, reason: 1, payload: got}
		if _, err := decode(m.encode()); err != nil {
			t.Errorf("clip(%.10q) is %q: %v", text, got, err)
		}
		if len(text) > maxText && len(got) < maxText-3 {
			t.Errorf("clip(%.10q) has %d bytes", text, len(got))
		}
	}
}

func with(b []byte, i int, v byte) []byte {
	b = append([]byte(nil), b...)
	b[i] = v
	return b
}

func FuzzDecode(f *testing.F) {
	for _, m := range validMessages() {
		f.Add(m.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil || m.version != version {
			return
		}
		again := m.encode()
		if string(again) != string(b) {
			t.Errorf("%x decodes to %+v, which is %x", b, m, again)
		}
	})
}

package nexus

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
)

// minSecret is the least that a secret must have, in bytes.
const minSecret = 16

// A sealed message is the header in clear, a nonce, the payload encrypted, and
// the tag of AES-256-GCM over all of it.
const (
	nonceBytes = 12
	tagBytes   = 16
	sealBytes  = nonceBytes + tagBytes

	maxSealed = headerBytes + sealBytes + cookieBytes + MaxPayload
)

var errForged = errors.New("nexus: sealed with another key, or altered")

// key is what a Nexus with a secret has. Every incarnation of every process
// seals with a key of its own, so that no two can use a nonce twice: the nonce is
// 32 bits that are random for the incarnation, should two ever draw the same 64,
// and a counter. It also follows that nobody's message passes for another's.
type key struct {
	root []byte // of HKDF
	own  cipher.AEAD
	salt uint32
	sent atomic.Uint64 // the last counter used
	mac  []byte        // of cookies: random, known to nobody else
}

func newKey(secret []byte, incarnation uint64) (*key, error) {
	if len(secret) < minSecret {
		return nil, fmt.Errorf("nexus: key of %d bytes; at least %d are needed, and they should be random, such as 32 bytes of /dev/urandom",
			len(secret), minSecret)
	}
	root, err := hkdf.Extract(sha256.New, secret, []byte("rrppcc nexus"))
	if err != nil {
		return nil, fmt.Errorf("nexus: key: %w", err)
	}
	k := &key{root: root, salt: uint32(random()), mac: newCookieKey()}
	if k.own, err = k.of(incarnation); err != nil {
		return nil, fmt.Errorf("nexus: key: %w", err)
	}
	return k, nil
}

// of derives what an incarnation seals with.
func (k *key) of(incarnation uint64) (cipher.AEAD, error) {
	info := binary.BigEndian.AppendUint64([]byte("message"), incarnation)
	b, err := hkdf.Expand(sha256.New, k.root, string(info), 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(b)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// seal returns the sealed form of an encoded message. Each call uses a nonce of
// its own: a message that is sent again is another one to the receiver.
func (k *key) seal(clear []byte) []byte {
	b := make([]byte, headerBytes+nonceBytes, len(clear)+sealBytes)
	copy(b, clear[:headerBytes])
	b[7] |= flagSealed
	nonce := b[headerBytes:]
	binary.BigEndian.PutUint32(nonce, k.salt)
	binary.BigEndian.PutUint64(nonce[4:], k.sent.Add(1))
	return k.own.Seal(b, nonce, clear[headerBytes:], b[:headerBytes])
}

// open fills in the payload of a sealed message that decode has read from b. It
// leaves b alone.
func (m *message) open(aead cipher.AEAD, b []byte) error {
	nonce := b[headerBytes : headerBytes+nonceBytes]
	payload, err := aead.Open(nil, nonce, b[headerBytes+nonceBytes:], b[:headerBytes])
	if err != nil {
		return errForged
	}
	m.salt = binary.BigEndian.Uint32(nonce)
	m.counter = binary.BigEndian.Uint64(nonce[4:])
	m.payload = payload
	if m.kind == kindConnect {
		if len(payload) < cookieBytes {
			return errMalformed
		}
		m.cookie, m.payload = payload[:cookieBytes], payload[cookieBytes:]
	}
	if !m.consistent() {
		return errMalformed
	}
	return nil
}

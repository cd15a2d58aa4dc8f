package msgbuf_test

import (
	"fmt"
	"log"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// device stands for a protection domain.
type device struct{}

func (device) Register(mem []byte, _ msgbuf.Access) (msgbuf.Registration, error) {
	return registration{}, nil
}

type registration struct{}

func (registration) LKey() uint32 { return 0x1000 }
func (registration) RKey() uint32 { return 0x1000 }
func (registration) Close() error { return nil }

func Example() {
	pool := msgbuf.NewPool(device{}, msgbuf.RemoteRead, msgbuf.WithMaxBytes(64<<20))
	b, err := pool.Alloc(100)
	if err != nil {
		log.Fatal(err)
	}
	if err := b.SetLen(copy(b.Full(), "hello")); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %d of %d bytes, rkey %#x\n", b.Bytes(), b.Len(), b.Cap(), b.RKey())
	b.Free()
	fmt.Println(b.Bytes() == nil, b.Valid())
	if err := pool.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// hello: 5 of 128 bytes, rkey 0x1000
	// true false
}

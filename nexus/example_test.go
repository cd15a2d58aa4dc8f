package nexus_test

import (
	"context"
	"fmt"
	"log"

	"github.com/rrppcc-go/rrppcc/nexus"
)

// greeter accepts every connection and answers with the client's payload.
type greeter struct{}

func (greeter) Accept(_ context.Context, c *nexus.Conn, payload []byte) ([]byte, error) {
	c.OnDown(func(err error) { /* tell the endpoint's loop */ })
	return append([]byte("hello, "), payload...), nil
}

func Example() {
	server, err := nexus.New("127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	if _, err := server.Register(7, greeter{}); err != nil {
		log.Fatal(err)
	}

	client, err := nexus.New("127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	conn, reply, err := client.Connect(ctx, server.URI(), 7, []byte("world"), func(err error) { log.Print(err) })
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", reply)
	if err := conn.Close(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: hello, world
}

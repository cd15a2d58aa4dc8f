package uverbs_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/netip"
	"syscall"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// Open the first device, choose the address under which others reach this
// program, and make a UD queue pair. It needs a device, so it is only compiled.
func Example() {
	devices, err := uverbs.Devices()
	if errors.Is(err, uverbs.ErrNoDevice) {
		fmt.Println("falling back to a simulated device:", err)
		return
	}
	if err != nil {
		log.Fatal(err)
	}
	ctx, err := devices[0].Open()
	if err != nil {
		log.Fatal(err)
	}
	defer ctx.Close()
	gid, why, err := ctx.ChooseGID(1, -1)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("using", gid.GID, why)

	pd, err := ctx.AllocPD()
	if err != nil {
		log.Fatal(err)
	}
	defer pd.Close()
	channel, err := ctx.CreateCompChannel()
	if err != nil {
		log.Fatal(err)
	}
	defer channel.Close()
	cq, err := ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 256, Channel: channel})
	if err != nil {
		log.Fatal(err)
	}
	defer cq.Close()
	qp, err := pd.CreateQP(&uverbs.QPInitAttr{Type: uverbs.QPTypeUD, SendCQ: cq, RecvCQ: cq,
		Cap: uverbs.QPCap{MaxSendWR: 128, MaxRecvWR: 128, MaxSendSGE: 1, MaxRecvSGE: 1}})
	if err != nil {
		log.Fatal(err)
	}
	defer qp.Close()

	init := uverbs.AttrState | uverbs.AttrPKeyIndex | uverbs.AttrPort | uverbs.AttrQKey
	if err := qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateInit, Port: 1, QKey: 0x1234}, init); err != nil {
		log.Fatal(err)
	}
	if err := qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTR}, uverbs.AttrState); err != nil {
		log.Fatal(err)
	}
	if err := qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS}, uverbs.AttrState|uverbs.AttrSQPSN); err != nil {
		log.Fatal(err)
	}
}

// Sleep until completions arrive. Arming does not report what is in the queue
// already, so it is polled once more between arming and waiting.
func ExampleCompChannel_Wait() {
	next := func(ctx context.Context, channel *uverbs.CompChannel, cq *uverbs.CQ, wc []uverbs.WC) (int, error) {
		for {
			if n, err := cq.Poll(wc); n > 0 || err != nil {
				return n, err
			}
			if err := cq.Arm(false); err != nil {
				return 0, err
			}
			if n, err := cq.Poll(wc); n > 0 || err != nil {
				return n, err
			}
			if _, err := channel.Wait(ctx); err != nil {
				return 0, err
			}
		}
	}
	_ = next
}

func ExampleGIDFromAddr() {
	gid := uverbs.GIDFromAddr(netip.MustParseAddr("10.0.0.5"))
	fmt.Println(gid, gid.Addr())
	// Output: ::ffff:10.0.0.5 10.0.0.5
}

func ExampleError() {
	err := error(&uverbs.Error{Op: "choose", Object: "GID of port 1", Err: uverbs.ErrPortDown, Hint: "check the cable"})
	fmt.Println(err)
	fmt.Println(errors.Is(err, uverbs.ErrPortDown), errors.Is(err, syscall.EBUSY))
	// Output:
	// uverbs: choose GID of port 1: port is not active (check the cable)
	// true false
}

// Command interop lets two implementations of RoCEv2 talk to each other: the
// simulated ConnectX on the host, and Linux's Soft-RoCE in kerneltest.sh's guest.
// Ethernet frames cross by QEMU's "-netdev dgram", what the two programs have to
// tell each other by TCP through a second interface.
//
//	interop host -dir DIR                 serves until standard input ends
//	interop guest -connect ADDR -device rxe2
//
// Both run the same scenario on verbs alone, so that either end may be any
// device: see the steps in scenario.go. The guest also runs programs of
// rdma-core against our verbs: ibv_rc_pingpong and ibv_ud_pingpong, whose peer
// is in pingpong.go.
package main

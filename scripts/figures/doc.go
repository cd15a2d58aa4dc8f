// Command figures measures verbs and RPCs between two RDMA devices of this
// machine, and perftest's programs between the same two, in turns, and prints
// both with their ratio. scripts/kerneltest.sh --figures runs it in its guest.
//
//	figures [--rounds N]    with the devices that RRPC_DEVICE and RRPC_DEVICE2 name
//	figures --crossing      nothing but RPCs of a few datagrams: in datagrams
//	                        (rpc.WithLargeThreshold), and by RDMA READ
//
// Both sides of every measurement are processes of their own that poll without
// a pause: ours is this program, started again as "figures peer". Sizes, numbers
// of requests under way and of iterations are the same on either side where
// perftest has them; the notes of the table say where not. Of the rounds, the
// median counts, also of the ratios.
//
// On an emulated machine the numbers mean nothing by themselves: only the
// ratios do, and only within one run.
package main

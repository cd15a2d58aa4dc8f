// Package mlx5sim is a simulated ConnectX: a device that answers the kernel's
// uverbs ABI as mlx5_ib does and executes mlx5 work queues, so that everything
// above it runs unchanged on a machine without a NIC.
//
// It has three parts. The kernel side decodes RDMA_VERBS_IOCTL commands and
// keeps the objects, their dependencies and the QP state machine, with the
// structures and errnos of Linux 6.1 and later. The queue engine decodes work
// requests that a doorbell announces and writes completions. The wire carries
// what leaves the process as RoCEv2 packets over UDP port 4791.
//
// All decoding in this package was written apart from the driver's
// (mlx5/internal/prm, mlx5/internal/abi), so that a mistake of one does not
// hide in the other. All access to the user's memory goes through [DMA].
//
// # Use
//
//	dev, err := mlx5sim.New()
//	defer dev.Close()
//	ctx, err := dev.Verbs().Open() // needs the provider: import .../mlx5
//
// Devices of one [Fabric] reach each other directly and run to completion on
// the goroutine that rings the doorbell. Devices of different processes reach
// each other by their IP address, over UDP or, with [WithEthernet], in Ethernet
// frames; [InProcess] leaves the network out, which tests in virtual time need.
// With [WithInfiniBand] a device's port is InfiniBand, and reaches such ports of
// its fabric by LID.
//
// # Ownership and concurrency
//
// A [Device] is closed by whoever created it, after the contexts opened on it;
// closing it earlier is a device removal: commands fail with EIO and the async
// event DEVICE_FATAL is raised. All methods may be called from several
// goroutines at once. One mutex per fabric guards all device state; nothing
// blocks under it.
//
// # Programs in other processes
//
// [Device.OpenForeign] opens a device for a program whose memory is not this
// process's, as mlx5sim/guest does for programs that are linked against libibverbs.
// Everything of the program is reached by copying, through [ForeignConfig.Memory];
// its events go to an [EventSink]. It rings no bell that could be heard: whoever
// opened it calls [Foreign.Poll] again and again, which looks at the doorbell
// registers. A store to a register may have replaced an earlier one, so after one
// the doorbell records of all queues of that page are read, those of one page of
// memory at a time. A program's queues are executed in turns of some milliseconds,
// so that nobody's are kept waiting by another's gigabytes.
//
// What a program hands over is not trusted. Memory that is not mapped is EFAULT when
// it is registered; memory that goes later fails the work request that needs it, at
// the side whose memory it was: a local protection error for a requester's data, a
// remote operation error for a responder's; a queue that cannot be read any more
// takes its QP to ERR with an async event. A CQ that cannot be written is overrun.
// Of a process that has ended its peers hear nothing, and their retries run out.
//
// # The link as a test instrument
//
// [Device.SetFaults] has a device's link lose, repeat, reorder, corrupt, delay and
// throttle packets, out and in, and [Device.Partition] cuts off peers by name. Both
// may be called while traffic runs. A corrupt packet is one that the receiver's
// ICRC check drops and counts. Chance comes from a seed: given again, the n-th
// packet meets the same fate. That replays a run as far as the run sends the same
// packets in the same order; two processes, or goroutines that race, may not.
//
//	seed, err := dev.SetFaults(mlx5sim.BothWays, mlx5sim.Faults{Loss: 0.05, Reorder: 0.02}, 0)
//	t.Logf("seed %d", seed)
//
// [Device.SetFlaps] has the port go down and up again by itself, at times that come
// from a seed, too; [Device.SetPortDown] and [Device.SetPortUp] do it by hand, and
// [Device.Close] under load is what the removal of a device is. These meet
// messages within the process as well.
//
// Under testing/synctest faults take virtual time. UDP sockets do not work there;
// devices then meet by [WithEthernet] over the two ends of a [net.Pipe].
//
// [WithPcap] and [Device.Capture] write the packets of a device's link to a file
// for Wireshark. Neither sees what devices of one fabric do among themselves: that
// runs to completion and makes no packets.
//
// # What is modelled
//
//   - Queues: UD, UC, RC and shared receive queues, CQs of 64- and 128-byte entries
//     with arming, overrun and resizing, scatter-to-CQE as a QP's flags ask for it.
//   - Operations: SEND, with immediate or invalidate, RDMA WRITE, with immediate,
//     RDMA READ, COMPARE & SWAP, FETCH & ADD, LOCAL_INV and the binding of memory
//     windows of both types, inline data, fences, NOP. Atomics are serialised
//     over the whole fabric and executed once however often the wire repeats
//     their request.
//   - Unreliable connections: a message of which a packet is missing is dropped, and
//     the receive that it took goes to the next one. Over the wire a QP sends 64
//     packets at most in 200 µs, because nothing would slow it down.
//   - Rights: keys, bounds, access flags and PDs of MRs and windows, of an SRQ its
//     own PD, QKeys, the QP state machine with SQD and its SQ_DRAINED.
//   - On Linux, MRs of on-demand paging, the implicit one among them, with ADVISE_MR,
//     and MRs of dma-bufs. Their memory is looked up at each access, and what is gone by then
//     fails the work request. For a dma-buf any file will do that can be mapped and
//     shared, such as a memfd, but of this process alone ([Device.OpenForeign] has
//     none). Other MRs are not pinned: who unmaps their memory while a work
//     request uses it faults.
//   - Link layers: Ethernet, with RoCE v2 and, within a fabric, RoCE v1; InfiniBand
//     within a fabric. There ports have LIDs, given out as by a subnet manager whose
//     own is 1, and one GID, of prefix fe80::/64 and the port's GUID. Address vectors
//     have a LID and, if they ask for one, a GRH, whose GID must be the port's.
//     Receives tell LID and service level; without a GRH the first 40 bytes of a
//     datagram's receive stay as they were. Ports of the two do not meet.
//   - QP attributes: timeout, retry_cnt, rnr_retry, min_rnr_timer, the two bounds of
//     READs and atomics, path MTU, PSNs, access flags, QKey, traffic class and hop
//     limit have their effect; the P_Key index is 0, for there is one partition.
//   - Errors: retries and RNR retries with their budgets and timers, syndromes,
//     flushing in order, also of receives that are posted in ERR (within 100 µs
//     to 100 ms: no doorbell tells of them), and the async events of QPs, CQs, SRQs
//     (limit, error, last WQE reached) and of the port.
//   - Commands: the ioctl methods that libmlx5 uses, and the write-style commands
//     through INVOKE_WRITE that have no method: REREG_MR, RESIZE_CQ, ALLOC_MW,
//     MODIFY_SRQ and QUERY_SRQ among them; QUERY_HCA_CAP for what libmlx5 asks when it
//     opens the device, of which it knows the general capabilities, those of atomics
//     and those of on-demand paging.
//
// # What is not
//
// XRC, DC, raw packets, multicast, flow steering, DEVX, device memory, counters,
// clocks, signatures and masked atomics are refused as a device without them
// does. CQEs are never compressed, and service levels make no difference. Of
// InfiniBand there are no packets, and so no captures, faults or other
// processes; path bits have no effect (the LID mask is 0), there are no
// alternate paths and no management datagrams, and the subnet manager changes
// nothing later. MRs of REG_MR cannot be invalidated, as with mlx5_ib, only
// memory windows can: for a LOCAL_INV the CQE says memory window bind error. An
// MR may go while windows show it, and they grant nothing from then on.
// MODIFY_QP takes RTS to SQD as IBTA has it; some kernels refuse that for mlx5.
//
// What a ConnectX does was not known here, and chosen, in three places: what
// becomes of a SEND with invalidate that names the key of an MR (the sender gets a
// remote access error, the receive a local access error); of an access to
// on-demand memory that is gone (a remote operation error at the requester); and of
// a UC message that is longer than its receive (a local length error there, as of a
// datagram).
//
// Packets on the wire have the traffic class and hop limit of their address
// vector, and a datagram's GRH shows those that it came with. A hop limit of 0 is
// sent as 64, as a kernel takes a route's in its place. Elsewhere than on Linux a
// socket neither sets nor tells them: all have 64 and 0. The flow label goes
// nowhere: IPv6's needs leave of the kernel, and the UDP source port is always 4791.
//
// # How it was checked
//
// What it decodes and answers is compared with bytes recorded of the real libmlx5
// (testdata/golden/mlx5): work requests, SRQ free lists, CQEs as the library read
// them, every command of whole sessions. The verbs conformance suite
// (uverbs/verbstest) runs on it, in process and over UDP, and both once more as a
// program in another process would have it: by copying, and without being told of
// doorbells. Commands, work requests, packets and whole foreign programs are fuzzed
// (scripts/fuzz.sh). Programs linked against the real libmlx5 run on it: the
// ping-pong programs of rdma-core, perftest and pyverbs' unit tests, and this
// module's provider talks to them (scripts/programs). Captures of all opcodes are
// read by tshark, which finds the fields of what was posted; it does not verify the
// ICRC, which is checked by code that has been tried on packets of hardware
// (internal/roce). It exchanges frames with Linux's Soft-RoCE (scripts/interop), on
// which the conformance suite runs as well. Vendor syndromes, timing below a timer's
// granularity and the order of events of different objects are not those of
// hardware.
package mlx5sim

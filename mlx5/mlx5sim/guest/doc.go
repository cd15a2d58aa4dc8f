// Package guest runs unmodified libibverbs programs against simulated ConnectX
// devices: real libibverbs and libmlx5, without a device, a kernel module or
// root. It is what rrpc sim does.
//
// # Mechanism
//
// [Run] starts the program under a seccomp filter, which its children inherit. A
// few system calls stop and ask this process, the supervisor, which answers in
// the kernel's place:
//
//   - Calls that name a file below /sys/class/infiniband, /sys/class/infiniband_verbs
//     and /dev/infiniband are answered from a private directory that looks like
//     sysfs. Files and directories opened there are handed over, so that
//     reading them takes no questions.
//   - Opening /dev/infiniband/uverbsN hands over a sparse memfd, which the stat calls
//     show as the character device. Its pages are the UAR pages: the program maps
//     them as it maps a real device, and the supervisor maps them, too.
//   - RDMA_VERBS_IOCTL is executed by the device ([mlx5sim.Device.OpenForeign]), which
//     reads and writes the program's memory by process_vm_readv and
//     process_vm_writev.
//   - Completion channels and async event files are pipes of packets.
//
// Sockets of NETLINK_RDMA are refused by the filter itself, so that libibverbs
// looks into sysfs. Everything else the kernel does as ever.
//
// A doorbell is a store to a page of memory, which nobody is told of. A thread
// of the supervisor looks at the pages; see Costs.
//
// # Life and death
//
// A device's context lives as long as the kernel keeps the open file: until its last
// duplicate and its last mapping are gone, in whatever process, by close, exec, exit
// or SIGKILL. The kernel tells by inotify, and of pipes by their error condition. A
// program that dies in the middle of anything leaves nothing behind.
//
// When the supervisor dies, the kernel kills the program and the guard
// ([Config.Guard]) its other processes; what they ask until then is answered with
// ENOSYS. When the program ends, what it left
// behind is served for [Config.Linger] and then killed.
// # Needs
//
// Linux 5.19 on amd64 or arm64, with seccomp user notifications, process_vm_readv,
// memfd_create, inotify and /proc. No privilege: with kernel.yama.ptrace_scope 1
// a program's orphans are reached if [Config.Reap] is set; 2 needs
// CAP_SYS_PTRACE. Docker's default profile names all of these calls as allowed
// (no container was at hand to try it in). One filter with a
// listener is possible per process, so programs cannot be served within another
// such supervisor. What is missing is an error that wraps [ErrUnavailable]; other
// systems have nothing but that error.
//
// # Costs
//
// Measured on 2 shared and busy cores (AMD EPYC, Linux 6.18); read them as ratios.
//
//	verbs command (ALLOC_PD)                        7.2 µs
//	open and close of any other file                3.8 µs
//	other system calls                              nothing that could be measured
//	access to the program's memory, 64 B / 64 KiB   0.3 µs / 1.4 µs
//	ib_send_lat -e                                  7 µs
//	ib_send_lat                                     19 µs
//	ib_write_bw, 64 KiB, 8 QPs                      7 to 14 GB/s
//	the same as packets over UDP                    0.4 to 1.5 GB/s
//
// The thread that looks for doorbells spins for some 20 µs after the last one, then
// sleeps 10 µs at a time for 0.1 s, 100 µs for half a second, and then 1 ms: so
// much later is the first doorbell after a pause seen. An idle program with a
// device open costs 1 % of a core, one without a device nothing. Where programs
// that poll are more than the processors, they wait for each other as they do
// on hardware, and for this thread, too: events (-e) are faster there.
//
// # Limits
//
// Programs are served as if they were trusted with what they could do anyway: the
// supervisor does not break by anything that they hand over, but it is no sandbox.
// It answers one call at a time and executes queues under one lock, so that a
// program whose memory blocks its readers (userfaultfd, FUSE) stops the others
// until it is killed.
//
//   - Programs under a filter get no privilege from setuid files. Those of another
//     instruction set (32 bits, x32) see the machine as it is, and so does
//     io_uring.
//   - Paths are compared as they are written, after "." and "..": symbolic links
//     elsewhere that lead to the devices are not seen through, chdir into the
//     directories is not possible, and chroots are not known. /dev and /sys/class
//     do not list them.
//   - Commands by write(2), which rdma-core used before 2018, are not answered.
//     There is no umad, no rdma_cm and no netlink.
//   - While the process that opened a device lives, only it may give commands; its
//     children may close. When it has ended, a child may take over.
//   - Commands name an event file by the number under which it was made, not by a
//     duplicate's.
//   - Memory is not pinned: what is unmapped, or replaced by exec, is gone for the
//     device at once. Between an exec and the release of the old program's devices
//     lie some microseconds in which a peer could still write to an address of
//     the new program.
//   - A program that opens its device file once more by way of /proc/self/fd and
//     closes that, has it closed.
//   - Device files get numbers below 1024 in the upper quarter; RLIMIT_NOFILE is
//     raised to that if it is lower and may be raised.
//
// What the devices themselves do not model is in the documentation of mlx5sim.
// The program's environment has RRPC_SIM set.
package guest

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
// or SIGKILL. The kernel tells by inotify, and of pipes by their hang-up. A program
// that dies in the middle of anything leaves nothing behind.
//
// When the supervisor dies, the kernel kills the program, and what its other
// processes ask is answered with ENOSYS. When the program ends, what it left
// behind is served for [Config.Linger] and then killed.
package guest

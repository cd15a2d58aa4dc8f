// Package prm describes the formats that a ConnectX NIC reads and writes in
// the memory of a process: work queue entries (WQE), completion queue entries
// (CQE), doorbell records and doorbell registers. The source is NVIDIA's
// "Mellanox Adapters Programmer's Reference Manual (PRM)" and the structures
// of the same names in the kernel's include/linux/mlx5/qp.h and device.h.
//
// Every format is a struct of big-endian words that lies over the queue's
// memory. A segment is always written whole, as one composite literal, so that
// no byte of an earlier entry can leak into it.
//
// The package imports nothing of this module. It is one of the few places
// where unsafe is allowed: it turns an address within a queue into a pointer to
// a format, and leaves bounds to its caller.
package prm

// Package msgbuf hands out registered memory for messages.
//
// A [Pool] maps regions outside the Go heap (2 MiB huge pages where the system
// has them, normal pages otherwise), registers each with the device through a
// [Registrar], and cuts them with a buddy allocator that merges what is freed.
// Regions that stay entirely free are given back, all but one. What the
// caller holds is a [Buf], a small value that knows its memory, its length and
// its keys.
//
// # Ownership
//
// A Pool belongs to one goroutine, its owner: Alloc, Collect, Trim, Stats and
// Close are the owner's and take no lock. [SharedPool] is a Pool behind a
// mutex, for everybody. [Buf.Free] may be called from any goroutine in either
// case: it pushes the block onto a lock-free queue, which the owner empties
// when it next needs memory. Reading a Buf is safe from any goroutine that
// holds it, so many requests can send the same Buf at once; SetLen and Free
// need the only holder.
//
// # Mistakes
//
// Every Buf carries the generation of its block. After Free the generation
// has moved on: the old Buf and all its copies answer nil and 0, and freeing
// any of them again panics. Built with -race or with the tag msgbufdebug, the
// panic says where the Buf was freed first. A slice taken from Bytes before
// Free cannot be revoked; it must not be used any longer.
//
// # Memory outside the heap
//
// The device writes to registered memory behind the back of the garbage
// collector and of fork, so regions are mapped (not allocated by Go) and marked
// MADV_DONTFORK. On systems other than Linux, where only simulated devices
// exist, regions are aligned Go memory.
//
// Memory comes zeroed from the system once; a Buf holds whatever its last user
// left in it.
package msgbuf

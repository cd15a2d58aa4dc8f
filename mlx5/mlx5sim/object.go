package mlx5sim

import "syscall"

// maxObjects bounds the objects of one file, so that a runaway program gets
// ENOMEM instead of the machine's memory.
const maxObjects = 1 << 20

// add gives o a handle: the lowest free one, as the kernel does, so that stale
// handles are soon somebody else's and mistakes show. Caller holds fab.mu.
func (f *file) add(o object) (uint32, error) {
	if len(f.handles) >= maxObjects {
		return 0, syscall.ENOMEM
	}
	for f.handles[f.next] != nil {
		f.next++
	}
	h := f.next
	f.next++
	f.handles[h] = o
	return h, nil
}

// remove destroys the object of handle h. Caller holds fab.mu.
func (f *file) remove(h uint32) {
	o := f.handles[h]
	delete(f.handles, h)
	f.next = min(f.next, h)
	o.destroy()
}

// lookup finds the object of type T that handle names. Unknown is ENOENT, of
// another type EINVAL, as in the kernel.
func lookup[T object](f *file, handle uint64) (T, error) {
	var none T
	if handle > 0xffffffff {
		return none, syscall.ENOENT
	}
	o := f.handles[uint32(handle)]
	if o == nil {
		return none, syscall.ENOENT
	}
	t, ok := o.(T)
	if !ok {
		return none, syscall.EINVAL
	}
	return t, nil
}

// removeIdle is a destroy command: EBUSY while another object depends on it.
func (f *file) removeIdle(h uint32) error {
	if f.handles[h].busy() {
		return syscall.EBUSY
	}
	f.remove(h)
	return nil
}

// destroyAll destroys every object, dependants first. Caller holds fab.mu.
func (f *file) destroyAll() {
	for rank := range 3 {
		for h, o := range f.handles {
			if rankOf(o) == rank {
				f.remove(h)
			}
		}
	}
}

// rankOf orders objects for destruction: a lower rank depends on higher ones.
func rankOf(o object) int {
	switch o.(type) {
	case *pd, *uar:
		return 2
	case *cq, *srq:
		return 1
	}
	return 0
}

package mlx5sim

import "syscall"

// foreignPage is a UAR page as Poll looks at it.
type foreignPage struct {
	mem []byte
	uar *uar
}

// mapUAR gets the page of a new UAR of a program in another process. Caller
// holds fab.mu.
func (fo *Foreign) mapUAR(u *uar) error {
	mem, err := fo.cfg.MapUAR(u.offset, pageSize)
	if err != nil || len(mem) < pageSize {
		return syscall.ENOMEM
	}
	u.mem = mem
	for _, reg := range uarRegisters {
		takeRegister(&mem[0], reg) // what an earlier owner of the offset stored is not for this one
	}
	fo.listPages()
	return nil
}

// dropUAR has the page of a dead UAR unmapped. Caller holds fab.mu.
func (fo *Foreign) dropUAR(u *uar) {
	if u.mem != nil {
		fo.unmap = append(fo.unmap, u.mem)
		fo.dead.Store(true)
		u.mem = nil
	}
	fo.listPages()
}

// listPages tells Poll which pages there are. Caller holds fab.mu.
func (fo *Foreign) listPages() {
	var pages []foreignPage
	for _, u := range fo.f.uars {
		if u.mem != nil && !u.dead {
			pages = append(pages, foreignPage{u.mem, u})
		}
	}
	fo.pages.Store(&pages)
}

// unmapDead unmaps the pages of dead UARs. Caller holds pollMu.
func (fo *Foreign) unmapDead() {
	fab := fo.f.dev.fab
	fab.mu.Lock()
	defer fab.mu.Unlock()
	for _, mem := range fo.unmap {
		fo.cfg.UnmapUAR(mem)
	}
	fo.unmap = nil
	fo.dead.Store(false)
}

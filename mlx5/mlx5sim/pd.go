package mlx5sim

func (p *pd) busy() bool { return p.refs > 0 }

func (p *pd) destroy() {}

// allocPD answers ALLOC_PD. The driver's answer is struct
// mlx5_ib_alloc_pd_resp: the PD number.
func (c *call) allocPD() error {
	p := &pd{file: c.f, pdn: c.f.dev.nextPDN & 0xffffff}
	c.f.dev.nextPDN++
	if err := c.create(p, &p.handle); err != nil {
		return err
	}
	var out [4]byte // struct ib_uverbs_alloc_pd_resp
	le.PutUint32(out[:], p.handle)
	var uhw [4]byte
	le.PutUint32(uhw[:], p.pdn)
	return c.respond(out[:], uhw[:])
}

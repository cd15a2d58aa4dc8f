package rpc

import (
	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// registrar registers the pools' memory in an endpoint's protection domain.
type registrar struct {
	pd      *uverbs.PD
	windows bool // peers read by windows: the region's own key grants nothing
}

func (r *registrar) Register(mem []byte, access msgbuf.Access) (msgbuf.Registration, error) {
	flags := uverbs.AccessLocalWrite
	if access == msgbuf.RemoteRead {
		if r.windows {
			flags |= uverbs.AccessMWBind
		} else {
			flags |= uverbs.AccessRemoteRead
		}
	}
	mr, err := r.pd.RegisterMR(mem, flags)
	if err != nil {
		return nil, err
	}
	if flags&uverbs.AccessMWBind != 0 {
		return bindable{mr}, nil
	}
	return mr, nil
}

// bindable is a region that peers read by windows alone.
type bindable struct{ *uverbs.MR }

// RKey returns 0: the region has one, which grants nothing.
func (bindable) RKey() uint32 { return 0 }

// pools are an endpoint's memory. The first two are the loop's own, without
// locks; the others are for everybody. Small memory is out of peers' reach.
type pools struct {
	small, large             *msgbuf.Pool
	sharedSmall, sharedLarge *msgbuf.SharedPool
}

func newPools(r *registrar, opts ...msgbuf.Option) pools {
	return pools{
		small:       msgbuf.NewPool(r, msgbuf.Local, opts...),
		large:       msgbuf.NewPool(r, msgbuf.RemoteRead, opts...),
		sharedSmall: msgbuf.NewSharedPool(r, msgbuf.Local, opts...),
		sharedLarge: msgbuf.NewSharedPool(r, msgbuf.RemoteRead, opts...),
	}
}

// collect gives memory back that was not needed lately. The caller is the loop.
func (p *pools) collect() {
	p.small.Collect()
	p.large.Collect()
	p.sharedSmall.Collect()
	p.sharedLarge.Collect()
}

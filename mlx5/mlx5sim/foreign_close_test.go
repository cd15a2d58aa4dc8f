package mlx5sim

import (
	"fmt"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestForeignProgramsEndInTheMiddleOfAnything closes one side, or has all of its
// memory go first as that of a killed process, while it serves, sends, tries
// again or waits. The other side's work fails in its time, and nothing is left.
func TestForeignProgramsEndInTheMiddleOfAnything(t *testing.T) {
	long := func(p *guestPair, op uint8) {
		for range 4 {
			p.na.put(p.qa, ctrl{op: op, flags: ce}, segRAddr(p.mz.iova, p.mz.key), p.ma.sge(0, 8192))
		}
		p.a.ring(p.qa)
	}
	for name, begin := range map[string]func(p *guestPair){
		"READs in flight":  func(p *guestPair) { long(p, opRead) },
		"WRITEs in flight": func(p *guestPair) { long(p, opWrite) },
		"waiting for a receive": func(p *guestPair) {
			p.qa.attr.rnrRetry = rnrInfinite
			p.na.put(p.qa, ctrl{op: opSend, flags: ce}, p.ma.sge(0, 8192))
			p.a.ring(p.qa)
			time.Sleep(3 * time.Millisecond)
		},
		"retrying": func(p *guestPair) {
			p.qz.to(stateReset)
			long(p, opWrite)
			time.Sleep(100 * time.Millisecond)
		},
		"half a message taken": func(p *guestPair) {
			p.qa.attr.pathMTU, p.qz.attr.pathMTU = 1, 1 // more packets than go out at once
			p.nz.recv(p.qz, p.mz.sge(0, 8192))
			p.na.put(p.qa, ctrl{op: opSend, flags: ce}, p.ma.sge(0, 8192))
			p.a.ring(p.qa)
		},
		"in turns": func(p *guestPair) {
			long(p, opWrite)
			p.a.fo.moved(turnLimit * pageSize)
			long(p, opWrite)
		},
	} {
		for _, wired := range []bool{false, true} {
			for _, victim := range []string{"requester", "responder"} {
				for _, killed := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/wired=%v/%s/killed=%v", name, wired, victim, killed), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							make := newGuestPair
							if wired {
								make = wiredGuestPair
							}
							p := make(t)
							begin(p)
							testEnd(t, p, victim == "requester", killed)
						})
					})
				}
			}
		}
	}
}

func testEnd(t *testing.T, p *guestPair, requester, killed bool) {
	dying, other, q := p.z, p.a, p.qa
	if requester {
		dying, other, q = p.a, p.z, p.qz
	}
	if killed {
		dying.locked(func() {
			dying.mem.punch(0, 1<<62)
			dying.mem.ended = true
		})
		time.Sleep(time.Microsecond) // half of what is under way arrives
		dying.fo.Poll()
	}
	dying.fo.Close()
	if err := dying.fo.Close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
	if dying.fo.Poll() {
		t.Error("Poll found something to do")
	}
	if err := dying.fo.Ioctl(command(objAsync, 0, newID(attrAsyncFD))); err != syscall.EBADF {
		t.Errorf("a command after Close: %v", err)
	}
	if d := dying.d; len(d.files)+len(d.qps)+len(d.cqs)+len(d.mrs) != 0 || dying.maps != 0 {
		t.Errorf("left: %d files, %d QPs, %d CQs, %d MRs, %d pages", len(d.files), len(d.qps), len(d.cqs), len(d.mrs), dying.maps)
	}
	time.Sleep(time.Minute)
	synctest.Wait()
	other.fo.Poll()
	n := p.na
	if requester {
		n = p.nz
	}
	all := n.pollAll(q.sendCQ)
	if requester { // what it received may be whole, and it had nothing to do that could fail
		for _, c := range all {
			if c.op >= cqeReqErr && !killed {
				t.Errorf("at the responder: %+v", all)
			}
		}
		return
	}
	if len(all) == 0 {
		t.Error("no completion at the requester")
	}
	for _, c := range all { // nobody says why: there is nobody
		if c.op >= cqeReqErr {
			if c.syn != synRetryExc {
				t.Errorf("the first error is %v", c.syn)
			}
			break
		}
	}
	if q.attr.state != stateErr && q.sq.ci != q.sq.pi {
		t.Errorf("state %d, %d of %d sends are over", q.attr.state, q.sq.ci, q.sq.pi)
	}
}

// TestForeignIsSafeForManyGoroutines has commands, events, Poll and Close run
// against each other. The race detector looks on.
func TestForeignIsSafeForManyGoroutines(t *testing.T) {
	d := testDevice(t, NewFabric(), "10.0.0.1")
	for range 20 {
		sinks := make(chan *testSink, 100)
		f, err := d.OpenForeign(ForeignConfig{
			Memory:   &arenaDMA{base: userBase, mem: make([]byte, pageSize), noView: true},
			MapUAR:   func(int64, int) ([]byte, error) { return make([]byte, pageSize), nil },
			UnmapUAR: func([]byte) {},
			NewEvents: func(async bool) (EventSink, error) {
				s := &testSink{fd: int32(len(sinks)), room: 1}
				sinks <- s
				return s, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		uctx := func() []byte {
			return command(objDevice, 3, tattr{id: attrUHWIn, len: 32, flags: attrMandatory, data: userBase})
		}
		copy(f.f.dma.(*arenaDMA).mem, uctxReq(16, 4, 0, 1, 3))
		out := func(id, n uint16) tattr {
			return tattr{id: id, len: n, flags: attrMandatory, data: userBase + 512}
		}
		f.Ioctl(uctx())
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for _, work := range []func(i int){
			func(int) { f.Poll() },
			func(int) {
				cmd := command(objUAR, 0x1000, newID(attrUARHandle), in64(attrUARType, 0), out(attrUAROffset, 8), out(attrUARLength, 4), out(attrUARPageID, 4))
				if f.Ioctl(cmd) == nil {
					f.Ioctl(command(objUAR, 0x1001, obj(attrUARHandle, uint32(dataWord(cmd, 0)))))
				}
			},
			func(i int) {
				if i < 40 {
					f.Ioctl(command(objAsync, 0, newID(attrAsyncFD)))
				}
			},
			func(i int) { f.CloseEvents(int32(i % 40)) },
			func(int) { f.CheckMmap(0x900000, pageSize) },
			func(i int) {
				if i == 50 {
					f.Close()
				}
			},
		} {
			wg.Go(func() {
				<-begin
				for i := range 100 {
					work(i)
				}
			})
		}
		close(begin)
		wg.Wait()
		f.Close()
	}
}

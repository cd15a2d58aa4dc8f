"""One end of a conversation: queue pairs on the real libibverbs, by orders.

Each line of the standard input is an order, a JSON list of a name and
arguments; each gets one line of JSON as its answer. Completions are checked
here: an order whose work request fails answers {"status": N} with the
ibv_wc_status.
"""

import json
import sys
import time

import pyverbs.enums as e
from pyverbs.addr import AH, GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR

SIZE = 2 << 20
QKEY = 0x11111111
ACCESS = (e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_READ
          | e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_ATOMIC)

ctx = Context(name=sys.argv[1])
port = ctx.query_port(1)
INFINIBAND = port.link_layer == e.IBV_LINK_LAYER_INFINIBAND
GID_INDEX = 0 if INFINIBAND else 3
pd = PD(ctx)
mr = MR(pd, SIZE, ACCESS)
cq = CQ(ctx, 256)
cap = QPCap(max_send_wr=64, max_recv_wr=64, max_send_sge=2, max_recv_sge=2, max_inline_data=64)


def make(kind):
    attr = QPAttr(port_num=1)
    if kind == e.IBV_QPT_UD:
        attr.qkey = QKEY
        return QP(pd, QPInitAttr(qp_type=kind, scq=cq, rcq=cq, cap=cap), attr)
    return QP(pd, QPInitAttr(qp_type=kind, scq=cq, rcq=cq, cap=cap))


qps = {"RC": make(e.IBV_QPT_RC), "UC": make(e.IBV_QPT_UC), "UD": make(e.IBV_QPT_UD)}
peer = {}


def address():
    if INFINIBAND:
        return AHAttr(port_num=1, dlid=peer["lid"])
    route = GlobalRoute(dgid=peer["gid"], sgid_index=GID_INDEX)
    return AHAttr(port_num=1, is_global=1, gr=route)


def hello():
    return {"gid": ctx.query_gid(1, GID_INDEX).gid, "lid": port.lid, "addr": mr.buf, "rkey": mr.rkey,
            "qpn": {k: q.qp_num for k, q in qps.items()}}


def connect(gid, lid, addr, rkey, qpn, psn):
    peer.update(gid=GID(gid), lid=lid, addr=addr, rkey=rkey, qpn=qpn)
    for kind in ("RC", "UC"):
        a = QPAttr(port_num=1)
        a.qp_access_flags = ACCESS if kind == "RC" else e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_LOCAL_WRITE
        a.path_mtu = e.IBV_MTU_1024
        a.dest_qp_num = qpn[kind]
        a.rq_psn = a.sq_psn = psn
        a.ah_attr = address()
        if kind == "RC":
            a.max_rd_atomic = a.max_dest_rd_atomic = 4
            a.min_rnr_timer, a.timeout, a.retry_cnt, a.rnr_retry = 12, 14, 7, 7
        qps[kind].to_rts(a)
    peer["ah"] = AH(pd, attr=address())
    return {}


def wait():
    end = time.monotonic() + 20
    while time.monotonic() < end:
        n, wcs = cq.poll(1)
        if n:
            w = wcs[0]
            return {"status": w.status, "bytes": w.byte_len, "opcode": w.opcode, "imm": w.imm_data, "flags": w.wc_flags, "src": w.src_qp}
    return {"status": -1}


def recv(kind, off, n):
    qps[kind].post_recv(RecvWR(1, num_sge=1, sg=[SGE(mr.buf + off, n, mr.lkey)]))
    return {}


def post(kind, op, off, n, remote=0, a=0, b=0, inline=False):
    flags = e.IBV_SEND_SIGNALED | (e.IBV_SEND_INLINE if inline else 0)
    wr = SendWR(2, opcode=getattr(e, "IBV_WR_" + op), num_sge=1, sg=[SGE(mr.buf + off, n, mr.lkey)],
                imm_data=a, send_flags=flags)
    if kind == "UD":
        wr.set_wr_ud(peer["ah"], peer["qpn"]["UD"], QKEY)
    elif op.startswith("ATOMIC"):
        wr.set_wr_atomic(rkey=peer["rkey"], addr=peer["addr"] + remote, compare_add=a, swap=b)
    elif op.startswith("RDMA"):
        wr.set_wr_rdma(peer["rkey"], peer["addr"] + remote)
    qps[kind].post_send(wr)
    return wait()


def fill(off, n, seed):
    mr.write(bytes((seed + 31 * i + (i >> 8)) & 0xff for i in range(n)), n, off)
    return {}


def show(off, n):
    return {"data": mr.read(n, off).hex()}


def put(off, data):
    data = bytes.fromhex(data)
    mr.write(data, len(data), off)
    return {}


ORDERS = {f.__name__: f for f in (hello, connect, wait, recv, post, fill, show, put)}

for line in sys.stdin:
    order = json.loads(line)
    print(json.dumps(ORDERS[order[0]](*order[1:])), flush=True)

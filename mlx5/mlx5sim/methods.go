package mlx5sim

import "syscall"

// Objects and methods, rdma/ib_user_ioctl_cmds.h and mlx5_user_ioctl_cmds.h.
const (
	objDevice = 0
	objPD     = 1
	objCQ     = 3
	objQP     = 4
	objSRQ    = 5
	objAH     = 6
	objMR     = 7
	objMW     = 8
	objAsync  = 16
	objDEVX   = 0x1000
	objUAR    = 0x1008
)

// Attributes that more than one function names.
const (
	attrCoreIn   = 0
	attrCoreOut  = 1
	attrWriteCmd = 2

	attrPortNum  = 0
	attrPortResp = 1

	attrCtxVectors = 0
	attrCtxSupport = 1

	attrQueryCtxUCtx = 0x1000 // MLX5_IB_ATTR_QUERY_CONTEXT_RESP_UCTX

	attrGIDEntrySize = 0
	attrGIDFlags     = 1
	attrGIDEntries   = 2
	attrGIDCount     = 3

	attrGIDPort       = 0
	attrGIDIndex      = 1
	attrGIDEntryFlags = 2
	attrGIDEntry      = 3

	attrAsyncFD = 0

	attrAdviseAdvice = 1
	attrAdviseFlags  = 2
	attrAdviseSGEs   = 3

	attrQueryMRLKey   = 1
	attrQueryMRRKey   = 2
	attrQueryMRLength = 3
	attrQueryMRIOVA   = 4

	attrCQHandle  = 0
	attrCQCQE     = 1
	attrCQUser    = 2
	attrCQChannel = 3
	attrCQVector  = 4
	attrCQFlags   = 5
	attrCQRespCQE = 6
	attrCQEventFD = 7

	attrDestroyResp = 1

	attrQPHandle  = 0
	attrQPXRCD    = 1
	attrQPPD      = 2
	attrQPSRQ     = 3
	attrQPSendCQ  = 4
	attrQPRecvCQ  = 5
	attrQPIndTbl  = 6
	attrQPUser    = 7
	attrQPCap     = 8
	attrQPType    = 9
	attrQPFlags   = 10
	attrQPSource  = 11
	attrQPEventFD = 12
	attrQPRespCap = 13
	attrQPRespQPN = 14

	attrSRQHandle     = 0
	attrSRQPD         = 1
	attrSRQXRCD       = 2
	attrSRQCQ         = 3
	attrSRQUser       = 4
	attrSRQMaxWR      = 5
	attrSRQMaxSGE     = 6
	attrSRQLimit      = 7
	attrSRQNumTags    = 8
	attrSRQType       = 9
	attrSRQEventFD    = 10
	attrSRQRespMaxWR  = 11
	attrSRQRespMaxSGE = 12
	attrSRQRespNum    = 13

	attrDMABufHandle = 0
	attrDMABufPD     = 1
	attrDMABufOffset = 2
	attrDMABufLength = 3
	attrDMABufIOVA   = 4
	attrDMABufFD     = 5
	attrDMABufAccess = 6
	attrDMABufLKey   = 7
	attrDMABufRKey   = 8

	attrRegMRHandle   = 0
	attrRegMRPD       = 1
	attrRegMRDMAH     = 2
	attrRegMRIOVA     = 3
	attrRegMRAddr     = 4
	attrRegMRLength   = 5
	attrRegMRAccess   = 6
	attrRegMRFD       = 7
	attrRegMRFDOffset = 8
	attrRegMRLKey     = 9
	attrRegMRRKey     = 10

	attrUARHandle = 0x1000
	attrUARType   = 0x1001
	attrUAROffset = 0x1002
	attrUARLength = 0x1003
	attrUARPageID = 0x1004

	attrDEVXIn  = 0x1000
	attrDEVXOut = 0x1001
)

// found adapts lookup to a schema.
func found[T object](f *file, word uint64) (object, error) { return lookup[T](f, word) }

// absent is the lookup of an object type that no command here can create.
func absent(*file, uint64) (object, error) { return nil, syscall.ENOENT }

func nothing(*call) error { return nil }

func destroyer(id uint16, find func(*file, uint64) (object, error)) *method {
	return &method{attrs: []attrSpec{{id: id, kind: attrObject, find: find}}, destroy: true, run: nothing}
}

// methodID names a method: object and method of the command's header.
type methodID struct{ object, method uint16 }

// methods holds the schema of every method.
var methods map[methodID]*method

func init() { // not a composite literal: its functions refer to methods
	methods = map[methodID]*method{
		{objDevice, 0}: {attrs: []attrSpec{ // INVOKE_WRITE
			{id: attrCoreIn, kind: attrIn, optional: true},
			{id: attrCoreOut, kind: attrOut, optional: true},
			{id: attrWriteCmd, kind: attrIn, min: 8, max: 8},
		}, early: true, udata: true, run: (*call).invokeWrite},
		{objDevice, 2}: {attrs: []attrSpec{ // QUERY_PORT
			{id: attrPortNum, kind: attrIn, min: 8, max: 8},
			{id: attrPortResp, kind: attrOut, min: 48},
		}, run: (*call).queryPort},
		{objDevice, 3}: {attrs: []attrSpec{ // GET_CONTEXT
			{id: attrCtxVectors, kind: attrOut, min: 4, max: 4, optional: true},
			{id: attrCtxSupport, kind: attrOut, min: 8, max: 8, optional: true},
		}, early: true, udata: true, run: (*call).getContext},
		{objDevice, 4}: {attrs: []attrSpec{ // QUERY_CONTEXT
			{id: attrCtxVectors, kind: attrOut, min: 4, max: 4, optional: true},
			{id: attrCtxSupport, kind: attrOut, min: 8, max: 8, optional: true},
			{id: attrQueryCtxUCtx, kind: attrOut, min: 4, optional: true},
		}, run: (*call).queryContext},
		{objDevice, 5}: {attrs: []attrSpec{ // QUERY_GID_TABLE
			{id: attrGIDEntrySize, kind: attrIn, min: 8, max: 8},
			{id: attrGIDFlags, kind: attrIn, min: 4, max: 8, optional: true},
			{id: attrGIDEntries, kind: attrOut},
			{id: attrGIDCount, kind: attrOut, min: 8, max: 8},
		}, run: (*call).queryGIDTable},
		{objDevice, 6}: {attrs: []attrSpec{ // QUERY_GID_ENTRY
			{id: attrGIDPort, kind: attrIn, min: 8, max: 8},
			{id: attrGIDIndex, kind: attrIn, min: 8, max: 8},
			{id: attrGIDEntryFlags, kind: attrIn, min: 4, max: 8},
			{id: attrGIDEntry, kind: attrOut, min: 32},
		}, run: (*call).queryGIDEntry},

		{objAsync, 0}: {attrs: []attrSpec{{id: attrAsyncFD, kind: attrNewFD}}, run: (*call).asyncEventAlloc},

		{objPD, 0}: destroyer(0, found[*pd]),
		{objAH, 0}: destroyer(0, found[*ah]),
		{objMR, 1}: destroyer(0, found[*mr]),
		{objMW, 0}: destroyer(0, found[*mw]),
		{objMR, 2}: {attrs: []attrSpec{ // ADVISE_MR
			{id: 0, kind: attrObject, find: found[*pd]},
			{id: attrAdviseAdvice, kind: attrIn, min: 8, max: 8},
			{id: attrAdviseFlags, kind: attrIn, min: 4, max: 8},
			{id: attrAdviseSGEs, kind: attrIn, min: adviseSGEBytes},
		}, run: (*call).adviseMR},
		{objMR, 3}: {attrs: []attrSpec{ // QUERY_MR
			{id: 0, kind: attrObject, find: found[*mr]},
			{id: attrQueryMRLKey, kind: attrOut, min: 4, max: 4},
			{id: attrQueryMRRKey, kind: attrOut, min: 4, max: 4},
			{id: attrQueryMRLength, kind: attrOut, min: 8, max: 8, optional: true},
			{id: attrQueryMRIOVA, kind: attrOut, min: 8, max: 8, optional: true},
		}, run: (*call).queryMR},

		{objMR, 4}: {attrs: []attrSpec{ // REG_DMABUF_MR
			{id: attrDMABufHandle, kind: attrNew},
			{id: attrDMABufPD, kind: attrObject, find: found[*pd]},
			{id: attrDMABufOffset, kind: attrIn, min: 8, max: 8},
			{id: attrDMABufLength, kind: attrIn, min: 8, max: 8},
			{id: attrDMABufIOVA, kind: attrIn, min: 8, max: 8},
			{id: attrDMABufFD, kind: attrIn, min: 4, max: 4},
			{id: attrDMABufAccess, kind: attrIn, min: 4, max: 8},
			{id: attrDMABufLKey, kind: attrOut, min: 4, max: 4},
			{id: attrDMABufRKey, kind: attrOut, min: 4, max: 4},
		}, run: (*call).regDMABuf},

		{objMR, 5}: {attrs: []attrSpec{ // REG_MR, of kernels that have it
			{id: attrRegMRHandle, kind: attrNew},
			{id: attrRegMRPD, kind: attrObject, find: found[*pd]},
			{id: attrRegMRDMAH, kind: attrObject, find: absent, optional: true},
			{id: attrRegMRIOVA, kind: attrIn, min: 8, max: 8, optional: true},
			{id: attrRegMRAddr, kind: attrIn, min: 8, max: 8, optional: true},
			{id: attrRegMRLength, kind: attrIn, min: 8, max: 8},
			{id: attrRegMRAccess, kind: attrIn, min: 4, max: 8},
			{id: attrRegMRFD, kind: attrRawFD, optional: true},
			{id: attrRegMRFDOffset, kind: attrIn, min: 8, max: 8, optional: true},
			{id: attrRegMRLKey, kind: attrOut, min: 4, max: 4},
			{id: attrRegMRRKey, kind: attrOut, min: 4, max: 4},
		}, run: (*call).regMRMethod},

		{objCQ, 0}: {attrs: []attrSpec{
			{id: attrCQHandle, kind: attrNew},
			{id: attrCQCQE, kind: attrIn, min: 4, max: 4},
			{id: attrCQUser, kind: attrIn, min: 8, max: 8},
			{id: attrCQChannel, kind: attrFD, optional: true},
			{id: attrCQVector, kind: attrIn, min: 4, max: 4},
			{id: attrCQFlags, kind: attrIn, min: 4, max: 8, optional: true},
			{id: attrCQRespCQE, kind: attrOut, min: 4, max: 4},
			{id: attrCQEventFD, kind: attrFD, async: true, optional: true},
		}, udata: true, run: (*call).createCQ},
		{objCQ, 1}: {attrs: []attrSpec{
			{id: 0, kind: attrObject, find: found[*cq]},
			{id: attrDestroyResp, kind: attrOut, min: 8},
		}, destroy: true, run: (*call).destroyedCQ},

		{objQP, 0}: {attrs: []attrSpec{
			{id: attrQPHandle, kind: attrNew},
			{id: attrQPXRCD, kind: attrObject, find: absent, optional: true},
			{id: attrQPPD, kind: attrObject, find: found[*pd], optional: true},
			{id: attrQPSRQ, kind: attrObject, find: found[*srq], optional: true},
			{id: attrQPSendCQ, kind: attrObject, find: found[*cq], optional: true},
			{id: attrQPRecvCQ, kind: attrObject, find: found[*cq], optional: true},
			{id: attrQPIndTbl, kind: attrObject, find: absent, optional: true},
			{id: attrQPUser, kind: attrIn, min: 8, max: 8},
			{id: attrQPCap, kind: attrIn, min: 20},
			{id: attrQPType, kind: attrIn, min: 8, max: 8},
			{id: attrQPFlags, kind: attrIn, min: 4, max: 8, optional: true},
			{id: attrQPSource, kind: attrIn, min: 4, max: 4, optional: true},
			{id: attrQPEventFD, kind: attrFD, async: true, optional: true},
			{id: attrQPRespCap, kind: attrOut, min: 20},
			{id: attrQPRespQPN, kind: attrOut, min: 4, max: 4},
		}, udata: true, run: (*call).createQP},
		{objQP, 1}: {attrs: []attrSpec{
			{id: 0, kind: attrObject, find: found[*qp]},
			{id: attrDestroyResp, kind: attrOut, min: 4},
		}, destroy: true, run: (*call).destroyedQP},

		{objSRQ, 0}: {attrs: []attrSpec{
			{id: attrSRQHandle, kind: attrNew},
			{id: attrSRQPD, kind: attrObject, find: found[*pd]},
			{id: attrSRQXRCD, kind: attrObject, find: absent, optional: true},
			{id: attrSRQCQ, kind: attrObject, find: found[*cq], optional: true},
			{id: attrSRQUser, kind: attrIn, min: 8, max: 8},
			{id: attrSRQMaxWR, kind: attrIn, min: 4, max: 4},
			{id: attrSRQMaxSGE, kind: attrIn, min: 4, max: 4},
			{id: attrSRQLimit, kind: attrIn, min: 4, max: 4},
			{id: attrSRQNumTags, kind: attrIn, min: 4, max: 4, optional: true},
			{id: attrSRQType, kind: attrIn, min: 8, max: 8},
			{id: attrSRQEventFD, kind: attrFD, async: true, optional: true},
			{id: attrSRQRespMaxWR, kind: attrOut, min: 4, max: 4},
			{id: attrSRQRespMaxSGE, kind: attrOut, min: 4, max: 4},
			{id: attrSRQRespNum, kind: attrOut, min: 4, max: 4, optional: true},
		}, udata: true, run: (*call).createSRQ},
		{objSRQ, 1}: {attrs: []attrSpec{
			{id: 0, kind: attrObject, find: found[*srq]},
			{id: attrDestroyResp, kind: attrOut, min: 4},
		}, destroy: true, run: (*call).destroyedSRQ},

		{objDEVX, 0x1000}: {attrs: []attrSpec{ // DEVX_OTHER
			{id: attrDEVXIn, kind: attrIn, min: 16},
			{id: attrDEVXOut, kind: attrOut, min: 16},
		}, run: (*call).devxOther},
		{objUAR, 0x1000}: {attrs: []attrSpec{
			{id: attrUARHandle, kind: attrNew},
			{id: attrUARType, kind: attrIn, min: 8, max: 8},
			{id: attrUAROffset, kind: attrOut, min: 8, max: 8},
			{id: attrUARLength, kind: attrOut, min: 4, max: 4},
			{id: attrUARPageID, kind: attrOut, min: 4, max: 4},
		}, run: (*call).allocUAR},
		{objUAR, 0x1001}: destroyer(attrUARHandle, found[*uar]),
	}
}

// writeCmd is a write-style command: what travels through INVOKE_WRITE.
type writeCmd struct {
	in, out int // bytes that the command needs at least
	early   bool
	run     func(c *call) error
}

const cmdExtended = 0x80000000

// writeCmds are the write-style commands, enum ib_uverbs_write_cmds.
var writeCmds map[uint32]writeCmd

func init() {
	writeCmds = map[uint32]writeCmd{
		0:               {early: true, run: func(*call) error { return syscall.EBADF }}, // GET_CONTEXT makes its file by write(2) alone
		1:               {in: 8, out: 176, run: (*call).queryDevice},
		1 | cmdExtended: {in: 8, out: 184, run: (*call).queryDeviceEx},
		2:               {in: 16, out: 40, run: (*call).queryPortWrite},
		3:               {in: 8, out: 4, run: (*call).allocPD},
		4:               {in: 4, run: destroyWrite[*pd]},
		5:               {in: 56, out: 4, run: (*call).createAH},
		8:               {in: 4, run: destroyWrite[*ah]},
		9:               {in: 40, out: 12, run: (*call).regMR},
		11:              {in: 48, out: 8, run: (*call).reregMR},
		13:              {in: 4, run: destroyWrite[*mr]},
		14:              {in: 16, out: 8, run: (*call).allocMW},
		16:              {in: 4, run: destroyWrite[*mw]},
		17:              {in: 8, out: 4, run: (*call).createCompChannel},
		19:              {in: 16, out: 8, run: (*call).resizeCQ},
		25:              {in: 16, out: 128, run: (*call).queryQP},
		26:              {in: 112, run: (*call).modifyQP},
		32:              {in: 32, out: 16, run: (*call).createSRQWrite},
		33:              {in: 16, run: (*call).modifySRQ},
		34:              {in: 16, out: 16, run: (*call).querySRQ},
		35:              {in: 16, out: 4, run: (*call).destroySRQWrite},
	}
}

// invokeWrite runs a write-style command.
func (c *call) invokeWrite() error {
	word := c.word(attrWriteCmd)
	if word&^uint64(cmdExtended|0xff) != 0 {
		return syscall.EINVAL
	}
	w, ok := writeCmds[uint32(word)]
	if !ok {
		return syscall.EOPNOTSUPP
	}
	if c.len(attrCoreIn) < w.in || c.len(attrCoreOut) < w.out {
		return syscall.ENOSPC
	}
	if !c.f.ready && !w.early {
		return syscall.EINVAL
	}
	return w.run(c)
}

// coreIn copies the command's request. Its length was checked.
func (c *call) coreIn(p []byte) error {
	_, err := c.in(attrCoreIn, p)
	return err
}

// respond answers a write-style command and its driver-private output.
func (c *call) respond(core, uhw []byte) error {
	if err := c.put(attrCoreOut, core); err != nil {
		return err
	}
	return c.putUHW(uhw)
}

// destroyWrite is a write-style destroy of an object of type T: the request is
// its handle.
func destroyWrite[T object](c *call) error {
	h := uint32(c.word(attrCoreIn))
	if c.len(attrCoreIn) > 8 {
		var b [4]byte
		if err := c.coreIn(b[:]); err != nil {
			return err
		}
		h = le.Uint32(b[:])
	}
	if _, err := lookup[T](c.f, uint64(h)); err != nil {
		return err
	}
	return c.f.removeIdle(h)
}

package uverbs

import "fmt"

// EventType is the kind of an async event: enum ibv_event_type.
type EventType uint32

const (
	EventCQErr EventType = iota
	EventQPFatal
	EventQPReqErr
	EventQPAccessErr
	EventCommEst
	EventSQDrained
	EventPathMig
	EventPathMigErr
	EventDeviceFatal
	EventPortActive
	EventPortErr
	EventLIDChange
	EventPKeyChange
	EventSMChange
	EventSRQErr
	EventSRQLimitReached
	EventQPLastWQEReached
	EventClientReregister
	EventGIDChange
	EventWQFatal
)

func (t EventType) String() string {
	names := [...]string{"CQ error", "QP fatal", "QP request error", "QP access error", "communication established",
		"SQ drained", "path migrated", "path migration error", "device fatal", "port active", "port error", "LID change",
		"P_Key change", "SM change", "SRQ error", "SRQ limit reached", "QP last WQE reached", "client reregister", "GID change", "WQ fatal"}
	if int(t) < len(names) {
		return names[t]
	}
	return fmt.Sprintf("EventType(%d)", uint32(t))
}

// object tells what the event's element names.
func (t EventType) object() string {
	switch t {
	case EventCQErr:
		return "cq"
	case EventQPFatal, EventQPReqErr, EventQPAccessErr, EventCommEst, EventSQDrained, EventPathMig, EventPathMigErr, EventQPLastWQEReached:
		return "qp"
	case EventPortActive, EventPortErr, EventLIDChange, EventPKeyChange, EventSMChange, EventClientReregister, EventGIDChange:
		return "port"
	case EventSRQErr, EventSRQLimitReached:
		return "srq"
	}
	return ""
}

// AsyncEvent is a struct ibv_async_event. CQ, QP or SRQ is nil where the event
// is not about one, or about one that is closed.
type AsyncEvent struct {
	Type EventType
	CQ   *CQ
	QP   *QP
	SRQ  *SRQ
	Port uint8
}

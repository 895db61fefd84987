package schemas

import (
	"bytes"
	"fmt"
	"math"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
)

// holdNames are the names of holds on the wire, bit by bit.
var holdNames = [...]string{"dependency", "paused", "event", "postponed", "retry"}

// present returns the fields of the table that e has a value in.
func presentFields(e *operation.Event) fields {
	var f fields
	set := func(has bool, bit fields) {
		if has {
			f |= bit
		}
	}
	set(e.Request != nil, fieldOperation)
	set(e.Holds != 0, fieldWaits)
	set(e.Until != 0, fieldUntil)
	set(e.Attempt != 0, fieldAttempt)
	set(e.Session != "", fieldSession)
	set(e.StartedAt != 0, fieldStartedAt)
	set(e.Failure != nil, fieldError)
	set(e.Event != "", fieldEvent)
	set(len(e.Progress) > 0, fieldProgress)
	set(len(e.Carry) > 0, fieldCheckpoint)
	set(len(e.Result) > 0, fieldResult)
	set(e.Upstream != "", fieldUpstream)
	set(e.Command != 0, fieldCommand)
	set(e.Code != "", fieldCode)
	set(e.Reason != "", fieldReason)
	set(e.Status != 0, fieldStatus)
	set(e.Owner != "", fieldOwner)
	set(e.To != 0, fieldTo)
	set(len(e.Body) > 0, fieldRequest)
	set(e.CommandID != "", fieldCommandID)
	set(e.By != (operation.By{}), fieldBy)
	return f
}

// CheckEvent says whether e has a value in a field that its kind does not have on the wire, or lacks one that it must have.
// [EncodeEvent] leaves such a value out: tests of whoever makes events call this, so that nothing is lost.
func CheckEvent(e *operation.Event) error {
	m := eventByKind[e.Kind]
	has := presentFields(e)
	if lost := has &^ m.allowed; lost != 0 {
		return fmt.Errorf("expected event %s to have only the fields %v, but it also has %v: add them to the registry, or leave them out", e.Kind, m.allowed.names(), lost.names())
	}
	const zeroCounts = fieldCommand | fieldTo | fieldStatus
	if lacks := m.needed &^ (has | zeroCounts); lacks != 0 {
		return fmt.Errorf("expected event %s to have the fields %v, but it lacks %v", e.Kind, m.needed.names(), lacks.names())
	}
	return nil
}

func (f fields) names() []string {
	var names []string
	for i, n := range fieldNames {
		if f&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return names
}

// EncodeEvent makes the record of an event, to be sealed by [Chain.Seal] (which sets the id, too) and appended to the
// given partition of the journal. key is the partition key of the operation.
func EncodeEvent(e *operation.Event, key []byte, partition int32) *kgo.Record {
	m := eventByKind[e.Kind]
	size := 128 + 96 + len(e.ID) + len(e.Org) + len(e.Session) + len(e.Progress) + len(e.Carry) + len(e.Result) + len(e.Body)
	if e.Request != nil {
		size += len(e.Request.Raw)
	}
	if e.Failure != nil {
		size += 100 + len(e.Failure.Message) + len(e.Failure.FriendlyMessage)
	}

	// Value and header values share one buffer: first the headers, each cut off by its end, then the value.
	b := make([]byte, 0, size)
	b = appendTime(b, e.At)
	timeEnd := len(b)
	b = append(b, e.ID...)
	idEnd := len(b)
	b = append(b, e.Org...)
	orgEnd := len(b)
	if e.Cause.Topic != "" {
		b = append(append(b, e.Cause.Topic...), '/')
		b = appendInt(b, e.Cause.Offset)
	}
	causeEnd := len(b)

	has := (presentFields(e) | m.needed) & m.allowed
	o := object{b: b}
	o.open()
	if has&fieldOperation != 0 {
		var raw []byte
		if e.Request != nil {
			raw = e.Request.Raw
		}
		o.raw("operation", raw)
	}
	if has&fieldWaits != 0 {
		o.holds("waits", e.Holds)
	}
	if has&fieldUntil != 0 {
		o.time("until", e.Until)
	}
	if has&fieldAttempt != 0 {
		o.int("attempt", int64(e.Attempt))
	}
	if has&fieldSession != 0 {
		o.str("session", string(e.Session))
	}
	if has&fieldStartedAt != 0 {
		o.time("startedAt", e.StartedAt)
	}
	if has&fieldError != 0 {
		f := e.Failure
		if f == nil {
			f = new(operation.Failure)
		}
		o.failure("error", f)
	}
	if has&fieldEvent != 0 {
		o.str("event", e.Event)
	}
	if has&fieldProgress != 0 {
		o.raw("progress", e.Progress)
	}
	if has&fieldCheckpoint != 0 {
		o.raw("checkpoint", e.Carry)
	}
	if has&fieldResult != 0 {
		o.raw("result", e.Result)
	}
	if has&fieldUpstream != 0 {
		o.str("upstream", string(e.Upstream))
	}
	if has&fieldCommand != 0 {
		o.str("command", e.Command.String())
	}
	if has&fieldCode != 0 {
		o.str("code", string(e.Code))
	}
	if has&fieldReason != 0 {
		o.str("reason", e.Reason)
	}
	if has&fieldStatus != 0 {
		o.str("status", e.Status.String())
	}
	if has&fieldOwner != 0 {
		o.str("owner", e.Owner)
	}
	if has&fieldTo != 0 {
		o.int("to", int64(e.To))
	}
	if has&fieldRequest != 0 {
		o.raw("request", e.Body)
	}
	if has&fieldCommandID != 0 {
		o.str("commandId", e.CommandID)
	}
	if has&fieldBy != 0 {
		o.by(e.By)
	}
	o.close()
	b = o.b

	c := newCarrier()
	c.Key, c.Partition = key, partition
	c.Value = b[causeEnd:len(b):len(b)]
	c.header(HeaderSpecVersion, specVersion)
	c.header(HeaderSource, ownJournal)
	c.header(HeaderType, m.wire)
	c.header(HeaderTime, b[:timeEnd:timeEnd])
	if e.ID != "" {
		c.header(HeaderSubject, b[timeEnd:idEnd:idEnd])
	}
	if e.Org != "" {
		c.header(HeaderOrganization, b[idEnd:orgEnd:orgEnd])
	}
	if len(key) > 0 {
		c.header(HeaderPartitionKey, key)
	}
	if causeEnd > orgEnd {
		c.header(HeaderCause, b[orgEnd:causeEnd:causeEnd])
	}
	c.header(HeaderContentType, contentJSON)
	if later {
		c.fromLater()
	}
	return &c.Record
}

func (o *object) holds(name string, h operation.Holds) {
	o.member(name)
	o.b = append(o.b, '[')
	for i, n := range holdNames {
		if h&(1<<i) != 0 {
			if o.b[len(o.b)-1] != '[' {
				o.b = append(o.b, ',')
			}
			o.b = append(append(append(o.b, '"'), n...), '"')
		}
	}
	o.b = append(o.b, ']')
}

func (r *reader) holds() (h operation.Holds) {
	if !r.array() {
		return 0
	}
	for i := 0; r.element(i); i++ {
		name, known := r.text(), false
		for bit, n := range holdNames {
			if string(name) == n {
				h |= 1 << bit
				known = true
			}
		}
		if !known {
			r.refuse(UnknownValue, "expected names of holds, but got %.64q", name)
		}
	}
	return h
}

// DecodeEvent reads a valid record of the journal ([Chain.Check] says which are valid). A member that the event's kind does
// not have is skipped: see the package comment. The error is a *[DecodeError].
func DecodeEvent(rec *kgo.Record) (operation.Event, error) {
	var e operation.Event
	if err := decodeEvent(&e, rec); err != nil {
		return operation.Event{}, err.at(rec)
	}
	return e, nil
}

func decodeEvent(e *operation.Event, rec *kgo.Record) *DecodeError {
	var a attributes
	m, err := a.open(rec, TopicJournal)
	if err != nil {
		return err
	}
	e.Kind, e.Org, e.ID = m.Event, string(a.organization), operation.ID(a.subject)
	if a.time == nil {
		return missing(HeaderTime)
	}
	var ok bool
	if e.At, ok = parseTime(a.time); !ok {
		return &DecodeError{Code: InvalidHeader, Field: HeaderTime, Reason: fmt.Sprintf("expected an RFC 3339 time, but got %.64q", a.time)}
	}
	if len(a.cause) > 0 {
		slash := bytes.LastIndexByte(a.cause, '/')
		if slash > 0 {
			e.Cause.Topic = shortName(a.cause[:slash])
			e.Cause.Offset, ok = parseInt(a.cause[slash+1:])
		}
		if slash <= 0 || !ok {
			return &DecodeError{Code: InvalidHeader, Field: HeaderCause, Reason: fmt.Sprintf("expected topic and offset, but got %.64q", a.cause)}
		}
	}

	r := newOwnReader(rec.Value)
	var seen fields
	for o := r.object(); r.next(o); {
		bit := fieldOf(r.name) & m.allowed
		seen |= bit
		switch bit {
		case fieldOperation:
			e.Request = r.accepted("operation")
		case fieldWaits:
			e.Holds = r.holds()
		case fieldUntil:
			e.Until = r.instant()
		case fieldAttempt:
			e.Attempt = operation.Attempt(r.integer(0, math.MaxUint32))
		case fieldSession:
			e.Session = operation.SessionID(r.str())
		case fieldStartedAt:
			e.StartedAt = r.instant()
		case fieldError:
			e.Failure = r.failure("error")
		case fieldEvent:
			e.Event = r.str()
		case fieldProgress:
			e.Progress = r.rawCopy()
		case fieldCheckpoint:
			e.Carry = r.rawCopy()
		case fieldResult:
			e.Result = r.rawCopy()
		case fieldUpstream:
			e.Upstream = operation.ID(r.str())
		case fieldCommand:
			name := r.text()
			if e.Command, ok = parseCommandKind(name); !ok {
				r.refuse(UnknownValue, "expected the name of a command, but got %.64q", name)
			}
		case fieldCode:
			e.Code = operation.RejectionCode(r.str())
		case fieldReason:
			e.Reason = r.str()
		case fieldStatus:
			e.Status = r.status()
		case fieldOwner:
			e.Owner = r.str()
		case fieldTo:
			e.To = int32(r.integer(0, math.MaxInt32))
		case fieldRequest:
			e.Body = r.rawCopy()
		case fieldCommandID:
			e.CommandID = r.str()
		case fieldBy:
			r.by(&e.By)
		default:
			r.unknown()
		}
	}
	if err := r.own(); err != nil {
		return err
	}
	if lacks := m.needed &^ seen; lacks != 0 {
		return &DecodeError{Code: MissingField, Field: lacks.names()[0], Reason: "expected the event to have this member"}
	}
	return nil
}

// shortName returns the constant for a topic's short name, to save the copy.
func shortName(name []byte) string {
	switch string(name) {
	case TopicRequests:
		return TopicRequests
	case TopicReports:
		return TopicReports
	case TopicSignals:
		return TopicSignals
	case TopicSessions:
		return TopicSessions
	case "clock":
		return "clock"
	}
	return string(name)
}

func parseCommandKind(name []byte) (operation.CommandKind, bool) {
	for k := operation.Submit; k <= operation.LoseLease; k++ {
		if k.String() == string(name) {
			return k, true
		}
	}
	return 0, false
}

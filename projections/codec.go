package projections

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
)

// What the tables hold of a state or an event is one string of bytes, because a column costs time for every row and most
// columns are never searched. The first byte is the version. There is no reading of older versions: tables that were
// written by another version are thrown away and made again from the journal.
const (
	stateVersion = 1
	eventVersion = 1
)

// FormatVersion changes when stored states or events do; a store of another version must be rebuilt.
const FormatVersion = stateVersion<<8 | eventVersion

// Optional parts of a state.
const (
	hasRetry = 1 << iota
	hasContext
	hasHold
	hasBlockedBy
	isBlocked
	hasUntil
	hasAttempt
	hasStarted
	hasCompleted
	hasSince
	hasWaitsFor
	hasOutput
	hasFailure
	hasBy
	hasRequestID
	hasOptions
	hasInput
)

// AppendState writes s without Request.Raw and Request.Data. What it writes depends on nothing else: equal states are equal
// bytes.
func AppendState(b []byte, s *operation.State) []byte {
	r := s.Request
	var has uint64
	set := func(cond bool, bit uint64) {
		if cond {
			has |= bit
		}
	}
	set(r.Retry != nil, hasRetry)
	set(r.Context != nil, hasContext)
	set(s.Holds != 0, hasHold)
	set(s.BlockedBy != "", hasBlockedBy)
	set(s.Blocked, isBlocked)
	set(s.Until != 0, hasUntil)
	set(s.Attempt != 0 || s.Failures != 0 || s.Session != "" || s.DispatchedPlace != 0 || s.StartedAttempt != 0, hasAttempt)
	set(s.StartedAt != 0, hasStarted)
	set(s.CompletedAt != 0, hasCompleted)
	set(s.Since != s.CreatedAt, hasSince)
	set(s.InputPlace != s.RequestedPlace, hasInput)
	set(s.WaitsFor != "", hasWaitsFor)
	set(s.Progress != nil || s.Carry != nil || s.Result != nil, hasOutput)
	set(s.Failure != nil, hasFailure)
	set(s.By != operation.By{}, hasBy)
	set(r.ID != s.ID || r.Organization != s.Org, hasRequestID)
	set(r.OnUpstreamFailure != 0 || r.ExplicitKey != "" || r.PostponeUntil != 0 || r.TimeLimit != 0, hasOptions)

	b = append(b, stateVersion)
	b = binary.AppendUvarint(b, has)
	b = append(b, byte(s.Status))
	b = appendString(b, s.Org)
	b = appendString(b, string(s.ID))
	b = binary.AppendUvarint(b, uint64(s.RequestedPlace))
	b = binary.AppendUvarint(b, uint64(s.LastPlace-s.RequestedPlace))
	if has&hasInput != 0 {
		b = binary.AppendUvarint(b, uint64(s.InputPlace))
	}
	b = binary.AppendVarint(b, int64(s.CreatedAt))
	b = binary.AppendVarint(b, int64(s.ModifiedAt-s.CreatedAt))
	b = appendString(b, r.Type)
	b = appendString(b, r.Name)
	b = appendString(b, r.DependencyToken)
	b = append(b, byte(r.Priority))
	if has&hasRequestID != 0 {
		b = appendString(b, r.Organization)
		b = appendString(b, string(r.ID))
	}
	if has&hasOptions != 0 {
		b = append(b, byte(r.OnUpstreamFailure))
		b = appendString(b, r.ExplicitKey)
		b = binary.AppendVarint(b, int64(r.PostponeUntil))
		b = binary.AppendVarint(b, int64(r.TimeLimit))
	}
	if p := r.Retry; p != nil {
		b = binary.AppendVarint(b, int64(p.MaxAttempts))
		b = binary.AppendVarint(b, int64(p.Initial))
		b = binary.AppendVarint(b, int64(p.Max))
		b = binary.BigEndian.AppendUint64(b, math.Float64bits(p.Multiplier))
		b = binary.BigEndian.AppendUint64(b, math.Float64bits(p.Jitter))
		b = binary.AppendVarint(b, int64(p.GiveUpAfter))
	}
	if c := r.Context; c != nil {
		b = binary.AppendVarint(b, int64(c.Depth))
		for _, text := range contextTexts(c) {
			b = appendString(b, *text)
		}
	}
	if has&hasHold != 0 {
		b = append(b, byte(s.Holds))
	}
	if has&hasBlockedBy != 0 {
		b = appendString(b, string(s.BlockedBy))
	}
	if has&hasUntil != 0 {
		b = binary.AppendVarint(b, int64(s.Until))
	}
	if has&hasAttempt != 0 {
		b = binary.AppendUvarint(b, uint64(s.Attempt))
		b = binary.AppendUvarint(b, uint64(s.Failures))
		b = appendString(b, string(s.Session))
		b = binary.AppendUvarint(b, uint64(s.DispatchedPlace))
		b = binary.AppendUvarint(b, uint64(s.StartedAttempt))
	}
	for _, t := range [...]struct {
		bit uint64
		at  operation.Time
	}{{hasStarted, s.StartedAt}, {hasCompleted, s.CompletedAt}, {hasSince, s.Since}} {
		if has&t.bit != 0 {
			b = binary.AppendVarint(b, int64(t.at-s.CreatedAt))
		}
	}
	if has&hasWaitsFor != 0 {
		b = appendString(b, s.WaitsFor)
	}
	if has&hasOutput != 0 {
		b = appendBytes(b, s.Progress)
		b = appendBytes(b, s.Carry)
		b = appendBytes(b, s.Result)
	}
	if f := s.Failure; f != nil {
		b = appendFailure(b, f)
	}
	if has&hasBy != 0 {
		b = appendString(b, s.By.Who)
		b = appendString(b, s.By.Reason)
	}
	return b
}

// DecodeState reads what [AppendState] wrote. The state shares no memory with b.
func DecodeState(b []byte, s *operation.State) error {
	*s = operation.State{}
	d := decoder{b: b}
	if v := d.byte(); v != stateVersion && d.err == nil {
		return fmt.Errorf("expected a stored state of version %d, but got %d; rebuild the tables from the journal", stateVersion, v)
	}
	has := d.uvarint()
	s.Status = operation.Status(d.byte())
	s.Org = d.string()
	s.ID = operation.ID(d.string())
	s.RequestedPlace = operation.Place(d.uvarint())
	s.LastPlace = s.RequestedPlace + operation.Place(d.uvarint())
	s.InputPlace = s.RequestedPlace
	if has&hasInput != 0 {
		s.InputPlace = operation.Place(d.uvarint())
	}
	s.CreatedAt = operation.Time(d.varint())
	s.ModifiedAt = s.CreatedAt + operation.Time(d.varint())
	r := &operation.Request{Organization: s.Org, ID: s.ID}
	s.Request = r
	r.Type, r.Name, r.DependencyToken = d.string(), d.string(), d.string()
	r.Priority = int8(d.byte())
	if has&hasRequestID != 0 {
		r.Organization, r.ID = d.string(), operation.ID(d.string())
	}
	if has&hasOptions != 0 {
		r.OnUpstreamFailure = operation.UpstreamPolicy(d.byte())
		r.ExplicitKey = d.string()
		r.PostponeUntil = operation.Time(d.varint())
		r.TimeLimit = time.Duration(d.varint())
	}
	if has&hasRetry != 0 {
		r.Retry = &retry.Policy{
			MaxAttempts: int(d.varint()), Initial: time.Duration(d.varint()), Max: time.Duration(d.varint()),
			Multiplier: math.Float64frombits(d.uint64()), Jitter: math.Float64frombits(d.uint64()), GiveUpAfter: time.Duration(d.varint()),
		}
	}
	if has&hasContext != 0 {
		c := &operation.Context{Depth: int32(d.varint())}
		for _, text := range contextTexts(c) {
			*text = d.string()
		}
		r.Context = c
	}
	if has&hasHold != 0 {
		s.Holds = operation.Holds(d.byte())
	}
	if has&hasBlockedBy != 0 {
		s.BlockedBy = operation.ID(d.string())
	}
	s.Blocked = has&isBlocked != 0
	if has&hasUntil != 0 {
		s.Until = operation.Time(d.varint())
	}
	if has&hasAttempt != 0 {
		s.Attempt, s.Failures = operation.Attempt(d.uvarint()), uint32(d.uvarint())
		s.Session = operation.SessionID(d.string())
		s.DispatchedPlace, s.StartedAttempt = operation.Place(d.uvarint()), operation.Attempt(d.uvarint())
	}
	s.Since = s.CreatedAt
	for _, t := range [...]struct {
		bit uint64
		at  *operation.Time
	}{{hasStarted, &s.StartedAt}, {hasCompleted, &s.CompletedAt}, {hasSince, &s.Since}} {
		if has&t.bit != 0 {
			*t.at = s.CreatedAt + operation.Time(d.varint())
		}
	}
	if has&hasWaitsFor != 0 {
		s.WaitsFor = d.string()
	}
	if has&hasOutput != 0 {
		s.Progress, s.Carry, s.Result = d.bytes(), d.bytes(), d.bytes()
	}
	if has&hasFailure != 0 {
		s.Failure = d.failure()
	}
	if has&hasBy != 0 {
		s.By = operation.By{Who: d.string(), Reason: d.string()}
	}
	return d.end("state")
}

// contextTexts lists the texts of c in the order in which they are stored.
func contextTexts(c *operation.Context) [10]*string {
	return [...]*string{
		&c.CorrelationID, &c.RequestID, &c.MessageName, &c.PrimaryEntityType, &c.RegardingType, &c.RegardingID,
		&c.RegardingName, &c.OwnerID, &c.CallerOrigin, &c.CreatedBy,
	}
}

// Optional parts of an event.
const (
	hasCommandID = 1 << iota
	hasEventBy
	hasEventHold
	hasEventUntil
	hasEventAttempt
	hasEventSession
	hasStartedAt
	hasEventFailure
	hasEventName
	hasEventOutput
	hasUpstream
	hasCommand
	hasCode
	hasReason
	hasStatus
)

// AppendHistory writes the event at this place behind the others of its operation. It leaves out what is the same for all of
// them (organization, id and request, which stand in the row) and what only events of the partition have. Two histories put
// together are a history.
func AppendHistory(b []byte, e *operation.Event, place operation.Place) []byte {
	var has uint64
	set := func(cond bool, bit uint64) {
		if cond {
			has |= bit
		}
	}
	set(e.CommandID != "", hasCommandID)
	set(e.By != operation.By{}, hasEventBy)
	set(e.Holds != 0, hasEventHold)
	set(e.Until != 0, hasEventUntil)
	set(e.Attempt != 0, hasEventAttempt)
	set(e.Session != "", hasEventSession)
	set(e.StartedAt != 0, hasStartedAt)
	set(e.Failure != nil, hasEventFailure)
	set(e.Event != "", hasEventName)
	set(e.Progress != nil || e.Carry != nil || e.Result != nil, hasEventOutput)
	set(e.Upstream != "", hasUpstream)
	set(e.Command != 0, hasCommand)
	set(e.Code != "", hasCode)
	set(e.Reason != "", hasReason)
	set(e.Status != 0, hasStatus)

	b = append(b, eventVersion, byte(e.Kind))
	b = binary.AppendUvarint(b, has)
	b = binary.AppendUvarint(b, uint64(place))
	b = binary.AppendVarint(b, int64(e.At))
	b = appendCause(b, &e.Cause)
	if has&hasCommandID != 0 {
		b = appendString(b, e.CommandID)
	}
	if has&hasEventBy != 0 {
		b = appendString(b, e.By.Who)
		b = appendString(b, e.By.Reason)
	}
	if has&hasEventHold != 0 {
		b = append(b, byte(e.Holds))
	}
	if has&hasEventUntil != 0 {
		b = binary.AppendVarint(b, int64(e.Until))
	}
	if has&hasEventAttempt != 0 {
		b = binary.AppendUvarint(b, uint64(e.Attempt))
	}
	if has&hasEventSession != 0 {
		b = appendString(b, string(e.Session))
	}
	if has&hasStartedAt != 0 {
		b = binary.AppendVarint(b, int64(e.StartedAt))
	}
	if e.Failure != nil {
		b = appendFailure(b, e.Failure)
	}
	if has&hasEventName != 0 {
		b = appendString(b, e.Event)
	}
	if has&hasEventOutput != 0 {
		b = appendBytes(b, e.Progress)
		b = appendBytes(b, e.Carry)
		b = appendBytes(b, e.Result)
	}
	if has&hasUpstream != 0 {
		b = appendString(b, string(e.Upstream))
	}
	if has&hasCommand != 0 {
		b = append(b, byte(e.Command))
	}
	if has&hasCode != 0 {
		b = appendString(b, string(e.Code))
	}
	if has&hasReason != 0 {
		b = appendString(b, e.Reason)
	}
	if has&hasStatus != 0 {
		b = append(b, byte(e.Status))
	}
	return b
}

// DecodeHistory reads what [AppendHistory] wrote for the operation in row and appends the events after the given place to out,
// until out has limit of them. Requests are the row's.
func DecodeHistory(out []Entry, b []byte, row *Row, after operation.Place, limit int) ([]Entry, error) {
	d := decoder{b: b}
	for len(d.b) > 0 && d.err == nil && len(out) < limit {
		if v := d.byte(); v != eventVersion {
			return out, fmt.Errorf("expected a stored event of version %d, but got %d; rebuild the tables from the journal", eventVersion, v)
		}
		e := operation.Event{Kind: operation.EventKind(d.byte()), Org: row.Org, ID: row.ID}
		if int(e.Kind) >= operation.EventKinds {
			return out, fmt.Errorf("expected a stored event of a known kind, but got %d; rebuild the tables from the journal", e.Kind)
		}
		has := d.uvarint()
		place := operation.Place(d.uvarint())
		e.At = operation.Time(d.varint())
		e.Cause = d.cause()
		if has&hasCommandID != 0 {
			e.CommandID = d.string()
		}
		if has&hasEventBy != 0 {
			e.By = operation.By{Who: d.string(), Reason: d.string()}
		}
		if has&hasEventHold != 0 {
			e.Holds = operation.Holds(d.byte())
		}
		if has&hasEventUntil != 0 {
			e.Until = operation.Time(d.varint())
		}
		if has&hasEventAttempt != 0 {
			e.Attempt = operation.Attempt(d.uvarint())
		}
		if has&hasEventSession != 0 {
			e.Session = operation.SessionID(d.string())
		}
		if has&hasStartedAt != 0 {
			e.StartedAt = operation.Time(d.varint())
		}
		if has&hasEventFailure != 0 {
			e.Failure = d.failure()
		}
		if has&hasEventName != 0 {
			e.Event = d.string()
		}
		if has&hasEventOutput != 0 {
			e.Progress, e.Carry, e.Result = d.bytes(), d.bytes(), d.bytes()
		}
		if has&hasUpstream != 0 {
			e.Upstream = operation.ID(d.string())
		}
		if has&hasCommand != 0 {
			e.Command = operation.CommandKind(d.byte())
		}
		if has&hasCode != 0 {
			e.Code = operation.RejectionCode(d.string())
		}
		if has&hasReason != 0 {
			e.Reason = d.string()
		}
		if has&hasStatus != 0 {
			e.Status = operation.Status(d.byte())
		}
		if e.Kind == operation.Requested || e.Kind == operation.Retried {
			e.Request = row.Request
		}
		if d.err == nil && place > after {
			out = append(out, Entry{Partition: row.Partition, Place: place, Event: e})
		}
	}
	if d.err != nil {
		return out, d.end("history")
	}
	return out, nil
}

// AppendRejection writes r without partition, place and time, which stores keep beside it.
func AppendRejection(b []byte, r *Rejection) []byte {
	b = append(b, eventVersion, byte(r.Command))
	b = appendString(b, r.Org)
	b = appendString(b, string(r.ID))
	b = appendString(b, r.CommandID)
	b = appendString(b, string(r.Code))
	b = appendString(b, r.Reason)
	b = appendString(b, r.By.Who)
	b = appendString(b, r.By.Reason)
	return appendCause(b, &r.Cause)
}

// DecodeRejection reads what [AppendRejection] wrote.
func DecodeRejection(b []byte, r *Rejection) error {
	d := decoder{b: b}
	if v := d.byte(); v != eventVersion && d.err == nil {
		return fmt.Errorf("expected a stored rejection of version %d, but got %d; rebuild the tables from the journal", eventVersion, v)
	}
	r.Command = operation.CommandKind(d.byte())
	r.Org, r.ID, r.CommandID = d.string(), operation.ID(d.string()), d.string()
	r.Code, r.Reason = operation.RejectionCode(d.string()), d.string()
	r.By = operation.By{Who: d.string(), Reason: d.string()}
	r.Cause = d.cause()
	return d.end("rejection")
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// appendBytes keeps nil and empty apart.
func appendBytes(b, s []byte) []byte {
	if s == nil {
		return append(b, 0)
	}
	return append(binary.AppendUvarint(b, uint64(len(s))+1), s...)
}

func appendFailure(b []byte, f *operation.Failure) []byte {
	b = appendString(b, f.Code)
	b = binary.AppendVarint(b, int64(f.ErrorCode))
	b = appendString(b, f.Message)
	b = appendString(b, f.FriendlyMessage)
	return append(b, byte(f.Class))
}

func appendCause(b []byte, c *operation.Cause) []byte {
	b = appendString(b, c.Topic)
	return binary.AppendVarint(b, c.Offset)
}

// decoder takes values from b until one is not there; from then on all are zero.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail() {
	if d.err == nil {
		d.err = fmt.Errorf("expected more bytes, but %d are left", len(d.b))
	}
	d.b = nil
}

func (d *decoder) end(what string) error {
	switch {
	case d.err != nil:
		return fmt.Errorf("read a stored %s: %w; rebuild the tables from the journal", what, d.err)
	case len(d.b) > 0:
		return fmt.Errorf("read a stored %s: expected its end, but %d bytes follow; rebuild the tables from the journal", what, len(d.b))
	}
	return nil
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) uint64() uint64 {
	if len(d.b) < 8 {
		d.fail()
		return 0
	}
	v := binary.BigEndian.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

func (d *decoder) take(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) string() string { return string(d.take(d.uvarint())) }

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n == 0 {
		return nil
	}
	return append([]byte{}, d.take(n-1)...)
}

func (d *decoder) failure() *operation.Failure {
	return &operation.Failure{
		Code: d.string(), ErrorCode: int32(d.varint()), Message: d.string(), FriendlyMessage: d.string(), Class: retry.Class(d.byte()),
	}
}

func (d *decoder) cause() operation.Cause {
	return operation.Cause{Topic: d.string(), Offset: d.varint()}
}

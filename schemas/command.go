package schemas

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
)

// EncodeRequest makes the record that asks for q, from its fields. The event's id is the operation's.
func EncodeRequest(t Topics, q *operation.Request) *kgo.Record {
	return EncodeCommand(t, &operation.Command{Kind: operation.Submit, Request: q}, nil)
}

// EncodeCommand makes the record of a caller's command (Submit to Delete). key is the partition key of the operation, which
// whoever gives a command must know, see [operation.Key]; a Submit has its own, and key is not looked at.
//
// The event's id is c.CommandID; a Submit without one has the operation's id instead.
func EncodeCommand(t Topics, c *operation.Command, key []byte) *kgo.Record {
	m := commandByKind[c.Kind]
	if c.Kind == operation.Submit {
		q := c.Request
		id := c.CommandID
		if id == "" {
			id = string(q.ID)
		}
		return record(m, t.Requests(), []byte(q.Key()), []byte(id), sourceOf[TopicRequests], []byte(q.ID), AppendRequest(make([]byte, 0, rawSize(q)), q))
	}
	o := object{b: make([]byte, 0, 128+len(c.Data))}
	o.open()
	o.str("organization", c.Org)
	o.str("id", string(c.ID))
	o.by(c.By)
	if c.Kind == operation.Postpone {
		o.time("until", c.Until)
	}
	o.rawOpt("data", c.Data)
	o.close()
	return record(m, t.Requests(), key, []byte(c.CommandID), sourceOf[TopicRequests], []byte(c.ID), o.b)
}

// DecodeCommand reads a record of the topic requests, in binary or structured mode. The error is a *[DecodeError] or a
// *[Refusal]; with a refusal the command holds as much of Kind, Org, ID and CommandID as may stand in an answer. Cause is
// the record's place on the topic requests; for a forwarded record it must be replaced by that of the signal.
//
// A Submit has a CommandID only when the event's id is not the operation's.
func DecodeCommand(rec *kgo.Record) (operation.Command, error) {
	c, refusal, err := decodeCommand(rec)
	c.Cause = operation.Cause{Topic: TopicRequests, Offset: rec.Offset}
	if err != nil {
		return c, err.at(rec)
	}
	if refusal != nil {
		refusal.Kind, refusal.Org, refusal.ID, refusal.CommandID = c.Kind, c.Org, c.ID, c.CommandID
		return c, refusal
	}
	return c, nil
}

func decodeCommand(rec *kgo.Record) (operation.Command, *Refusal, *DecodeError) {
	var c operation.Command
	if len(rec.Value) > MaxRequestBytes {
		return c, nil, &DecodeError{Code: TooLarge, Reason: fmt.Sprintf("expected at most %d bytes, but got %d", MaxRequestBytes, len(rec.Value))}
	}
	// No operation has a longer key, and a record is kept whole when it has to be forwarded.
	if len(rec.Key) > MaxHeaderBytes {
		return c, nil, &DecodeError{Code: TooLarge, Field: "key", Reason: fmt.Sprintf("expected a key of at most %d bytes, but got %d", MaxHeaderBytes, len(rec.Key))}
	}
	var a attributes
	if err := a.read(rec); err != nil {
		return c, nil, err
	}
	value := rec.Value
	if isStructured(a.contentType) {
		a = attributes{}
		var err *DecodeError
		if value, err = a.structured(rec.Value); err != nil {
			return c, nil, err
		}
	}
	m, err := a.check(TopicRequests)
	if err != nil {
		return c, nil, err
	}
	c.Kind = m.Command
	if c.Kind != operation.Submit {
		return parseCommand(c.Kind, value, string(a.id))
	}
	q, refusal, err := parseRequest(value, string(a.id))
	switch {
	case err != nil:
		return c, nil, err
	case refusal != nil:
		c.Org, c.ID, c.CommandID = refusal.Org, refusal.ID, answerable(string(a.id), MaxID)
		return c, refusal, nil
	}
	c.Org, c.ID, c.Request = q.Organization, q.ID, q
	if string(a.id) != string(q.ID) {
		c.CommandID = string(a.id)
		if len(c.CommandID) > MaxID || !clean(c.CommandID) {
			c.CommandID = ""
			return c, &Refusal{Code: InvalidCharacters, Field: HeaderID, Reason: fmt.Sprintf("expected at most %d bytes without control and format characters", MaxID)}, nil
		}
	}
	return c, nil, nil
}

// parseCommand reads the data of a caller's command other than Submit.
func parseCommand(kind operation.CommandKind, value []byte, id string) (operation.Command, *Refusal, *DecodeError) {
	c := operation.Command{Kind: kind, CommandID: id}
	r := newReader(value, MaxRequestBytes)
	timed := false
	for o := r.object(); r.next(o); {
		switch name := string(r.name); {
		case name == "organization":
			c.Org = r.str()
		case name == "id":
			c.ID = operation.ID(r.str())
		case name == "by":
			r.by(&c.By)
		case name == "until" && kind == operation.Postpone:
			c.Until, timed = r.instant(), true
		case name == "data" && kind == operation.Retry:
			c.Data = r.opaque(MaxRequestBytes)
		default:
			r.unknown()
		}
	}
	err := r.end()
	if err == nil && r.refusal == nil {
		r.refusal = validateCommand(&c)
	}
	if err == nil && r.refusal == nil && kind == operation.Postpone && !timed {
		r.refusal = &Refusal{Code: Required, Field: "until", Reason: "expected a value, but it is missing or empty"}
	}
	if err != nil || r.refusal != nil {
		c = operation.Command{
			Kind: kind, Org: answerable(c.Org, MaxOrganization), ID: operation.ID(answerable(string(c.ID), MaxID)), CommandID: answerable(id, MaxID),
		}
	}
	return c, r.refusal, err
}

// structured takes attributes and data from a value in structured mode.
func (a *attributes) structured(value []byte) (data []byte, err *DecodeError) {
	r := newReader(value, MaxRequestBytes)
	r.deepest++ // the limit is the request's, and that is the next level
	datas := 0
	for o := r.object(); r.next(o); {
		name := string(r.name)
		if name != "data" && r.peek() == 'n' { // null is how CloudEvents may write an attribute that is not set
			r.skip()
			continue
		}
		switch name {
		case "data":
			data = r.raw()
			datas++
		case "data_base64":
			datas++
			text := r.text()
			decoded, err := base64.StdEncoding.DecodeString(string(text))
			if err != nil && r.refusal == nil {
				r.fail(InvalidAttributes, "expected base64")
			}
			data = decoded
		case "datacontenttype":
			a.contentType = r.text()
		default:
			slot := a.slot("ce_" + name)
			if slot == nil {
				r.skip() // an extension that somebody else understands
				continue
			}
			*slot = r.text()
			if len(*slot) > MaxHeaderBytes {
				r.fail(InvalidAttributes, "expected at most %d bytes, but got %d", MaxHeaderBytes, len(*slot))
			}
		}
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	if datas > 1 {
		return nil, &DecodeError{Code: InvalidAttributes, Field: "data_base64", Reason: "expected data or data_base64, but got both"}
	}
	if r.refusal != nil {
		return nil, &DecodeError{Code: InvalidAttributes, Field: r.refusal.Field, Reason: r.refusal.Reason}
	}
	return data, nil
}

// KeyOf returns the partition key of the operation that a decoded record of the topic requests is about. A Submit says it by
// itself, whatever key its producer chose; any other command by its record's key or its partitionkey attribute, if that
// is one of the organization; without either it can only be meant for an operation that has no token and no key of its own.
func KeyOf(rec *kgo.Record, c *operation.Command) []byte {
	if c.Request != nil {
		return []byte(c.Request.Key())
	}
	ours := func(key []byte) bool {
		return len(key) > len(c.Org) && string(key[:len(c.Org)]) == c.Org && key[len(c.Org)] == '/'
	}
	if ours(rec.Key) {
		return rec.Key
	}
	var a attributes
	if a.read(rec) == nil && isStructured(a.contentType) {
		_, _ = a.structured(rec.Value) // it was decoded before, so there is nothing wrong with it
	}
	if ours(a.partitionKey) {
		return bytes.Clone(a.partitionKey)
	}
	return []byte(operation.Key(c.Org, "", "", c.ID))
}

// KeyToKeep is KeyOf where a request can have that key, and else the key of an operation that has none of its own: the record's
// sender may have put anything there, and it is to stand in the journal.
func KeyToKeep(rec *kgo.Record, c *operation.Command) []byte {
	key := KeyOf(rec, c)
	if len(key)-len(c.Org)-1 > MaxText || !clean(string(key)) {
		return []byte(operation.Key(c.Org, "", "", c.ID))
	}
	return key
}

// ExpectedPartition is the partition of n on which a decoded record of the topic requests should stand; on any other, it
// has to be forwarded.
func ExpectedPartition(rec *kgo.Record, c *operation.Command, n int32) int32 {
	return PartitionFor(KeyOf(rec, c), n)
}

// EncodeReport makes the record of a worker's report (Start to Return). key is the partition key of the operation. Texts
// that are too long are cut; a result, checkpoint or progress must be valid JSON within its limit, see [CheckJSON].
//
// The event's id is c.CommandID, or one made of organization, operation, attempt and kind.
func EncodeReport(t Topics, c *operation.Command, key []byte) *kgo.Record {
	m := commandByKind[c.Kind]
	o := object{b: make([]byte, 0, 256+len(c.Result)+len(c.Carry)+len(c.Progress)+len(c.Session)+len(c.ID))}
	o.open()
	o.str("organization", c.Org)
	o.str("id", string(c.ID))
	o.int("attempt", int64(c.Attempt))
	o.str("session", string(c.Session))
	if c.StartedAt != 0 || c.Kind == operation.Start {
		o.time("startedAt", c.StartedAt)
	}
	o.timeOpt("until", c.Until)
	if c.Failure != nil {
		o.failure("error", c.Failure)
	}
	o.strOpt("event", c.Event)
	o.rawOpt("progress", c.Progress)
	o.rawOpt("checkpoint", c.Carry)
	o.rawOpt("result", c.Result)
	o.close()
	id := []byte(c.CommandID)
	if len(id) == 0 {
		id = make([]byte, 0, 32+len(c.Org)+len(c.ID))
		id = append(append(id, c.Org...), '/')
		id = append(append(id, c.ID...), '/')
		id = append(appendInt(id, int64(c.Attempt)), '/')
		id = append(id, c.Kind.String()...)
	}
	return record(m, t.Reports(), key, id, sourceOf[TopicReports], []byte(c.ID), o.b)
}

// DecodeReport reads a record of the topic reports. The error is a *[DecodeError] or a *[Refusal].
func DecodeReport(rec *kgo.Record) (operation.Command, error) {
	c, refusal, err := decodeReport(rec)
	if err != nil {
		return c, err.at(rec)
	}
	if refusal != nil {
		refusal.Kind, refusal.Org, refusal.ID = c.Kind, answerable(c.Org, MaxOrganization), operation.ID(answerable(string(c.ID), MaxID))
		return operation.Command{Kind: c.Kind, Org: refusal.Org, ID: refusal.ID, Cause: c.Cause}, refusal
	}
	return c, nil
}

func decodeReport(rec *kgo.Record) (operation.Command, *Refusal, *DecodeError) {
	c := operation.Command{Cause: operation.Cause{Topic: TopicReports, Offset: rec.Offset}}
	var a attributes
	m, err := a.open(rec, TopicReports)
	if err != nil {
		return c, nil, err
	}
	c.Kind = m.Command
	r := newReader(rec.Value, MaxReportBytes)
	r.deepest, r.open = maxReportDepth, true
	kind, started := c.Kind, false
	for o := r.object(); r.next(o); {
		switch name := string(r.name); {
		case name == "organization":
			c.Org = r.str()
		case name == "id":
			c.ID = operation.ID(r.str())
		case name == "attempt":
			c.Attempt = operation.Attempt(r.integer(1, math.MaxUint32))
		case name == "session":
			c.Session = operation.SessionID(r.str())
		case name == "startedAt":
			c.StartedAt, started = r.instant(), true
		case name == "until" && kind == operation.Yield:
			c.Until = r.instant()
		case name == "event" && kind == operation.Yield:
			c.Event = r.str()
		case name == "error" && (kind == operation.Fail || kind == operation.Stop):
			c.Failure = r.failure("error")
		case name == "progress" && kind == operation.Progress:
			c.Progress = r.opaque(MaxProgressBytes)
		case name == "checkpoint" && kind != operation.Start && kind != operation.Succeed:
			c.Carry = r.opaque(MaxCheckpointBytes)
		case name == "result" && kind == operation.Succeed:
			c.Result = r.opaque(MaxResultBytes)
		default:
			r.unknown()
		}
	}
	if err := r.end(); err != nil || r.refusal != nil {
		return c, r.refusal, err
	}
	r.prefix, r.name = "", nil
	must := func(ok bool, field string) {
		if !ok && r.refusal == nil {
			r.refusal = &Refusal{Code: Required, Field: field, Reason: "expected a value, but it is missing or empty"}
		}
	}
	must(c.Org != "", "organization")
	must(c.ID != "", "id")
	must(c.Attempt != 0, "attempt")
	must(c.Session != "", "session")
	must(started || kind != operation.Start, "startedAt")
	must(c.Failure != nil || kind != operation.Fail, "error")
	for _, text := range []struct{ value, field string }{{c.Org, "organization"}, {string(c.ID), "id"}, {string(c.Session), "session"}, {c.Event, "event"}} {
		if r.refusal == nil && len(text.value) > MaxText {
			r.refusal = &Refusal{Code: TooLong, Field: text.field, Reason: fmt.Sprintf("expected at most %d bytes, but got %d", MaxText, len(text.value))}
		}
		if r.refusal == nil && !clean(text.value) {
			r.refusal = &Refusal{Code: InvalidCharacters, Field: text.field, Reason: "expected text without control and format characters"}
		}
	}
	return c, r.refusal, nil
}

// CheckJSON says whether b may stand in a message as it is: valid JSON, UTF-8, no member named twice, not nested too deep,
// at most limit bytes. The error is a *[DecodeError] or a *[Refusal] without a field.
func CheckJSON(b []byte, limit int) error {
	r := newReader(b, maxOwnBytes)
	r.space()
	r.opaque(limit)
	if err := r.end(); err != nil {
		return err
	}
	if r.refusal != nil {
		return r.refusal
	}
	return nil
}

func (o *object) by(by operation.By) {
	if by == (operation.By{}) {
		return
	}
	o.member("by")
	o.open()
	o.strOpt("who", by.Who)
	o.strOpt("reason", by.Reason)
	o.close()
}

func (r *reader) by(by *operation.By) {
	outer, o := r.enter("by")
	for r.next(o) {
		switch string(r.name) {
		case "who":
			by.Who = r.str()
		case "reason":
			by.Reason = r.str()
		default:
			r.unknown()
		}
	}
	r.leave(outer)
}

func (o *object) failure(name string, f *operation.Failure) {
	o.member(name)
	o.open()
	o.strOpt("code", cut(f.Code, MaxText))
	o.intOpt("errorCode", int64(f.ErrorCode))
	o.strOpt("message", cut(f.Message, MaxMessageChars))
	o.strOpt("friendlyMessage", cut(f.FriendlyMessage, MaxMessageChars))
	if f.Class != retry.Unknown {
		o.str("class", f.Class.String())
	}
	o.close()
}

func (r *reader) failure(member string) *operation.Failure {
	f := new(operation.Failure)
	outer, o := r.enter(member)
	for r.next(o) {
		switch string(r.name) {
		case "code":
			f.Code = cut(r.str(), MaxText)
		case "errorCode":
			f.ErrorCode = int32(r.integer(math.MinInt32, math.MaxInt32))
		case "message":
			f.Message = cut(r.str(), MaxMessageChars)
		case "friendlyMessage":
			f.FriendlyMessage = cut(r.str(), MaxMessageChars)
		case "class":
			name := r.text()
			class, ok := retry.ParseClass(string(name))
			if !ok {
				r.refuse(UnknownValue, "expected fail, retry or suspend, but got %.64q", name)
			}
			f.Class = class
		default:
			r.unknown()
		}
	}
	r.leave(outer)
	return f
}

// cut shortens a text to so many characters.
func cut(s string, chars int) string {
	if len(s) <= chars || utf8.RuneCountInString(s) <= chars {
		return s
	}
	n := 0
	for i := range s {
		if n == chars {
			return strings.Clone(s[:i])
		}
		n++
	}
	return s
}

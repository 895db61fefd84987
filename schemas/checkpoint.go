package schemas

import (
	"encoding/base64"
	"math"
	"strconv"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
)

// Set names one set of checkpoint records: who wrote it, and which one of that writer's it is. Every record of a set
// carries it, so that what a stale writer left among them can be told from it.
type Set struct {
	Writer operation.Place // of the event that opened the partition for the writer
	Number uint64          // of the writer's sets, from 1
}

// Gone is an operation that is no longer live.
type Gone struct {
	Org string
	ID  operation.ID
}

// Known is an id that a partition has seen and that is not live.
type Known struct {
	Hash   [16]byte
	Body   uint64
	Status operation.Status
}

// Position closes a set: with it, and only with it, the set counts.
type Position struct {
	Base     bool  // the set holds every live operation; else it continues Builds
	Builds   Set   // zero for a base
	Records  int64 // of the set, without this one
	Chain    Chain // of the journal, behind the last event that the set has in it
	Requests int64 // the next offset to read
	Reports  int64
	Signals  int64
	Now      operation.Time
	Effects  operation.Place // effects of events below it need not be sent again
}

// Checkpoint is one record of the topic checkpoints; one of the fields beside Set is given.
type Checkpoint struct {
	Set      Set
	State    *operation.State
	Gone     []Gone
	Known    []Known
	Position *Position
}

// Indices into messageCheckpoint.
const (
	checkpointOperation = iota
	checkpointGone
	checkpointKnown
	checkpointPosition
)

// EncodeCheckpoint makes the record of c on the given partition.
func EncodeCheckpoint(t Topics, partition int32, c *Checkpoint) *kgo.Record {
	o := object{b: make([]byte, 0, 1024)}
	o.open()
	o.int("writer", int64(c.Set.Writer))
	o.number("set", c.Set.Number)
	kind := checkpointOperation
	var key string
	switch {
	case c.State != nil:
		key = string(c.State.ID)
		o.member("state")
		o.b = AppendState(o.b, c.State)
	case c.Position != nil:
		kind, key = checkpointPosition, "position"
		o.position(c.Position)
	case c.Known != nil:
		kind, key = checkpointKnown, "known"
		o.member("known")
		o.b = append(o.b, '[')
		o.comma = false
		for i := range c.Known {
			k := &c.Known[i]
			if i > 0 {
				o.b = append(o.b, ',')
			}
			o.open()
			o.member("hash")
			o.b = append(base64.RawURLEncoding.AppendEncode(append(o.b, '"'), k.Hash[:]), '"')
			if k.Body != 0 {
				o.number("body", k.Body)
			}
			o.str("status", k.Status.String())
			o.close()
		}
		o.b = append(o.b, ']')
	default:
		kind, key = checkpointGone, "gone"
		o.member("gone")
		o.b = append(o.b, '[')
		for i := range c.Gone {
			if i > 0 {
				o.b = append(o.b, ',')
			}
			o.open()
			o.str("organization", c.Gone[i].Org)
			o.str("id", string(c.Gone[i].ID))
			o.close()
		}
		o.b = append(o.b, ']')
	}
	o.close()
	id := make([]byte, 0, 64+len(key))
	id = append(appendInt(id, int64(c.Set.Writer)), '/')
	id = append(strconv.AppendUint(id, c.Set.Number, 10), '/')
	id = append(id, key...)
	rec := record(messageCheckpoint[kind], t.Checkpoints(), []byte(key), id, ownScheduler, nil, o.b)
	rec.Partition = partition
	return rec
}

// number appends an unsigned number as a string: JSON's numbers are exact in every reader up to 2^53 only.
func (o *object) number(name string, n uint64) {
	o.member(name)
	o.b = append(strconv.AppendUint(append(o.b, '"'), n, 10), '"')
}

func (r *reader) number64() uint64 {
	text := r.text()
	n, err := strconv.ParseUint(string(text), 10, 64)
	if err != nil && r.err == nil {
		r.refuse(OutOfRange, "expected a number as a string, but got %.40q", text)
	}
	return n
}

func (o *object) position(p *Position) {
	if p.Base {
		o.bool("base", true)
	}
	if p.Builds != (Set{}) {
		o.member("builds")
		o.open()
		o.int("writer", int64(p.Builds.Writer))
		o.number("set", p.Builds.Number)
		o.close()
	}
	o.int("records", p.Records)
	o.member("chain")
	o.b = append(o.b, '"')
	o.b = p.Chain.append(o.b)
	o.b = append(o.b, '"')
	o.int("requests", p.Requests)
	o.int("reports", p.Reports)
	o.int("signals", p.Signals)
	o.timeOpt("now", p.Now)
	o.int("effects", int64(p.Effects))
}

// DecodeCheckpoint reads a record of the topic checkpoints. The error is a *[DecodeError].
func DecodeCheckpoint(rec *kgo.Record) (Checkpoint, error) {
	var c Checkpoint
	if err := decodeCheckpoint(&c, rec); err != nil {
		return Checkpoint{}, err.at(rec)
	}
	return c, nil
}

func decodeCheckpoint(c *Checkpoint, rec *kgo.Record) *DecodeError {
	var a attributes
	m, err := a.open(rec, TopicCheckpoints)
	if err != nil {
		return err
	}
	kind := checkpointOperation
	for i := range messageCheckpoint {
		if messageCheckpoint[i] == m {
			kind = i
		}
	}
	if kind == checkpointPosition {
		c.Position = new(Position)
	}
	r := newOwnReader(rec.Value)
	d := demands{m: m}
	for o := r.object(); r.next(o); {
		d.saw(r.name)
		switch name := string(r.name); {
		case name == "writer":
			c.Set.Writer = operation.Place(r.integer(0, math.MaxInt64))
		case name == "set":
			c.Set.Number = r.number64()
		case name == "state" && kind == checkpointOperation:
			c.State = new(operation.State)
			r.state(c.State)
		case name == "gone" && kind == checkpointGone:
			c.Gone = r.gone()
		case name == "known" && kind == checkpointKnown:
			c.Known = r.known()
		case kind == checkpointPosition:
			r.position(c.Position)
		default:
			r.unknown()
		}
	}
	return d.met(&r)
}

func (r *reader) gone() []Gone {
	all := []Gone{}
	if !r.array() {
		return all
	}
	for i := 0; r.element(i); i++ {
		var g Gone
		for o := r.object(); r.next(o); {
			switch string(r.name) {
			case "organization":
				g.Org = r.str()
			case "id":
				g.ID = operation.ID(r.str())
			default:
				r.unknown()
			}
		}
		all = append(all, g)
	}
	return all
}

func (r *reader) known() []Known {
	all := []Known{}
	if !r.array() {
		return all
	}
	for i := 0; r.element(i); i++ {
		var k Known
		for o := r.object(); r.next(o); {
			switch string(r.name) {
			case "hash":
				text := r.text()
				if len(text) != base64url.EncodedLen(len(k.Hash)) {
					r.refuse(InvalidType, "expected 16 bytes in base64url, but got %.40q", text)
				} else if _, err := base64url.Decode(k.Hash[:], text); err != nil {
					r.refuse(InvalidType, "expected 16 bytes in base64url, but got %.40q", text)
				}
			case "body":
				k.Body = r.number64()
			case "status":
				k.Status = r.status()
			default:
				r.unknown()
			}
		}
		all = append(all, k)
	}
	return all
}

func (r *reader) status() operation.Status {
	name := r.text()
	s, ok := operation.ParseStatus(string(name))
	if !ok {
		r.refuse(UnknownValue, "expected the name of a status, but got %.64q", name)
	}
	return s
}

func (r *reader) position(p *Position) {
	switch string(r.name) {
	case "base":
		p.Base = r.boolean()
	case "builds":
		outer, o := r.enter("builds")
		for r.next(o) {
			switch string(r.name) {
			case "writer":
				p.Builds.Writer = operation.Place(r.integer(0, math.MaxInt64))
			case "set":
				p.Builds.Number = r.number64()
			default:
				r.unknown()
			}
		}
		r.leave(outer)
	case "records":
		p.Records = r.integer(0, math.MaxInt64)
	case "chain":
		if text := r.text(); r.err == nil {
			if err := p.Chain.UnmarshalText(text); err != nil {
				r.refuse(InvalidType, "%s", err.Error())
			}
		}
	case "requests":
		p.Requests = r.integer(0, math.MaxInt64)
	case "reports":
		p.Reports = r.integer(0, math.MaxInt64)
	case "signals":
		p.Signals = r.integer(0, math.MaxInt64)
	case "now":
		p.Now = r.instant()
	case "effects":
		p.Effects = operation.Place(r.integer(0, math.MaxInt64))
	default:
		r.unknown()
	}
}

// AppendState appends s in full as JSON. Fields with zero values are left out.
func AppendState(dst []byte, s *operation.State) []byte {
	o := object{b: dst}
	o.open()
	o.strOpt("organization", s.Org)
	o.strOpt("id", string(s.ID))
	if s.Request != nil {
		o.raw("operation", s.Request.Raw)
	}
	o.str("status", s.Status.String())
	if s.Holds != 0 {
		o.holds("waits", s.Holds)
	}
	o.timeOpt("until", s.Until)
	o.strOpt("blockedBy", string(s.BlockedBy))
	if s.Blocked {
		o.bool("blocked", true)
	}
	o.intOpt("attempt", int64(s.Attempt))
	o.intOpt("failures", int64(s.Failures))
	o.strOpt("session", string(s.Session))
	o.intOpt("dispatchedPlace", int64(s.DispatchedPlace))
	o.intOpt("startedAttempt", int64(s.StartedAttempt))
	o.intOpt("requestedPlace", int64(s.RequestedPlace))
	o.intOpt("inputPlace", int64(s.InputPlace))
	o.intOpt("lastPlace", int64(s.LastPlace))
	o.timeOpt("createdAt", s.CreatedAt)
	o.timeOpt("modifiedAt", s.ModifiedAt)
	o.timeOpt("startedAt", s.StartedAt)
	o.timeOpt("completedAt", s.CompletedAt)
	o.timeOpt("since", s.Since)
	o.strOpt("waitsFor", s.WaitsFor)
	o.rawOpt("progress", s.Progress)
	o.rawOpt("checkpoint", s.Carry)
	o.rawOpt("result", s.Result)
	if s.Failure != nil {
		o.failure("error", s.Failure)
	}
	o.by(s.By)
	o.close()
	return o.b
}

// ParseState reads what AppendState has written. The error is a *[DecodeError].
func ParseState(data []byte) (*operation.State, error) {
	s := new(operation.State)
	r := newOwnReader(data)
	r.state(s)
	if err := r.own(); err != nil {
		return nil, err
	}
	return s, nil
}

func (r *reader) state(s *operation.State) {
	place := func() operation.Place { return operation.Place(r.integer(0, math.MaxInt64)) }
	for o := r.object(); r.next(o); {
		switch string(r.name) {
		case "organization":
			s.Org = r.str()
		case "id":
			s.ID = operation.ID(r.str())
		case "operation":
			s.Request = r.accepted("operation")
		case "status":
			s.Status = r.status()
		case "waits":
			s.Holds = r.holds()
		case "until":
			s.Until = r.instant()
		case "blockedBy":
			s.BlockedBy = operation.ID(r.str())
		case "blocked":
			s.Blocked = r.boolean()
		case "attempt":
			s.Attempt = operation.Attempt(r.integer(0, math.MaxUint32))
		case "failures":
			s.Failures = uint32(r.integer(0, math.MaxUint32))
		case "session":
			s.Session = operation.SessionID(r.str())
		case "dispatchedPlace":
			s.DispatchedPlace = place()
		case "startedAttempt":
			s.StartedAttempt = operation.Attempt(r.integer(0, math.MaxUint32))
		case "requestedPlace":
			s.RequestedPlace = place()
		case "inputPlace":
			s.InputPlace = place()
		case "lastPlace":
			s.LastPlace = place()
		case "createdAt":
			s.CreatedAt = r.instant()
		case "modifiedAt":
			s.ModifiedAt = r.instant()
		case "startedAt":
			s.StartedAt = r.instant()
		case "completedAt":
			s.CompletedAt = r.instant()
		case "since":
			s.Since = r.instant()
		case "waitsFor":
			s.WaitsFor = r.str()
		case "progress":
			s.Progress = r.rawCopy()
		case "checkpoint":
			s.Carry = r.rawCopy()
		case "result":
			s.Result = r.rawCopy()
		case "error":
			s.Failure = r.failure("error")
		case "by":
			r.by(&s.By)
		default:
			r.unknown()
		}
	}
}

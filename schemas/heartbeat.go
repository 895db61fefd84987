package schemas

import (
	"math"
	"math/bits"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
)

// SessionState says what a worker session takes.
type SessionState uint8

// The states of a session.
const (
	SessionRunning  SessionState = iota // takes work
	SessionDraining                     // finishes what it has
	SessionEnded                        // has given everything back
)

var sessionStates = [...]string{"running", "draining", "ended"}

func (s SessionState) String() string { return sessionStates[s] }

// Heartbeat is what a worker session says of itself, again and again.
type Heartbeat struct {
	Session  operation.SessionID
	Pool     string
	Types    []string // names of the operation types that it serves
	Slots    int32    // handlers that it runs at once
	Queue    int32    // items that it takes beyond those
	Inbox    int32    // partition of the topic inboxes that it reads
	Lease    time.Duration
	State    SessionState
	Host     string
	Version  string
	Sequence int64 // of this heartbeat, from 1
}

// EncodeHeartbeat makes the record of a heartbeat.
func EncodeHeartbeat(t Topics, h *Heartbeat) *kgo.Record {
	o := object{b: make([]byte, 0, 256)}
	o.open()
	o.str("session", string(h.Session))
	o.str("pool", h.Pool)
	if len(h.Types) > 0 {
		o.member("types")
		o.b = append(o.b, '[')
		for i, name := range h.Types {
			if i > 0 {
				o.b = append(o.b, ',')
			}
			o.b = appendString(o.b, name)
		}
		o.b = append(o.b, ']')
	}
	o.int("slots", int64(h.Slots))
	o.int("queue", int64(h.Queue))
	o.int("inbox", int64(h.Inbox))
	o.duration("lease", h.Lease)
	o.str("state", h.State.String())
	o.strOpt("host", h.Host)
	o.strOpt("version", h.Version)
	o.int("sequence", h.Sequence)
	o.close()
	id := append(append(make([]byte, 0, len(h.Session)+20), h.Session...), '/')
	return record(messageHeartbeat, t.Sessions(), []byte(h.Session), appendInt(id, h.Sequence), sourceOf[TopicSessions], []byte(h.Session), o.b)
}

// DecodeHeartbeat reads a record of the topic sessions. The error is a *[DecodeError].
func DecodeHeartbeat(rec *kgo.Record) (Heartbeat, error) {
	var h Heartbeat
	if err := decodeHeartbeat(&h, rec); err != nil {
		return Heartbeat{}, err.at(rec)
	}
	return h, nil
}

// maxTypes bounds the types that one session serves.
const maxTypes = 10_000

func decodeHeartbeat(h *Heartbeat, rec *kgo.Record) *DecodeError {
	var a attributes
	if _, err := a.open(rec, TopicSessions); err != nil {
		return err
	}
	r := newReader(rec.Value, MaxRequestBytes)
	r.open = true
	d := demands{m: messageHeartbeat}
	for o := r.object(); r.next(o); {
		d.saw(r.name)
		switch string(r.name) {
		case "session":
			h.Session = operation.SessionID(r.str())
			if r.refusal == nil && (h.Session == "" || len(h.Session) > MaxText) {
				r.refuse(OutOfRange, "expected 1 to %d bytes, but got %d", MaxText, len(h.Session))
			}
		case "pool":
			h.Pool = r.str()
		case "types":
			h.Types = r.types()
		case "slots":
			h.Slots = int32(r.integer(0, math.MaxInt32))
		case "queue":
			h.Queue = int32(r.integer(0, math.MaxInt32))
		case "inbox":
			h.Inbox = int32(r.integer(0, math.MaxInt32))
		case "lease":
			h.Lease = r.duration()
			if r.refusal == nil && (h.Lease <= 0 || h.Lease > MaxDuration) {
				r.refuse(OutOfRange, "expected a duration above 0 and up to %s, but got %s", MaxDuration, h.Lease)
			}
		case "state":
			name, known := r.text(), false
			for s, n := range sessionStates {
				if n == string(name) {
					h.State, known = SessionState(s), true
				}
			}
			if !known {
				r.refuse(UnknownValue, "expected running, draining or ended, but got %.64q", name)
			}
		case "host":
			h.Host = r.str()
		case "version":
			h.Version = r.str()
		case "sequence":
			h.Sequence = r.integer(0, math.MaxInt64)
		default:
			r.unknown()
		}
	}
	return d.met(&r)
}

func (r *reader) types() (names []string) {
	if !r.array() {
		return nil
	}
	for i := 0; r.element(i); i++ {
		if i == maxTypes {
			r.fail(TooLarge, "expected at most %d types", maxTypes)
			break
		}
		names = append(names, r.str())
	}
	return names
}

// demands remembers which members of a message were there.
type demands struct {
	m    *Message
	seen fields
}

func (d *demands) saw(name []byte) {
	for i, n := range d.m.names {
		if n == string(name) {
			d.seen |= 1 << i
			return
		}
	}
}

// met ends the reading of a message that only we write: it checks that the members which must be there were.
func (d *demands) met(r *reader) *DecodeError {
	if err := r.own(); err != nil {
		return err
	}
	if lacks := d.m.must &^ d.seen; lacks != 0 {
		return &DecodeError{Code: MissingField, Field: d.m.names[bits.TrailingZeros32(uint32(lacks))], Reason: "expected the message to have this member"}
	}
	return nil
}

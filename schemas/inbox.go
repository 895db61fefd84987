package schemas

import (
	"math"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
)

// Item is one attempt's work, as a session finds it in its inbox.
type Item struct {
	Session   operation.SessionID
	Partition int32           // of the journal
	Place     operation.Place // of the event that dispatched the attempt: the item's name
	Low       operation.Place // the oldest place of the partition that is still open with the session
	Org       string
	ID        operation.ID
	Attempt   operation.Attempt
	Failures  uint32 // attempts that failed before
	Request   *operation.Request
	Carry     []byte // checkpoint of an earlier attempt
	SentAt    operation.Time
}

// Stop asks a session to end one attempt early: to cancel it, or to pause it.
type Stop struct {
	Pause     bool // else cancel
	Session   operation.SessionID
	Partition int32
	Place     operation.Place // of the event that dispatched the attempt
	Org       string
	ID        operation.ID
	Attempt   operation.Attempt
	Reason    string
}

// EncodeItem makes the record of a work item. The caller sets the partition, which is the one that the session reads.
func EncodeItem(t Topics, it *Item) *kgo.Record {
	o := object{b: make([]byte, 0, 300+len(it.Request.Raw)+len(it.Carry)+len(it.ID)+len(it.Session)+len(it.Org))}
	id := itemID(o.b, it.Partition, it.Place, "")
	o.b = id
	o.open()
	o.str("session", string(it.Session))
	o.int("partition", int64(it.Partition))
	o.int("place", int64(it.Place))
	o.int("low", int64(it.Low))
	o.str("organization", it.Org)
	o.str("id", string(it.ID))
	o.int("attempt", int64(it.Attempt))
	o.intOpt("failures", int64(it.Failures))
	o.raw("operation", it.Request.Raw)
	o.rawOpt("checkpoint", it.Carry)
	o.timeOpt("sentAt", it.SentAt)
	o.close()
	return inboxRecord(messageOffered, t, it.Session, o.b, len(id))
}

// itemID appends a name for the event: partition, place, and what it asks.
func itemID(dst []byte, partition int32, place operation.Place, what string) []byte {
	dst = append(appendInt(dst, int64(partition)), '-')
	dst = appendInt(dst, int64(place))
	return append(dst, what...)
}

// inboxRecord makes a record of a buffer that holds the event's id and then the value.
func inboxRecord(m *Message, t Topics, session operation.SessionID, b []byte, idEnd int) *kgo.Record {
	c := newCarrier()
	c.Topic, c.Key, c.Value = t.Inboxes(), []byte(session), b[idEnd:]
	c.header(HeaderSpecVersion, specVersion)
	c.header(HeaderID, b[:idEnd:idEnd])
	c.header(HeaderSource, ownScheduler)
	c.header(HeaderType, m.wire)
	c.header(HeaderPartitionKey, c.Key)
	c.header(HeaderContentType, contentJSON)
	if later {
		c.fromLater()
	}
	return &c.Record
}

// EncodeStop makes the record of a cancel or pause message. The caller sets the partition.
func EncodeStop(t Topics, s *Stop) *kgo.Record {
	o := object{b: make([]byte, 0, 200+len(s.Reason)+len(s.ID)+len(s.Session)+len(s.Org))}
	m, what := messageCancel, "/cancel"
	if s.Pause {
		m, what = messagePause, "/pause"
	}
	id := itemID(o.b, s.Partition, s.Place, what)
	o.b = id
	o.open()
	o.str("session", string(s.Session))
	o.int("partition", int64(s.Partition))
	o.int("place", int64(s.Place))
	o.str("organization", s.Org)
	o.str("id", string(s.ID))
	o.int("attempt", int64(s.Attempt))
	o.strOpt("reason", s.Reason)
	o.close()
	return inboxRecord(m, t, s.Session, o.b, len(id))
}

// DecodeInbox reads a record of the topic inboxes: one of the two results is not nil. The error is a *[DecodeError]. A
// session reads what was sent to others, too; it compares rec.Key with its name first, which costs nothing.
func DecodeInbox(rec *kgo.Record) (*Item, *Stop, error) {
	it, stop, err := decodeInbox(rec)
	if err != nil {
		return nil, nil, err.at(rec)
	}
	return it, stop, nil
}

func decodeInbox(rec *kgo.Record) (*Item, *Stop, *DecodeError) {
	var a attributes
	m, err := a.open(rec, TopicInboxes)
	if err != nil {
		return nil, nil, err
	}
	it, offered, reason := new(Item), m == messageOffered, ""
	r := newOwnReader(rec.Value)
	d := demands{m: m}
	for o := r.object(); r.next(o); {
		d.saw(r.name)
		switch name := string(r.name); {
		case name == "session":
			it.Session = operation.SessionID(r.str())
		case name == "partition":
			it.Partition = int32(r.integer(0, math.MaxInt32))
		case name == "place":
			it.Place = operation.Place(r.integer(0, math.MaxInt64))
		case name == "low" && offered:
			it.Low = operation.Place(r.integer(0, math.MaxInt64))
		case name == "organization":
			it.Org = r.str()
		case name == "id":
			it.ID = operation.ID(r.str())
		case name == "attempt":
			it.Attempt = operation.Attempt(r.integer(0, math.MaxUint32))
		case name == "failures" && offered:
			it.Failures = uint32(r.integer(0, math.MaxUint32))
		case name == "operation" && offered:
			it.Request = r.accepted("operation")
		case name == "checkpoint" && offered:
			it.Carry = r.rawCopy()
		case name == "sentAt" && offered:
			it.SentAt = r.instant()
		case name == "reason" && !offered:
			reason = r.str()
		default:
			r.unknown()
		}
	}
	if err := d.met(&r); err != nil {
		return nil, nil, err
	}
	if offered {
		return it, nil, nil
	}
	return nil, &Stop{
		Pause: m == messagePause, Session: it.Session, Partition: it.Partition, Place: it.Place, Org: it.Org, ID: it.ID, Attempt: it.Attempt, Reason: reason,
	}, nil
}

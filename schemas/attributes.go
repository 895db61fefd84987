package schemas

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Names of the headers. Attributes of CloudEvents stand in ce_ headers, but for the content type (binary mode of the
// Kafka protocol binding).
const (
	HeaderSpecVersion  = "ce_specversion"
	HeaderID           = "ce_id"
	HeaderSource       = "ce_source"
	HeaderType         = "ce_type"
	HeaderTime         = "ce_time"
	HeaderSubject      = "ce_subject"
	HeaderPartitionKey = "ce_partitionkey"
	HeaderOrganization = "ce_organization"
	HeaderCause        = "ce_cause"
	HeaderPlace        = "ce_place"
	HeaderPrev         = "ce_prev"
	HeaderChain        = "ce_chain"
	HeaderContentType  = "content-type"
)

// Content types.
const (
	ContentJSON       = "application/json"
	ContentStructured = "application/cloudevents+json"
)

// Sources of our own messages.
const (
	SourceProducer  = "/opstream/producer"
	SourceWorker    = "/opstream/worker"
	SourceScheduler = "/opstream/scheduler"
	SourceJournal   = "/opstream/journal"
)

var (
	specVersion  = []byte("1.0")
	contentJSON  = []byte(ContentJSON)
	sourceOf     = map[string][]byte{TopicRequests: []byte(SourceProducer), TopicReports: []byte(SourceWorker), TopicSessions: []byte(SourceWorker)}
	ownScheduler = []byte(SourceScheduler)
	ownJournal   = []byte(SourceJournal)
)

// attributes are those of one record. They are parts of the record's headers, or of its value in structured mode.
type attributes struct {
	specversion, id, source, typ, time, subject, partitionKey, organization, cause, contentType []byte
	place, prev, chain                                                                          []byte
}

// slot returns where the attribute of a header is kept, nil for one that is not ours.
func (a *attributes) slot(header string) *[]byte {
	switch header {
	case HeaderSpecVersion:
		return &a.specversion
	case HeaderID:
		return &a.id
	case HeaderSource:
		return &a.source
	case HeaderType:
		return &a.typ
	case HeaderTime:
		return &a.time
	case HeaderSubject:
		return &a.subject
	case HeaderPartitionKey:
		return &a.partitionKey
	case HeaderOrganization:
		return &a.organization
	case HeaderCause:
		return &a.cause
	case HeaderPlace:
		return &a.place
	case HeaderPrev:
		return &a.prev
	case HeaderChain:
		return &a.chain
	case HeaderContentType:
		return &a.contentType
	}
	return nil
}

var present = []byte{}

// read takes the attributes from the headers. Headers that are not ce_ are none of our business; unknown ce_ ones are
// extensions that somebody else understands, but even those must stand there only once.
func (a *attributes) read(rec *kgo.Record) *DecodeError {
	if len(rec.Headers) > MaxHeaders {
		return &DecodeError{Code: TooManyHeaders, Reason: fmt.Sprintf("expected at most %d headers, but got %d", MaxHeaders, len(rec.Headers))}
	}
	for i := range rec.Headers {
		h := &rec.Headers[i]
		slot := a.slot(h.Key)
		if slot == nil {
			if !strings.HasPrefix(h.Key, "ce_") {
				continue
			}
			if slices.ContainsFunc(rec.Headers[:i], func(b kgo.RecordHeader) bool { return b.Key == h.Key }) {
				return doubled(h.Key)
			}
		} else if *slot != nil {
			return doubled(h.Key)
		}
		if len(h.Value) > MaxHeaderBytes {
			return &DecodeError{Code: InvalidHeader, Field: clip(h.Key), Reason: fmt.Sprintf("expected at most %d bytes, but got %d", MaxHeaderBytes, len(h.Value))}
		}
		if !utf8.Valid(h.Value) {
			return &DecodeError{Code: InvalidUTF8, Field: clip(h.Key), Reason: "the header is not UTF-8"}
		}
		if slot != nil {
			*slot = h.Value
			if h.Value == nil {
				*slot = present
			}
		}
	}
	return nil
}

func doubled(header string) *DecodeError {
	return &DecodeError{Code: DoubledHeader, Field: clip(header), Reason: "the header stands in the record twice"}
}

// clip bounds a text from outside that goes into a message.
func clip(s string) string {
	if len(s) > 128 {
		s = s[:128] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

func missing(header string) *DecodeError {
	return &DecodeError{Code: MissingHeader, Field: header, Reason: "expected the record to have this header"}
}

// check verifies what CloudEvents requires of every event, and finds the message in the registry.
func (a *attributes) check(topic string) (*Message, *DecodeError) {
	switch {
	case len(a.specversion) == 0:
		err := missing(HeaderSpecVersion)
		if topic == TopicRequests {
			err.Reason += ", or, for an event in structured mode, the header " + HeaderContentType + " with " + ContentStructured
		}
		return nil, err
	case !bytes.Equal(a.specversion, specVersion):
		return nil, &DecodeError{Code: WrongSpecVersion, Field: HeaderSpecVersion, Reason: fmt.Sprintf("expected 1.0, but got %q", clip(string(a.specversion)))}
	case len(a.id) == 0:
		return nil, missing(HeaderID)
	case len(a.source) == 0:
		return nil, missing(HeaderSource)
	case len(a.typ) == 0:
		return nil, missing(HeaderType)
	}
	if a.contentType != nil && !isJSON(a.contentType) {
		return nil, &DecodeError{Code: WrongContentType, Field: HeaderContentType, Reason: fmt.Sprintf("expected %s, but got %q", ContentJSON, clip(string(a.contentType)))}
	}
	return lookup(topic, a.typ)
}

// isJSON says whether a content type is application/json, whatever its parameters.
func isJSON(contentType []byte) bool {
	if bytes.Equal(contentType, contentJSON) {
		return true
	}
	media, _, _ := strings.Cut(string(contentType), ";")
	return strings.EqualFold(strings.TrimSpace(media), ContentJSON)
}

func isStructured(contentType []byte) bool {
	if contentType == nil || bytes.Equal(contentType, contentJSON) {
		return false
	}
	media, _, _ := strings.Cut(string(contentType), ";")
	return strings.EqualFold(strings.TrimSpace(media), ContentStructured)
}

// open reads the attributes of a record in binary mode and finds its message.
func (a *attributes) open(rec *kgo.Record, topic string) (*Message, *DecodeError) {
	if err := a.read(rec); err != nil {
		return nil, err
	}
	return a.check(topic)
}

// A carrier is a record with room for its headers beside it.
type carrier struct {
	kgo.Record
	room [14]kgo.RecordHeader
}

func newCarrier() *carrier {
	c := new(carrier)
	c.Headers = c.room[:0]
	return c
}

func (c *carrier) header(key string, value []byte) {
	c.Headers = append(c.Headers, kgo.RecordHeader{Key: key, Value: value})
}

// record makes the record of a message that is not on the hottest path.
func record(m *Message, topic string, key []byte, id, source, subject []byte, value []byte) *kgo.Record {
	c := newCarrier()
	c.Topic, c.Key, c.Value = topic, key, value
	c.header(HeaderSpecVersion, specVersion)
	c.header(HeaderID, id)
	c.header(HeaderSource, source)
	c.header(HeaderType, m.wire)
	if len(subject) > 0 {
		c.header(HeaderSubject, subject)
	}
	if len(key) > 0 {
		c.header(HeaderPartitionKey, key)
	}
	c.header(HeaderContentType, contentJSON)
	if later && m.Topic != TopicRequests {
		c.fromLater()
	}
	return &c.Record
}

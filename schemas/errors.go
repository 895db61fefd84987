package schemas

import (
	"errors"
	"fmt"

	"github.com/opstream/opstream/domain/operation"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Code is a stable reason why a record cannot be read or is refused. It shares its type with the rejections of the domain,
// because a refusal ends as one in the journal.
type Code = operation.RejectionCode

// The codes of a [DecodeError]: the bytes are no message.
const (
	MalformedJSON     Code = "malformed_json"
	DuplicateField    Code = "duplicate_field"
	UnknownField      Code = "unknown_field"
	MissingField      Code = "missing_field"
	TooLarge          Code = "too_large"
	TooDeep           Code = "too_deep"
	InvalidUTF8       Code = "invalid_utf8"
	MissingHeader     Code = "missing_header"
	DoubledHeader     Code = "doubled_header"
	InvalidHeader     Code = "invalid_header"
	TooManyHeaders    Code = "too_many_headers"
	UnknownType       Code = "unknown_type"
	UnknownVersion    Code = "unknown_version"
	WrongTopic        Code = "wrong_topic"
	WrongSpecVersion  Code = "wrong_specversion"
	WrongContentType  Code = "wrong_content_type"
	InvalidAttributes Code = "invalid_attributes"
)

// The codes of a [Refusal]: the message can be read, but a field's value is not one that it may have.
const (
	InvalidRequest    Code = "invalid_request"
	Required          Code = "required"
	TooLong           Code = "too_long"
	InvalidCharacters Code = "invalid_characters"
	OutOfRange        Code = "out_of_range"
	UnknownValue      Code = "unknown_value"
	InvalidName       Code = "invalid_name"
	InvalidTime       Code = "invalid_time"
	InvalidDuration   Code = "invalid_duration"
	InvalidType       Code = "invalid_type"
)

// Reasons holds one sentence for each code of this package, for people; it says what to do next.
var Reasons = map[Code]string{
	MalformedJSON:     "the value is not JSON as RFC 8259 has it; send it again, well-formed",
	DuplicateField:    "an object names the same member twice; send each once",
	UnknownField:      "the message has a member that this version does not know; check the spelling (case counts), or bring this program up to date",
	MissingField:      "a member that every message of this type has is missing; send it again, complete",
	TooLarge:          "the record is larger than its topic takes; send a reference to the data instead of the data",
	TooDeep:           "the JSON is nested deeper than 64 levels; flatten it",
	InvalidUTF8:       "text that is not UTF-8, or half of a surrogate pair; send it again, encoded as UTF-8",
	MissingHeader:     "a ce_ header that CloudEvents or opstream requires is missing; send the record again with it",
	DoubledHeader:     "a ce_ header stands in the record twice; send each once",
	InvalidHeader:     "a ce_ header's value is too long or has not the form that it must have; send it again, corrected",
	TooManyHeaders:    "the record has more than 100 headers; send it again with fewer",
	UnknownType:       "no message has this type; check ce_type, or bring this program up to date",
	UnknownVersion:    "the type is known, but not in this version; bring this program up to date, or send a version that it knows",
	WrongTopic:        "messages of this type belong on another topic; send it there",
	WrongSpecVersion:  "expected CloudEvents specversion 1.0; send it again as that",
	WrongContentType:  "expected JSON (application/json, or application/cloudevents+json on the topic requests); send it again as that",
	InvalidAttributes: "the CloudEvents attributes of a structured message are not what they must be; send it again, corrected",

	InvalidRequest:    "the request cannot be accepted as it is; correct the field that is named and send it again",
	Required:          "the field must be given; add it and send the request again",
	TooLong:           "the field's text is longer than it may be; shorten it and send the request again",
	InvalidCharacters: "the field holds control or format characters, which cannot be told apart by eye; remove them and send the request again",
	OutOfRange:        "the number or duration is outside of what the field may have; correct it and send the request again",
	UnknownValue:      "the field takes one of a few names, and this is none of them; correct it and send the request again",
	InvalidName:       "expected lower-case words and numbers joined by hyphens or dots; correct the name and send the request again",
	InvalidTime:       "expected an RFC 3339 time in the years 1 to 9999; correct it and send the request again",
	InvalidDuration:   "expected a duration such as 90s, 2m or 1h30m; correct it and send the request again",
	InvalidType:       "the member has another JSON type than it must have; correct it and send the request again",
}

// DecodeError says why a record is no message: it can only be set aside for people (the topic deadletter).
type DecodeError struct {
	Code      Code
	Field     string // member, header or attribute; "" when it is about the record as a whole
	Reason    string
	Topic     string
	Partition int32
	Offset    int64
}

func (e *DecodeError) Error() string {
	where := ""
	if e.Topic != "" {
		where = fmt.Sprintf(" (topic %s, partition %d, offset %d)", e.Topic, e.Partition, e.Offset)
	}
	if e.Field == "" {
		return fmt.Sprintf("%s: %s%s", e.Code, e.Reason, where)
	}
	return fmt.Sprintf("%s: %s: %s%s", e.Code, e.Field, e.Reason, where)
}

// IsDecodeError returns the decode error in err's chain, if there is one.
func IsDecodeError(err error) (*DecodeError, bool) { return errors.AsType[*DecodeError](err) }

// at adds where the record stands, and returns an error value that is nil when e is.
func (e *DecodeError) at(rec *kgo.Record) error {
	if e == nil {
		return nil
	}
	e.Topic, e.Partition, e.Offset = rec.Topic, rec.Partition, rec.Offset
	return e
}

// Refusal says why a message that can be read asks for something that cannot be. It is the border's half of a rejection,
// and is journaled like one.
type Refusal struct {
	Code   Code
	Field  string // as it stands in JSON, e.g. "retry.maxAttempts"
	Reason string

	// Whom to answer, as far as that could be read and is itself valid.
	Kind      operation.CommandKind
	Org       string
	ID        operation.ID
	CommandID string
}

func (r *Refusal) Error() string {
	if r.Field == "" {
		return fmt.Sprintf("%s: %s", r.Code, r.Reason)
	}
	return fmt.Sprintf("%s: %s: %s", r.Code, r.Field, r.Reason)
}

// Rejection is what the journal keeps of the refusal.
func (r *Refusal) Rejection() *operation.Rejection {
	if r.Field == "" {
		return &operation.Rejection{Code: r.Code, Reason: r.Reason}
	}
	return &operation.Rejection{Code: r.Code, Reason: r.Field + ": " + r.Reason}
}

package schemas

import (
	"encoding/base64"
	"math"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"
)

// WrapRequest makes of a record of the topic requests the JSON that is kept in the event Forwarded (Event.Body) and sent as
// a signal. It holds what [DecodeCommand] looks at.
func WrapRequest(rec *kgo.Record) []byte {
	var a attributes
	for i := range rec.Headers { // the record was decoded before: every attribute stands there once
		if slot := a.slot(rec.Headers[i].Key); slot != nil {
			*slot = rec.Headers[i].Value
		}
	}
	o := object{b: make([]byte, 0, 300+len(rec.Value)+len(rec.Value)/2+len(rec.Key))}
	o.open()
	o.member("from")
	o.open()
	o.str("topic", rec.Topic)
	o.int("partition", int64(rec.Partition))
	o.int("offset", rec.Offset)
	o.close()
	o.bytesOpt("key", "keyBase64", rec.Key)
	o.strOpt("contentType", string(a.contentType))
	o.strOpt("type", string(a.typ))
	o.strOpt("id", string(a.id))
	o.strOpt("source", string(a.source))
	o.strOpt("partitionKey", string(a.partitionKey))
	o.bytesOpt("value", "valueBase64", rec.Value)
	o.close()
	return o.b
}

// bytesOpt appends bytes as a string if they are UTF-8, else in base64 under the other name.
func (o *object) bytesOpt(name, nameBase64 string, b []byte) {
	switch {
	case len(b) == 0:
	case utf8.Valid(b):
		o.member(name)
		o.b = appendString(o.b, b)
	default:
		o.member(nameBase64)
		o.b = append(base64.StdEncoding.AppendEncode(append(o.b, '"'), b), '"')
	}
}

// EncodeForwarded makes the signal that hands a request to the partition that it belongs to. body is what [WrapRequest] has
// made; key is the partition key of the operation, see [KeyOf]; id names the event, as that of the journal's event does.
func EncodeForwarded(t Topics, body, key []byte, to int32, id string) *kgo.Record {
	rec := record(messageForwarded, t.Signals(), key, []byte(id), ownScheduler, nil, body)
	rec.Partition = to
	return rec
}

// DecodeForwarded reads a record of the topic signals and gives back the record that was forwarded, with the topic,
// partition and offset that it first had, ready for [DecodeCommand]. The error is a *[DecodeError].
func DecodeForwarded(rec *kgo.Record) (*kgo.Record, error) {
	var a attributes
	if _, err := a.open(rec, TopicSignals); err != nil {
		return nil, err.at(rec)
	}
	out, err := unwrap(rec.Value)
	if err != nil {
		return nil, err.at(rec)
	}
	return out, nil
}

// UnwrapRequest is the inverse of [WrapRequest]. The error is a *[DecodeError].
func UnwrapRequest(body []byte) (*kgo.Record, error) {
	rec, err := unwrap(body)
	if err != nil {
		return nil, err
	}
	return rec, nil
}

func unwrap(body []byte) (*kgo.Record, *DecodeError) {
	c := newCarrier()
	c.header(HeaderSpecVersion, specVersion)
	r := newOwnReader(body)
	d := demands{m: messageForwarded}
	header := func(r *reader, key string) {
		if text := []byte(r.str()); r.err == nil {
			c.header(key, text)
		}
	}
	decode := func(r *reader) []byte {
		b, err := base64.StdEncoding.DecodeString(r.str())
		if err != nil {
			r.fail(InvalidAttributes, "expected base64")
		}
		return b
	}
	for o := r.object(); r.next(o); {
		d.saw(r.name)
		switch string(r.name) {
		case "from":
			outer, o := r.enter("from")
			for r.next(o) {
				switch string(r.name) {
				case "topic":
					c.Topic = r.str()
				case "partition":
					c.Partition = int32(r.integer(0, math.MaxInt32))
				case "offset":
					c.Offset = r.integer(0, math.MaxInt64)
				default:
					r.unknown()
				}
			}
			r.leave(outer)
		case "key":
			c.Key = []byte(r.str())
		case "keyBase64":
			c.Key = decode(&r)
		case "contentType":
			header(&r, HeaderContentType)
		case "type":
			header(&r, HeaderType)
		case "id":
			header(&r, HeaderID)
		case "source":
			header(&r, HeaderSource)
		case "partitionKey":
			header(&r, HeaderPartitionKey)
		case "value":
			c.Value = []byte(r.str())
		case "valueBase64":
			c.Value = decode(&r)
		default:
			r.unknown()
		}
	}
	if err := d.met(&r); err != nil {
		return nil, err
	}
	return &c.Record, nil
}

package schemas

import (
	"bytes"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
)

// Headers that a dead letter has beside those it came with.
const (
	HeaderDeadReason    = "x_reason"
	HeaderDeadCode      = "x_code"
	HeaderDeadBy        = "x_by"
	HeaderDeadTopic     = "x_topic"
	HeaderDeadPartition = "x_partition"
	HeaderDeadOffset    = "x_offset"
	HeaderDeadAt        = "x_at"
	HeaderDeadCut       = "x_cut" // what was left out, to keep the record within bounds
)

// Bounds of a dead letter: the point is that it can be written, whatever came.
const (
	maxDeadValue   = 4 << 20
	maxDeadKey     = 64 << 10
	maxDeadHeaders = 256 << 10
)

// DeadLetter sets a record aside for people: key, value and headers as they came, with the reason, and where it stood.
// What is beyond all bounds is cut off, and x_cut says so. by names who gave up on it; at is when, 0 if nobody asked a clock.
//
// A record that comes from the topic deadletter (sent there again by hand, say) loses its old x_ headers.
func DeadLetter(t Topics, rec *kgo.Record, code Code, reason, by string, at operation.Time) *kgo.Record {
	out := &kgo.Record{Topic: t.DeadLetter(), Key: rec.Key, Value: rec.Value}
	var cuts []string
	if len(out.Value) > maxDeadValue {
		out.Value = out.Value[:maxDeadValue]
		cuts = append(cuts, "value of "+string(appendInt(nil, int64(len(rec.Value))))+" bytes")
	}
	if len(out.Key) > maxDeadKey {
		out.Key = out.Key[:maxDeadKey]
		cuts = append(cuts, "key of "+string(appendInt(nil, int64(len(rec.Key))))+" bytes")
	}
	size, left := 0, 0
	for _, h := range rec.Headers {
		if IsDeadHeader(h.Key) {
			continue
		}
		if size += len(h.Key) + len(h.Value) + 16; size > maxDeadHeaders {
			left++
			continue
		}
		out.Headers = append(out.Headers, h)
	}
	if left > 0 {
		cuts = append(cuts, string(appendInt(nil, int64(left)))+" headers")
	}
	add := func(key, value string) {
		if len(value) > 4*MaxHeaderBytes {
			value = value[:4*MaxHeaderBytes]
		}
		out.Headers = append(out.Headers, kgo.RecordHeader{Key: key, Value: bytes.ToValidUTF8([]byte(value), []byte("?"))})
	}
	add(HeaderDeadReason, reason)
	add(HeaderDeadCode, string(code))
	add(HeaderDeadBy, by)
	add(HeaderDeadTopic, rec.Topic)
	add(HeaderDeadPartition, string(appendInt(nil, int64(rec.Partition))))
	add(HeaderDeadOffset, string(appendInt(nil, rec.Offset)))
	if at != 0 {
		add(HeaderDeadAt, string(appendTime(nil, at)))
	}
	if len(cuts) > 0 {
		add(HeaderDeadCut, strings.Join(cuts, ", "))
	}
	return out
}

// IsDeadHeader says whether a header of a dead letter was added to it, and did not come with the record.
func IsDeadHeader(key string) bool {
	switch key {
	case HeaderDeadReason, HeaderDeadCode, HeaderDeadBy, HeaderDeadTopic, HeaderDeadPartition, HeaderDeadOffset, HeaderDeadAt, HeaderDeadCut:
		return true
	}
	return false
}

package kafka

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A Position says where on the log a message stands.
type Position struct {
	Topic     string
	Partition int32
	Offset    int64
	Key       []byte    // the record's key; shared, not to be changed
	Timestamp time.Time // the record's timestamp
}

// PositionOf returns the position of the message whose context this is, or false if no Subscriber of this package made it.
func PositionOf(ctx context.Context) (Position, bool) {
	r, ok := ctx.Value(recordKey{}).(*kgo.Record)
	if !ok {
		return Position{}, false
	}
	return Position{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: r.Key, Timestamp: r.Timestamp}, true
}

type recordKey struct{}

// messageContext adds the record to a partition's context. It is a type of its own rather than context.WithValue because one is
// made for every message, and this saves an allocation.
type messageContext struct {
	context.Context //nolint:containedctx // it is a context

	record *kgo.Record
}

func (c *messageContext) Value(key any) any {
	if key == (recordKey{}) {
		return c.record
	}
	return c.Context.Value(key)
}

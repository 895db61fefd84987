package kafka

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
)

// Headers that Poison adds to a message it moves aside. An entry of the message with the same name is replaced.
const (
	PoisonReason    = "reason"    // one of the Reason constants
	PoisonTopic     = "topic"     // where the message stood
	PoisonPartition = "partition" // empty if the message came from another kind of subscriber, like PoisonOffset
	PoisonOffset    = "offset"
	PoisonHandler   = "handler" // the router's name for the handler
	PoisonError     = "error"   // the error's text, at most 4 KiB of it
)

// Values of PoisonReason.
const (
	ReasonError     = "handler_error"
	ReasonPanic     = "handler_panic" // as reported by Watermill's Recoverer
	ReasonTimeLimit = "time_limit"    // as reported by Timeout
)

const poisonErrorMax = 4 << 10

// Poison is a middleware that publishes a message whose handler failed to a dead-letter topic, with its UUID, metadata and
// payload as they came in, and acknowledges it. Only errors for which is returns true are treated so; nil stands for all.
//
// Add it before Retry, so that it stands outside and sees only what Retry gave up; Watermill's own PoisonQueue needs the same
// order. An error while the message's context has ended (the partition was revoked, the subscriber closed) is never
// poison: it is passed on, and the message will be handed out again. So is an error of publishing, joined with the handler's.
func Poison(publisher message.Publisher, topic string, is func(error) bool) (message.HandlerMiddleware, error) {
	if publisher == nil || topic == "" {
		return nil, fmt.Errorf("kafka: poison: expected a publisher and the name of a dead-letter topic, but got %T and %q", publisher, topic)
	}
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			dead := msg.CopyWithContext() // before the handler can change it
			produced, err := next(msg)
			if err == nil || msg.Context().Err() != nil || is != nil && !is(err) {
				return produced, err
			}
			markPoisoned(dead, err)
			if publishErr := publisher.Publish(topic, dead); publishErr != nil {
				return nil, errors.Join(err, fmt.Errorf("kafka: poison: expected to move message %q aside to %q, but: %w", msg.UUID, topic, publishErr))
			}
			return nil, nil
		}
	}, nil
}

func markPoisoned(dead *message.Message, err error) {
	ctx := dead.Context()
	topic, partition, offset := message.SubscribeTopicFromCtx(ctx), "", ""
	if at, ok := PositionOf(ctx); ok {
		topic, partition, offset = at.Topic, strconv.Itoa(int(at.Partition)), strconv.FormatInt(at.Offset, 10)
	}
	reason := ReasonError
	if errors.As(err, new(middleware.RecoveredPanicError)) {
		reason = ReasonPanic
	} else if errors.As(err, new(*TimeLimitError)) {
		reason = ReasonTimeLimit
	}
	text := err.Error()
	if len(text) > poisonErrorMax {
		text = strings.ToValidUTF8(text[:poisonErrorMax], "")
	}
	dead.Metadata.Set(PoisonReason, reason)
	dead.Metadata.Set(PoisonTopic, topic)
	dead.Metadata.Set(PoisonPartition, partition)
	dead.Metadata.Set(PoisonOffset, offset)
	dead.Metadata.Set(PoisonHandler, message.HandlerNameFromCtx(ctx))
	dead.Metadata.Set(PoisonError, text)
}

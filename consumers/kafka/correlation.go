package kafka

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
)

// MetadataCorrelationID is the metadata entry that ties all messages of one piece of work together.
const MetadataCorrelationID = middleware.CorrelationIDMetadataKey

type correlationKey struct{}

// CorrelationIDOf returns the correlation id of the message whose handler runs with this context, or "".
func CorrelationIDOf(ctx context.Context) string {
	id, _ := ctx.Value(correlationKey{}).(string)
	return id
}

// Correlation is a middleware that puts the correlation id of the incoming message into its context, for logs and outgoing
// requests, and onto every produced message that has none. A message without an id gets none.
//
// Watermill's CorrelationID does not touch the context, and marks messages with an empty id when there is none.
func Correlation(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		id := msg.Metadata.Get(MetadataCorrelationID)
		if id == "" {
			return next(msg)
		}
		outer := msg.Context()
		defer msg.SetContext(outer)
		msg.SetContext(context.WithValue(outer, correlationKey{}, id))
		produced, err := next(msg)
		for _, p := range produced {
			if p.Metadata.Get(MetadataCorrelationID) == "" {
				if p.Metadata == nil {
					p.Metadata = message.Metadata{}
				}
				p.Metadata.Set(MetadataCorrelationID, id)
			}
		}
		return produced, err
	}
}

// Package kafka lets Watermill speak Kafka through franz-go: a Publisher, a Subscriber, and the middlewares that the handlers
// of this system need and Watermill lacks (Correlation, Timeout, Poison).
//
//	Publish(topic, m1, m2, m3)                             Subscribe(ctx, topic)
//	           │ one batch, acks=all, idempotent                      ▲ one channel
//	           ▼                                                      │ one message in hand per partition
//	  ┌─ topic ─────────────────────┐   poll    ┌─ goroutine of partition 0 ─┐
//	  │ partition 0  ▪▪▪▪▪▪▪        │ ────────▶ │ queue │ hand out │ wait    │──┐ ack:  mark the offset, go on
//	  │ partition 1  ▪▪▪▪           │ ────────▶ ├─ goroutine of partition 1 ─┤  │ nack: wait, hand out again
//	  │ partition 2  ▪▪▪▪▪▪▪▪▪      │ ────────▶ ├─ goroutine of partition 2 ─┤  │
//	  └─────────────────────────────┘           └────────────────────────────┘  │
//	           ▲                                                                │
//	           └──────────────── offsets of the group, marked ones only ◀───────┘
//
// # Promises
//
// At least once. Publish returns nil only when every message is on the log as acks=all understands it. With a group, an offset
// is marked for commit only after its message and all before it in the partition were acknowledged (or could not be decoded
// and went to OnUndecodable). Marks are committed in the background, when partitions are revoked, and on Close. So a message
// comes again only if it was not acknowledged, or if the process or the broker's answer was lost before the mark was committed.
//
// Order per partition. A partition is handed out message by message, each after the answer to the one before. Messages with
// the same partition key (MetadataPartitionKey) share a partition, hence an order, as long as the number of partitions stays.
// Nothing is promised between partitions.
//
// A nack keeps the place. The same record is handed out again, as a new message, after NackResendSleep, and its partition
// waits meanwhile; other partitions go on. A handler that can never succeed therefore blocks a partition for ever, unless Poison
// moves the message aside: router.AddMiddleware(Correlation, poison, retry, Recoverer, Timeout(limit)), in that order, so that
// Poison sees only what Retry gave up.
//
// A message's context ends with its answer, and earlier when its partition is lost; context.Cause then is ErrRevoked or
// ErrClosed, which tells a stop from a time limit (TimeLimitError) and from a failure. Messages in hand when a partition is
// revoked or the subscription ends get DrainTimeout to be answered; an answer after that changes nothing, the message will be
// handed out again by whoever owns the partition then.
//
// Memory is bounded. A partition that is not worked off is no longer fetched once BufferBytes wait for it.
//
// # Not promised
//
// Exactly-once delivery. The effect of a handler and the commit of its offset are two writes to two systems; a crash between
// them repeats the handler. Kafka's transactions close that gap only if the effect is itself a record, and Watermill's API has
// no place to put the offset into the producer's transaction. Handlers must be safe to repeat: Message.UUID, or the position
// (PositionOf), is the same each time.
//
// Atomic batches. If Publish fails, some of its messages may be on the log: a *PublishError says which was the first that
// failed and how many did. Publishing all of them again is safe for readers who drop what they have seen.
//
// Without a group (SubscriberConfig.Group empty) a subscription reads all partitions from StartAt and remembers nothing.
package kafka

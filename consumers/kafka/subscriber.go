package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// ErrRevoked is the cause with which the contexts of messages in hand end when the group gives their partition to another
// member. Whoever has it now will be handed the message again.
var ErrRevoked = errors.New("kafka: the partition was revoked")

// Start says where a subscription begins that has no committed offset.
type Start int

const (
	// Earliest begins with the oldest record that is still kept.
	Earliest Start = iota
	// Latest begins with the first record after the subscription. Without a group that is exact: everything that is acknowledged
	// after Subscribe returned is handed out. A new group finds its place later, when it is first given the partition.
	Latest
)

// Defaults of SubscriberConfig.
const (
	DefaultNackResendSleep   = 100 * time.Millisecond
	DefaultDrainTimeout      = 5 * time.Second
	DefaultBufferBytes       = 1 << 20
	DefaultInitializeTimeout = 30 * time.Second
)

// SubscriberConfig says what a Subscriber reads and how. Only Seeds is needed.
type SubscriberConfig struct {
	// Seeds are the addresses of some brokers, as host:port. No default.
	Seeds []string

	// Group is the consumer group. Members of one group share the partitions, and continue where the group stopped. Empty:
	// every subscription reads all partitions from StartAt and commits nothing. Default "".
	Group string

	// StartAt is where to begin without a committed offset. Default Earliest.
	StartAt Start

	// Opts are added to the clients, after the defaults and before what the promises need (the group, AutoCommitMarks,
	// BlockRebalanceOnPoll and its callbacks). Default none.
	Opts []kgo.Opt

	// Marshaler reads the records. Default DefaultMarshaler{}.
	Marshaler Marshaler

	// OnUndecodable is told of every record that Marshaler could not read, before the record is passed over. It is the
	// place to put the record aside: its partition waits until it returns, and so do a rebalance and Close, so it must
	// heed ctx. Default: an error in the log.
	OnUndecodable func(ctx context.Context, record *kgo.Record, err error)

	// NackResendSleep is how long a partition waits between a nack and handing the message out again.
	// Default DefaultNackResendSleep.
	NackResendSleep time.Duration

	// DrainTimeout is how long messages in hand may take to be answered when their partition is revoked or their
	// subscription ends; then their contexts end. A rebalance of the group waits as long, so keep it well below the
	// group's rebalance timeout (60 s in the client). Negative: not at all. Default DefaultDrainTimeout.
	DrainTimeout time.Duration

	// BufferBytes is how much may wait for the handler in each partition before the client stops to fetch it; one fetch of
	// the partition may come on top, at most 256 KiB on the wire, which can be more when decompressed.
	// Default DefaultBufferBytes.
	BufferBytes int

	// Partitions, ReplicationFactor and TopicConfigs are for topics that SubscribeInitialize creates.
	// Defaults 1, the broker's, and none.
	Partitions        int32
	ReplicationFactor int16
	TopicConfigs      map[string]*string

	// InitializeTimeout bounds SubscribeInitialize. Default DefaultInitializeTimeout.
	InitializeTimeout time.Duration

	// Logger hears of what no caller can be told. Default slog.Default().
	Logger *slog.Logger
}

func (c SubscriberConfig) withDefaults() SubscriberConfig {
	if c.Marshaler == nil {
		c.Marshaler = DefaultMarshaler{}
	}
	if c.NackResendSleep == 0 {
		c.NackResendSleep = DefaultNackResendSleep
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = DefaultDrainTimeout
	}
	if c.BufferBytes == 0 {
		c.BufferBytes = DefaultBufferBytes
	}
	if c.Partitions == 0 {
		c.Partitions = 1
	}
	if c.ReplicationFactor == 0 {
		c.ReplicationFactor = -1
	}
	if c.InitializeTimeout == 0 {
		c.InitializeTimeout = DefaultInitializeTimeout
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.OnUndecodable == nil {
		logger := c.Logger
		c.OnUndecodable = func(ctx context.Context, r *kgo.Record, err error) {
			logger.LogAttrs(ctx, slog.LevelError, "passed over an undecodable record",
				slog.String("topic", r.Topic), slog.Int("partition", int(r.Partition)), slog.Int64("offset", r.Offset), slog.Any("err", err))
		}
	}
	return c
}

func (c SubscriberConfig) validate() error {
	var faults []error
	if len(c.Seeds) == 0 {
		faults = append(faults, errors.New("expected Seeds, but they are empty: give the address of a broker"))
	}
	if c.StartAt != Earliest && c.StartAt != Latest {
		faults = append(faults, fmt.Errorf("expected StartAt to be Earliest or Latest, but it is %d", c.StartAt))
	}
	if c.NackResendSleep < 0 {
		faults = append(faults, fmt.Errorf("expected NackResendSleep of 0 (default) or more, but it is %s", c.NackResendSleep))
	}
	if c.BufferBytes < 0 {
		faults = append(faults, fmt.Errorf("expected BufferBytes of 0 (default) or more, but it is %d", c.BufferBytes))
	}
	if c.Partitions < 0 {
		faults = append(faults, fmt.Errorf("expected Partitions of 0 (default) or more, but it is %d", c.Partitions))
	}
	if c.InitializeTimeout < 0 {
		faults = append(faults, fmt.Errorf("expected InitializeTimeout of 0 (default) or more, but it is %s", c.InitializeTimeout))
	}
	return errors.Join(faults...)
}

// A Subscriber hands out what is on the log. Every call of Subscribe makes a client, and with a group a member, of its own.
type Subscriber struct {
	config SubscriberConfig

	mu     sync.Mutex
	closed bool
	stops  map[*subscription]context.CancelCauseFunc
	ended  sync.WaitGroup
}

var (
	_ message.Subscriber           = (*Subscriber)(nil)
	_ message.SubscribeInitializer = (*Subscriber)(nil)
)

// NewSubscriber makes a Subscriber. It does not speak to the broker yet.
func NewSubscriber(config SubscriberConfig) (*Subscriber, error) {
	if err := config.validate(); err != nil {
		return nil, fmt.Errorf("kafka: subscriber: %w", err)
	}
	return &Subscriber{config: config.withDefaults(), stops: map[*subscription]context.CancelCauseFunc{}}, nil
}

// Subscribe returns the channel on which the messages of topic come, one at a time per partition. It ends when ctx does, or on
// Close, and drains in both cases: the channel is closed once all messages in hand are answered or given up. The messages'
// contexts have the values of ctx, but outlive it by DrainTimeout.
//
// The topic need not exist yet. Use SubscribeInitialize where records could be missed otherwise.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("expected to subscribe to topic %q, but the subscriber is closed: %w", topic, ErrClosed)
	}
	sub, err := newSubscription(ctx, s.config, topic)
	if err != nil {
		return nil, fmt.Errorf("kafka: expected to subscribe to topic %q (group %q), but: %w", topic, s.config.Group, err)
	}
	polling, stop := context.WithCancelCause(ctx)
	s.stops[sub] = stop
	s.ended.Go(func() {
		sub.run(polling)
		stop(ErrClosed)
		s.mu.Lock()
		delete(s.stops, sub)
		s.mu.Unlock()
	})
	return sub.out, nil
}

// Close ends all subscriptions: it stops to hand out, waits up to DrainTimeout for messages in hand, ends the contexts of the
// rest, commits what was acknowledged, leaves the groups and closes the channels. Further calls wait for the first and do nothing.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	for _, stop := range s.stops {
		stop(ErrClosed)
	}
	s.mu.Unlock()
	s.ended.Wait()
	return nil
}

// SubscribeInitialize creates topic if it does not exist, and returns when each of its partitions has a leader.
func (s *Subscriber) SubscribeInitialize(topic string) error {
	// detached: Watermill's interface brings no context; the timeout bounds the wait.
	ctx, cancel := context.WithTimeout(context.Background(), s.config.InitializeTimeout)
	defer cancel()
	if err := s.initialize(ctx, topic); err != nil {
		return fmt.Errorf("kafka: expected to have topic %q with leaders within %s, but: %w", topic, s.config.InitializeTimeout, err)
	}
	return nil
}

func (s *Subscriber) initialize(ctx context.Context, topic string) error {
	client, err := kgo.NewClient(append(commonOpts(s.config.Seeds), s.config.Opts...)...)
	if err != nil {
		return err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	// A broker may still be starting, and it tells of a leader only to those who ask: hence the loop.
	created := false
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 250*time.Millisecond) {
		if !created {
			_, err = admin.CreateTopic(ctx, s.config.Partitions, s.config.ReplicationFactor, s.config.TopicConfigs, topic)
			created = err == nil || errors.Is(err, kerr.TopicAlreadyExists)
			if refused := new(*kerr.Error); !created && errors.As(err, refused) && !kerr.IsRetriable(*refused) {
				return fmt.Errorf("the broker does not create it: %w", err)
			}
		}
		lacking := 0
		if created {
			lacking, err = leaderless(ctx, admin, topic)
			if lacking == 0 && err == nil {
				return nil
			}
		}
		if !sleep(wait, ctx.Done()) {
			return fmt.Errorf("created or found: %t, partitions without a leader: %d (last error: %v), look at the brokers: %w", created, lacking, err, ctx.Err()) //nolint:errorlint // err may be nil; the end of ctx is what failed
		}
	}
}

// leaderless counts the partitions without a leader; a topic that the broker does not show yet counts as one.
func leaderless(ctx context.Context, admin *kadm.Client, topic string) (int, error) {
	metadata, err := admin.Metadata(ctx, topic)
	if err != nil {
		return 1, err
	}
	detail := metadata.Topics[topic]
	if detail.Err != nil || len(detail.Partitions) == 0 {
		return 1, detail.Err
	}
	lacking := 0
	for _, p := range detail.Partitions {
		if p.Err != nil || p.Leader < 0 {
			lacking++
		}
	}
	return lacking, nil
}

// sleep waits for d; it returns false at once when stop is closed.
func sleep(d time.Duration, stop <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-stop:
		return false
	}
}

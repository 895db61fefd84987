package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

// ErrClosed is the answer of a closed Publisher or Subscriber, and the cause with which the contexts of messages in hand end
// when their subscription does.
var ErrClosed = errors.New("kafka: closed")

// PublisherConfig says how a Publisher reaches the log. Exactly one of Seeds and Client is needed.
type PublisherConfig struct {
	// Seeds are the addresses of some brokers, as host:port. The Publisher makes a client of its own and closes it. Default none.
	Seeds []string

	// Client is a client to share. It stays open when the Publisher closes, and its own options count: whoever makes it
	// decides about acknowledgements, idempotence and time limits. Default none.
	Client *kgo.Client

	// Opts are added to the client made from Seeds, after the defaults (acks=all, idempotent, a record fails after 30 s) and
	// before what the promises need (acks=all). Default none.
	Opts []kgo.Opt

	// Marshaler makes the records. Default DefaultMarshaler{}.
	Marshaler Marshaler
}

// deliveryTimeout bounds Publish: franz-go's own default is to try for ever.
const deliveryTimeout = 30 * time.Second

func (c PublisherConfig) withDefaults() PublisherConfig {
	if c.Marshaler == nil {
		c.Marshaler = DefaultMarshaler{}
	}
	return c
}

func (c PublisherConfig) validate() error {
	var faults []error
	if len(c.Seeds) == 0 && c.Client == nil {
		faults = append(faults, errors.New("expected Seeds or Client, but both are empty: give the address of a broker"))
	}
	if len(c.Seeds) > 0 && c.Client != nil {
		faults = append(faults, fmt.Errorf("expected either Seeds or Client, but got both (Seeds %v): drop one", c.Seeds))
	}
	if c.Client != nil && len(c.Opts) > 0 {
		faults = append(faults, fmt.Errorf("expected no Opts beside Client, but got %d: give them to the client", len(c.Opts)))
	}
	return errors.Join(faults...)
}

// A Publisher puts messages on the log and returns when they are safe. It may be used from many goroutines; their records
// share requests.
type Publisher struct {
	marshaler Marshaler
	client    *kgo.Client
	owned     bool

	mu     sync.RWMutex // held for reading while publishing, so that Close waits
	closed bool
}

var _ message.Publisher = (*Publisher)(nil)

// NewPublisher makes a Publisher. It does not wait for the broker: Publish does.
func NewPublisher(config PublisherConfig) (*Publisher, error) {
	if err := config.validate(); err != nil {
		return nil, fmt.Errorf("kafka: publisher: %w", err)
	}
	config = config.withDefaults()
	p := &Publisher{marshaler: config.Marshaler, client: config.Client}
	if p.client == nil {
		opts := append(commonOpts(config.Seeds), kgo.RecordDeliveryTimeout(deliveryTimeout))
		opts = append(opts, config.Opts...)
		opts = append(opts, kgo.RequiredAcks(kgo.AllISRAcks()))
		client, err := kgo.NewClient(opts...)
		if err != nil {
			return nil, fmt.Errorf("kafka: publisher: expected a client for %v, but its options do not fit: %w", config.Seeds, err)
		}
		p.client, p.owned = client, true
	}
	return p, nil
}

// commonOpts are the defaults of all clients made here.
func commonOpts(seeds []string) []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(seeds...),
		// A topic that was created a moment ago should not cost the client's default of 5 s.
		kgo.MetadataMinAge(100 * time.Millisecond),
	}
}

// A PublishError says which messages of a call did not get onto the log.
type PublishError struct {
	Topic    string
	Position int    // of the first failed message in the call, from 0
	UUID     string // of that message
	Failed   int    // how many failed
	Total    int    // how many the call had
	Err      error  // why the first failed
}

// Error names the first failed message and tells what to do.
func (e *PublishError) Error() string {
	return fmt.Sprintf("kafka: expected to publish %d messages to topic %q, but %d failed, the first at position %d (UUID %q): %v; publish them again",
		e.Total, e.Topic, e.Failed, e.Position, e.UUID, e.Err)
}

// Unwrap returns why the first message failed.
func (e *PublishError) Unwrap() error { return e.Err }

// Publish sends all messages in one go and returns when the brokers have acknowledged every one. If one cannot be marshaled, or
// its context has ended, none is sent. Errors are *PublishError, or ErrClosed. A failed message may still get onto the log if
// only the answer was lost; readers recognise it by its UUID.
//
// Contexts are looked at before sending only. Records of different callers share batches, and a client that gives up one
// record for its context must give up the whole batch, so a cancellation would fail the messages of others.
func (p *Publisher) Publish(topic string, messages ...*message.Message) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return fmt.Errorf("expected to publish %d messages to topic %q, but the publisher is closed: %w", len(messages), topic, ErrClosed)
	}
	if len(messages) == 0 {
		return nil
	}
	records := make([]*kgo.Record, len(messages))
	for i, msg := range messages {
		record, err := p.record(topic, msg)
		if err != nil {
			return &PublishError{Topic: topic, Position: i, UUID: msg.UUID, Failed: len(messages), Total: len(messages), Err: err}
		}
		records[i] = record
	}
	// detached: a context that ends fails other callers' records of the same batch; the delivery timeout bounds the wait.
	results := p.client.ProduceSync(context.Background(), records...)
	if results.FirstErr() == nil {
		return nil
	}
	return publishError(topic, messages, records, results)
}

func (p *Publisher) record(topic string, msg *message.Message) (*kgo.Record, error) {
	ctx := msg.Context()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("expected a live context, but it has ended: %w", context.Cause(ctx))
	}
	record, err := p.marshaler.Marshal(topic, msg)
	if err != nil {
		return nil, fmt.Errorf("expected to marshal the message, but: %w", err)
	}
	record.Topic = topic
	record.Context = context.WithoutCancel(ctx) // for the client's hooks, such as tracing
	return record, nil
}

// publishError restores the order of the call: results come in the order in which batches ended.
func publishError(topic string, messages []*message.Message, records []*kgo.Record, results kgo.ProduceResults) error {
	failed := make(map[*kgo.Record]error)
	for _, r := range results {
		if r.Err != nil {
			failed[r.Record] = r.Err
		}
	}
	for i, record := range records {
		if err := failed[record]; err != nil {
			return &PublishError{Topic: topic, Position: i, UUID: messages[i].UUID, Failed: len(failed), Total: len(messages), Err: err}
		}
	}
	return nil
}

// Close waits for calls of Publish under way, then closes the client unless it is shared. Further calls do nothing.
func (p *Publisher) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	if p.owned {
		p.client.Close()
	}
	return nil
}

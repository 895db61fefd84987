package producers

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/kafkaclient"
	"github.com/opstream/opstream/schemas"
)

// Config of a [Client].
type Config struct {
	Brokers []string       // seeds, host:port; at least one
	Topics  schemas.Topics // default: the prefix "opstream."
	Source  string         // CloudEvents source, e.g. "/crm/core"; names the caller in the log; required

	BufferedMax      int           // records that are sent and not yet acknowledged; more wait; default 10 000
	BufferedBytesMax int           // and their values' size in all; default 64 MiB
	DeliveryTimeout  time.Duration // after which a record that the broker does not take is given up; at least 1 s; default 30 s

	Options []kgo.Opt // more options of the Kafka client, e.g. TLS and SASL; default none
}

func (c Config) withDefaults() Config {
	if c.BufferedMax == 0 {
		c.BufferedMax = 10_000
	}
	if c.BufferedBytesMax == 0 {
		c.BufferedBytesMax = 64 << 20
	}
	if c.DeliveryTimeout == 0 {
		c.DeliveryTimeout = 30 * time.Second
	}
	return c
}

func (c Config) validate() error {
	var faults []error
	if len(c.Brokers) == 0 {
		faults = append(faults, errors.New("Brokers: expected at least one address, but got none")) //nolint:staticcheck // it begins with a field's name
	}
	if c.Source == "" || len(c.Source) > schemas.MaxHeaderBytes || !utf8.ValidString(c.Source) {
		faults = append(faults, fmt.Errorf("Source: expected a name for this caller, such as /crm/core, at most %d bytes of UTF-8, but got %.64q", schemas.MaxHeaderBytes, c.Source)) //nolint:staticcheck // it begins with a field's name
	}
	if c.BufferedMax < 1 {
		faults = append(faults, fmt.Errorf("BufferedMax: expected at least 1, but got %d", c.BufferedMax))
	}
	if c.BufferedBytesMax < 1 {
		faults = append(faults, fmt.Errorf("BufferedBytesMax: expected at least 1, but got %d", c.BufferedBytesMax))
	}
	if c.DeliveryTimeout < time.Second {
		faults = append(faults, fmt.Errorf("DeliveryTimeout: expected at least 1s, but got %s", c.DeliveryTimeout))
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("configure the producer: %w", err)
	}
	return nil
}

// Client puts requests and commands on the log. It is safe for concurrent use; one for a process batches best.
type Client struct {
	cfg    Config
	source []byte
	kafka  *kafkaclient.Client
	room   *room
	asked  *asked
}

// asked counts the requests to write that have ended, with an answer or without. The Kafka client tells nobody that it has sent a record
// before; but one that saw a single request end has been in no other. Of more, some may have been of other records.
type asked struct{ atomic.Uint64 }

// OnBrokerE2E is called before anything follows from the end of a request, be it another try or an error.
func (a *asked) OnBrokerE2E(_ kgo.BrokerMetadata, key int16, _ kgo.BrokerE2E) {
	if key == kmsg.Produce.Int16() {
		a.Add(1)
	}
}

// New makes a client. It connects with the first record.
func New(cfg Config) (*Client, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	a := new(asked)
	kafka, err := kafkaclient.New(append([]kgo.Opt{
		kgo.SeedBrokers(cfg.Brokers...),
		kgo.WithHooks(a),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.BasicConsistentPartitioner(func(string) func(*kgo.Record, int) int {
			return func(r *kgo.Record, n int) int { return int(schemas.PartitionFor(r.Key, int32(n))) }
		})),
		kgo.ProducerLinger(0), // what comes while a request is under way is the next batch
		kgo.ProducerBatchMaxBytes(batchBytes),
		kgo.RecordDeliveryTimeout(cfg.DeliveryTimeout),
		kgo.MaxBufferedRecords(cfg.BufferedMax + 1), // never reached, see room
		kgo.MetadataMinAge(100 * time.Millisecond),  // or a topic that was made just now is asked for again only after 5 s
	}, cfg.Options...)...)
	if err != nil {
		return nil, fmt.Errorf("make a Kafka client for %v: %w", cfg.Brokers, err)
	}
	return &Client{cfg: cfg, source: []byte(cfg.Source), kafka: kafka, room: newRoom(cfg.BufferedMax, cfg.BufferedBytesMax), asked: a}, nil
}

// batchBytes lets the largest request with its headers into a batch.
const batchBytes = 2 * schemas.MaxRequestBytes

// Position is where a record stands on the topic requests.
type Position struct {
	Partition int32
	Offset    int64
}

// Send puts a command on the log: done is called once, with the position when it is safe, or with an *[Error]. It is called
// from a goroutine of the Kafka client, in the order of the log within a partition, and must not block; when nothing was sent,
// it is called before Send returns. The command is not checked beyond its kind, see [schemas.ParseRequest]; a submit has its
// own key, any other needs [operation.Key] of its operation. Send blocks while as much is under way as Config allows, and gives up when ctx ends.
// Afterwards ctx has no effect: what has gone out cannot be called back.
//
// The methods of the client that are named for what they ask are easier to use.
func (c *Client) Send(ctx context.Context, cmd *operation.Command, key string, done func(Position, error)) {
	if !cmd.Kind.Request() || cmd.Kind == operation.Submit && cmd.Request == nil {
		done(Position{}, &Error{Code: schemas.InvalidRequest, Reason: fmt.Sprintf("expected a command that callers give, with its request if it is a submit, but got %s", cmd.Kind)})
		return
	}
	c.send(ctx, c.encode(cmd, key), done)
}

func (c *Client) encode(cmd *operation.Command, key string) *kgo.Record {
	rec := schemas.EncodeCommand(c.cfg.Topics, cmd, []byte(key))
	for i := range rec.Headers {
		if rec.Headers[i].Key == schemas.HeaderSource {
			rec.Headers[i].Value = c.source
		}
	}
	return rec
}

// checked encodes a command of somebody who may have made a mistake. The scheduler's own decoder judges the record, so that
// what passes here is never refused there for its form.
func (c *Client) checked(cmd *operation.Command, key string) (*kgo.Record, error) {
	rec := c.encode(cmd, key)
	if _, err := schemas.DecodeCommand(rec); err != nil {
		return nil, refused(err)
	}
	return rec, nil
}

func (c *Client) send(ctx context.Context, rec *kgo.Record, done func(Position, error)) {
	size := len(rec.Value)
	if err := c.room.enter(ctx, size); errors.Is(err, errRoomClosed) {
		done(Position{}, isClosed())
		return
	} else if err != nil {
		done(Position{}, notSent(ctx, fmt.Sprintf("room among the %d records that may be under way", c.cfg.BufferedMax)))
		return
	}
	before := c.asked.Load()
	// detached: a context that ends fails all records of its partition that are buffered, whoever sent them.
	c.kafka.Produce(context.Background(), rec, func(r *kgo.Record, err error) {
		c.room.leave(size)
		if err != nil {
			done(Position{}, delivery(err, c.asked.Load()-before <= 1))
			return
		}
		done(Position{r.Partition, r.Offset}, nil)
	})
}

func isClosed() *Error {
	return &Error{Code: CodeClosed, Retry: true, Reason: "the client is closed; nothing was sent; send it again under the same id with another client"}
}

// sync sends a record and waits until it is safe.
func (c *Client) sync(ctx context.Context, rec *kgo.Record) error {
	acked := make(chan error, 1)
	c.send(ctx, rec, func(_ Position, err error) { acked <- err })
	select {
	case err := <-acked:
		return err
	case <-ctx.Done():
		select {
		case err := <-acked: // it was settled in the same moment, and that is better news than none
			return err
		default:
			return unsettled(ctx)
		}
	}
}

// Close refuses further records, waits until those under way are settled or ctx ends, and closes the connections. The
// callbacks of records that are not settled by then get an error that is [ErrUnknown].
func (c *Client) Close(ctx context.Context) error {
	if !c.room.close() {
		return nil
	}
	err := c.kafka.Flush(ctx)
	left := c.kafka.BufferedProduceRecords()
	c.kafka.Close()
	if err != nil {
		return fmt.Errorf("close the producer: expected to settle all records, but %d were still under way: %w", left, err)
	}
	return nil
}

package answers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/kafkaclient"
	"github.com/opstream/opstream/internal/oftenlog"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/producers/command"
	"github.com/opstream/opstream/schemas"
)

// Config of a [Client].
type Config struct {
	Brokers []string       // seeds, host:port; at least one
	Topics  schemas.Topics // default: the prefix "opstream."
	Source  string         // CloudEvents source of the commands; default schemas.SourceProducer

	InFlightMax int           // commands that are sent and not answered yet; default 10 000
	PouredMax   int           // of these, by Begin; default 512, or InFlightMax if that is less
	LagMax      time.Duration // a partition whose oldest command has waited longer takes no more; default 2 s

	Options []kgo.Opt // more options of the Kafka clients, e.g. TLS and SASL; default none

	Log *slog.Logger // default slog.Default()
}

func (c Config) withDefaults() Config {
	if c.Source == "" {
		c.Source = schemas.SourceProducer
	}
	if c.InFlightMax == 0 {
		c.InFlightMax = 10_000
	}
	if c.PouredMax == 0 {
		// Enough to keep a scheduler busy, and with slow work still less than LagMax allows: before it is known how fast they are
		// answered, more would be in the way of everybody else.
		c.PouredMax = min(512, c.InFlightMax)
	}
	if c.LagMax == 0 {
		c.LagMax = 2 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

func (c Config) validate() error {
	var faults []error
	if len(c.Brokers) == 0 {
		faults = append(faults, errors.New("Brokers: expected at least one address, but got none")) //nolint:staticcheck // it begins with a field's name
	}
	if c.InFlightMax < 1 {
		faults = append(faults, fmt.Errorf("InFlightMax: expected at least 1, but got %d", c.InFlightMax))
	}
	if c.PouredMax < 1 || c.PouredMax > c.InFlightMax {
		faults = append(faults, fmt.Errorf("PouredMax: expected 1 to %d, but got %d", c.InFlightMax, c.PouredMax))
	}
	if c.LagMax < 0 {
		faults = append(faults, fmt.Errorf("LagMax: expected a positive duration, but got %s", c.LagMax))
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("configure the answers: %w", err)
	}
	return nil
}

// Client puts commands on the log and returns their answers. It is safe for concurrent use; one for a process is enough.
type Client struct {
	cfg        Config
	producer   *producers.Client
	reader     *kafkaclient.Client
	journal    string
	partitions []*partition
	slots      chan struct{}
	poured     chan struct{} // slots of those that Begin sends
	feed       feed
	denied     atomic.Pointer[denial] // the last that the broker made of the reader; nil for none
}

// denial is an error that lasts until somebody gives a right back.
type denial struct {
	at  time.Time
	err error
}

// deniedFor is how long a denial is taken to last when nothing more is heard of it. While it does, it is repeated with every fetch.
const deniedFor = 10 * time.Second

// Denied says why the journal cannot be read at present; nil when it can.
func (c *Client) Denied() error {
	if r := c.denied.Load(); r != nil && time.Since(r.at) < deniedFor {
		return r.err
	}
	return nil
}

// It is a pipeline for package command.
var _ command.Pipeline = (*Client)(nil)

// New makes a client and finds the ends of the journal. Commands are answered while Run runs.
func New(ctx context.Context, cfg Config) (*Client, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	producer, err := producers.New(producers.Config{
		Brokers: cfg.Brokers, Topics: cfg.Topics, Source: cfg.Source, Options: cfg.Options,
		BufferedMax: cfg.InFlightMax, // the slots are the narrower bound
	})
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, producer: producer, journal: cfg.Topics.Journal(), slots: make(chan struct{}, cfg.InFlightMax), poured: make(chan struct{}, cfg.PouredMax)}
	c.reader, err = kafkaclient.New(append([]kgo.Opt{
		kgo.SeedBrokers(cfg.Brokers...),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()), // an offset that is not there must be heard of, not skipped
		kgo.FetchMaxWait(500 * time.Millisecond),    // a partition's first fetch waits no longer behind empty ones
		kgo.MetadataMinAge(100 * time.Millisecond),
	}, cfg.Options...)...)
	if err == nil {
		stop := context.AfterFunc(ctx, c.reader.Abandon)
		err = c.beginPatiently(ctx)
		stop()
		if err != nil {
			c.reader.Close()
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("begin to read %s: %w", c.journal, err), producer.Close(ctx))
	}
	return c, nil
}

// beginLimit is how long a cluster may be without a leader for some partition, or without knowledge of new topics on some broker.
const beginLimit = 10 * time.Second

// beginPatiently is begin, again and again while the cause may pass by itself: until ctx ends while no broker can be reached.
func (c *Client) beginPatiently(ctx context.Context) error {
	for deadline := time.Now().Add(beginLimit); ; {
		err := c.begin(ctx)
		away := errors.Is(err, errUnreachable)
		if err == nil || !away && (!kerr.IsRetriable(err) || time.Now().After(deadline)) {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

var errUnreachable = errors.New("no broker can be reached")

// begin finds the partitions and their ends.
func (c *Client) begin(ctx context.Context) error {
	admin := kadm.NewClient(c.reader.Client)
	requests := c.cfg.Topics.Requests()
	ends, err := admin.ListEndOffsets(ctx, c.journal, requests)
	if err == nil {
		err = ends.Error()
	}
	if kafka := (*kerr.Error)(nil); err != nil && !errors.As(err, &kafka) {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	} else if err != nil {
		return fmt.Errorf("find its end and that of %s; start this process again when the broker can be reached and has the topics: %w", requests, err)
	}
	starts, err := admin.ListStartOffsets(ctx, c.journal)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return fmt.Errorf("find its beginning; start this process again when the broker can be reached: %w", err)
	}
	if n, m := len(ends[c.journal]), len(ends[requests]); n == 0 || n != m {
		return fmt.Errorf("expected %s to have as many partitions as %s, at least one, but they have %d and %d; opstream topics plan says what can be done; keep the journal as it is", c.journal, requests, n, m)
	}
	offsets := make(map[int32]kgo.Offset)
	for i := range int32(len(ends[c.journal])) {
		end, ok := ends.Lookup(c.journal, i)
		start, also := starts.Lookup(c.journal, i)
		if !ok || !also {
			return fmt.Errorf("expected its partitions to be numbered from 0, but %d is missing", i)
		}
		p := &partition{number: i, requests: requests, slots: c.slots, from: end.Offset, lost: -1, last: -1, sent: -1, givenUp: -1}
		var at int64
		at, p.follower = startAt(start.Offset, end.Offset)
		offsets[i] = kgo.NewOffset().At(at)
		c.partitions = append(c.partitions, p)
	}
	c.reader.AddConsumePartitions(map[string]map[int32]kgo.Offset{c.journal: offsets})
	return nil
}

// Run reads the journal until ctx ends, which is no error. Commands that are under way then end as [Unheard], and later ones
// are refused: stop those who give commands first. A right that is missing is waited for, see [Client.Denied].
func (c *Client) Run(ctx context.Context) error {
	err := c.read(ctx)
	ended := fmt.Errorf("%w: this process has stopped reading the journal; send the command to another one", command.ErrUnavailable)
	for _, p := range c.partitions {
		p.end(ended)
	}
	c.feed.end(ended)
	return err
}

func (c *Client) read(ctx context.Context) error {
	denied := oftenlog.New(c.cfg.Log, "the brokers do not let this process read the journal; answers to commands are not heard until they do", "topic")
	for {
		fetches := c.reader.PollFetches(ctx)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			return nil //nolint:nilerr // to be stopped is no failure
		}
		var err error
		fetches.EachError(func(_ string, partition int32, fault error) {
			if errors.Is(fault, kerr.TopicAuthorizationFailed) || errors.Is(fault, kerr.ClusterAuthorizationFailed) {
				denied.Warn(c.journal, slog.Int("partition", int(partition)), slog.Any("err", fault))
				c.denied.Store(&denial{time.Now(), fmt.Errorf("read %s: %w", c.journal, fault)})
				return
			}
			err = errors.Join(err, fmt.Errorf("read %s, partition %d; start this process again when the cause is gone: %w", c.journal, partition, fault))
		})
		fetches.EachPartition(func(f kgo.FetchTopicPartition) {
			if err == nil && len(f.Records) > 0 {
				err = c.take(c.partitions[f.Partition], f.Records)
			}
		})
		if err != nil {
			return err
		}
		kafkaclient.Pace(ctx, fetches)
	}
}

// take follows the records of one partition and tells those who wait for them.
func (c *Client) take(p *partition, records []*kgo.Record) error {
	asked, listened := p.asked(), c.feed.listened()
	for _, rec := range records {
		valid, err := p.follower.valid(rec)
		if err != nil {
			return fmt.Errorf("read %s, partition %d: %w", c.journal, p.number, err)
		}
		if !valid || rec.Offset < p.from || !asked && !listened {
			continue
		}
		h := headersOf(rec)
		if asked {
			if offset, ok := h.request(); ok {
				p.seen = append(p.seen, early{offset, rec})
			}
		}
		if listened {
			c.feed.add(p.number, rec, h)
		}
	}
	if len(p.seen) > 0 {
		p.match()
		clear(p.seen)
		p.seen = p.seen[:0]
	}
	if listened {
		c.feed.deliver()
	}
	return nil
}

// Close waits until what was sent is settled or ctx ends, and closes the connections. Let Run end first.
func (c *Client) Close(ctx context.Context) error {
	err := c.producer.Close(ctx)
	c.reader.Close()
	return err
}

// Do puts a command on the log, in the partition of key, and waits for the scheduler's answer until ctx ends. A command that
// the scheduler refuses is an Answer with a Rejection. The errors are those of command.Journal, and answer errors.Is for
// producers.ErrRetry: whoever gets one sends the command again under the same id.
func (c *Client) Do(ctx context.Context, cmd *operation.Command, key string) (command.Answer, error) {
	p := c.partition(cmd, key)
	call, err := c.enter(ctx, p, false)
	if err != nil {
		return command.Answer{}, err
	}
	c.send(ctx, p, call, cmd, key)
	select {
	case <-call.done:
	case <-ctx.Done():
		p.abandon(ctx, call)
	}
	return p.read(call)
}

// Begin puts a command on the log and returns what waits for the answer. Where Do refuses because too much is under way, Begin
// waits, which slows down who pours commands in.
func (c *Client) Begin(ctx context.Context, cmd *operation.Command, key string) func() (command.Answer, error) {
	p := c.partition(cmd, key)
	call, err := c.pour(ctx, p)
	if err != nil {
		return func() (command.Answer, error) { return command.Answer{}, err }
	}
	c.send(ctx, p, call, cmd, key)
	// Not in the returned function: who gives up a batch does not call it, and the slot must be free again.
	stop := context.AfterFunc(ctx, func() { p.abandon(ctx, call) })
	return func() (command.Answer, error) {
		<-call.done
		stop()
		return p.read(call)
	}
}

func (c *Client) partition(cmd *operation.Command, key string) *partition {
	if cmd.Kind == operation.Submit && cmd.Request != nil {
		key = cmd.Request.Key() // as the producer has it
	}
	return c.partitions[schemas.PartitionFor([]byte(key), int32(len(c.partitions)))]
}

// pour is enter for who waits, and takes one of the fewer slots for that, too.
func (c *Client) pour(ctx context.Context, p *partition) (*call, error) {
	if err := wait(ctx, c.poured); err != nil {
		return nil, err
	}
	call, err := c.enter(ctx, p, true)
	if err != nil {
		<-c.poured
		return nil, err
	}
	call.poured = c.poured
	return call, nil
}

// enter takes a slot and begins a call, or says why not.
func (c *Client) enter(ctx context.Context, p *partition, patient bool) (*call, error) {
	if patient {
		if err := wait(ctx, c.slots); err != nil {
			return nil, err
		}
	} else {
		select {
		case c.slots <- struct{}{}:
		default:
			return nil, overloaded(p.retryAfter(), "expected fewer than %d commands under way, but there are no fewer", c.cfg.InFlightMax)
		}
	}
	for {
		call, late, moved, err := p.enter(time.Now(), c.cfg.LagMax)
		if call != nil {
			return call, nil
		}
		if err == nil && !patient {
			err = overloaded(backOff(late), "expected partition %d to answer a command within %s, but it is %s late", p.number, c.cfg.LagMax, late.Round(time.Millisecond))
		}
		if err == nil {
			again := time.NewTimer(probeEvery)
			select {
			case <-moved:
			case <-again.C:
			case <-ctx.Done():
				err = overloaded(backOff(late), "expected partition %d to be no later than %s before the caller's time ended, but it was %s late", p.number, c.cfg.LagMax, late.Round(time.Millisecond))
			}
			again.Stop()
		}
		if err != nil {
			<-c.slots
			return nil, err
		}
	}
}

// wait takes one of these slots when it is free.
func wait(ctx context.Context, slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return overloaded(time.Second, "expected fewer than %d commands under way before the caller's time ended, but there were no fewer", cap(slots))
	}
}

func (c *Client) send(ctx context.Context, p *partition, call *call, cmd *operation.Command, key string) {
	c.producer.Send(ctx, cmd, key, func(at producers.Position, err error) { p.acked(call, at, err) })
}

// backOff is when to come again to a partition that is late: the later it is, the later.
func backOff(late time.Duration) time.Duration {
	return min(max(late, time.Second), 30*time.Second)
}

// retryAfter is when to come again when too much is under way: after about one round of answers.
func (p *partition) retryAfter() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return backOff(p.latency)
}

// Overload says whether commands are better not taken now, and how long to wait: as many are under way as may be, or half of
// the partitions or more take none. Do refuses by itself, partition by partition; this is for whoever wants to know before he
// has read a request.
func (c *Client) Overload() (retryAfter time.Duration, overloaded bool) {
	s := c.Stats()
	return backOff(s.Oldest), s.InFlight >= c.cfg.InFlightMax || 2*s.Late >= len(c.partitions)
}

// Stats tells how it goes.
type Stats struct {
	InFlight int           // commands that wait for their answer
	Latency  time.Duration // of answers, smoothed; of the slowest partition
	Oldest   time.Duration // how long the oldest command without an answer has waited, or a new one would have to
	Late     int           // partitions that take no command now, being later than LagMax
}

// Stats returns the present state.
func (c *Client) Stats() Stats {
	now := time.Now()
	s := Stats{InFlight: len(c.slots)}
	for _, p := range c.partitions {
		p.mu.Lock()
		age, refuses := p.refuses(now, c.cfg.LagMax)
		s.Latency, s.Oldest = max(s.Latency, p.latency), max(s.Oldest, age)
		if refuses {
			s.Late++
		}
		p.mu.Unlock()
	}
	return s
}

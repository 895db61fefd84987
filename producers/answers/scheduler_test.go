package answers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/producers/command"
	"github.com/opstream/opstream/schemas"
)

const partitions = 4

// world is a Kafka with a scheduler that answers what the test tells it to.
type world struct {
	t      testing.TB
	topics schemas.Topics
	seeds  []string
	client *kgo.Client
	// answer makes the events for a command; nil: one that is accepted.
	answer func(cmd *operation.Command, partition int32) []operation.Event

	mu     sync.Mutex
	chains [partitions]schemas.Chain
	places map[operation.ID]operation.Place // of the first event of each
}

func newWorld(t testing.TB, b *kafkatest.Broker) *world {
	w := &world{t: t, seeds: b.Seeds, topics: b.Topics(), places: make(map[operation.ID]operation.Place)}
	b.Create(t, w.topics.Specs(partitions, 1)...)
	w.client = kafkatest.Client(t, w.seeds, kgo.ConsumeTopics(w.topics.Requests()), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	return w
}

// run answers commands until the test ends.
func (w *world) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	w.t.Cleanup(func() {
		cancel()
		<-done
	})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			w.step(ctx)
		}
	}()
}

func (w *world) step(ctx context.Context) {
	w.client.PollFetches(ctx).EachPartition(func(f kgo.FetchTopicPartition) {
		var events []operation.Event
		for _, rec := range f.Records {
			cmd, err := schemas.DecodeCommand(rec)
			if err != nil {
				w.t.Errorf("decode a command: %v", err)
				continue
			}
			if w.answer == nil {
				events = append(events, accepted(&cmd))
			} else {
				events = append(events, w.answer(&cmd, f.Partition)...)
			}
		}
		w.append(f.Partition, events...)
	})
}

// append puts events on the journal, and forgets how the appends went: readers tell.
func (w *world) append(partition int32, events ...operation.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range events {
		rec := schemas.EncodeEvent(&events[i], []byte("key"), partition)
		w.chains[partition].Seal(rec)
		if _, again := w.places[events[i].ID]; !again {
			w.places[events[i].ID] = operation.Place(w.chains[partition].Last)
		}
		w.produce(rec, partition)
	}
}

// appendVoid puts an event on the journal that was decided for another place.
func (w *world) appendVoid(partition int32, event operation.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	stale := w.chains[partition]
	stale.Next += 5
	rec := schemas.EncodeEvent(&event, []byte("key"), partition)
	stale.Seal(rec)
	w.produce(rec, partition)
	w.chains[partition].Next++
}

func (w *world) produce(rec *kgo.Record, partition int32) {
	rec.Topic, rec.Partition = w.topics.Journal(), partition
	w.client.Produce(context.Background(), rec, func(r *kgo.Record, err error) {
		if err != nil && !errors.Is(err, kgo.ErrClientClosed) {
			w.t.Errorf("append to the journal: %v", err)
		}
	})
}

func (w *world) flush() {
	if err := w.client.Flush(within(w.t, 10*time.Second)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) place(id operation.ID) operation.Place {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.places[id]
}

// accepted is the event for a submit.
func accepted(cmd *operation.Command) operation.Event {
	return operation.Event{Kind: operation.Requested, Org: cmd.Org, ID: cmd.ID, At: 1, Cause: cmd.Cause, Request: cmd.Request}
}

// open starts a client. It runs until the test ends, or until the function that is returned is called.
func (w *world) open(cfg Config) (c *Client, stop func() error) {
	w.t.Helper()
	cfg.Brokers, cfg.Topics = w.seeds, w.topics
	c, err := New(within(w.t, 10*time.Second), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func(c *Client) { ran <- c.Run(ctx) }(c)
	stop = sync.OnceValue(func() error {
		cancel()
		err := <-ran
		closing, end := context.WithTimeout(context.Background(), 10*time.Second)
		defer end()
		return errors.Join(err, c.Close(closing))
	})
	w.t.Cleanup(func() {
		if err := stop(); err != nil {
			w.t.Errorf("end of the client: %v", err)
		}
	})
	return c, stop
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func submit(id string) (*operation.Command, string) {
	q := &operation.Request{ID: operation.ID(id), Organization: "acme", Type: "import", Priority: operation.PriorityDefault, Data: []byte(`{"text":"some data"}`)}
	return &operation.Command{Kind: operation.Submit, Org: "acme", ID: q.ID, Request: q}, q.Key()
}

func order(kind operation.CommandKind, id string) (*operation.Command, string) {
	return &operation.Command{Kind: kind, Org: "acme", ID: operation.ID(id), CommandID: fmt.Sprint(kind, "-", id), Until: 1 << 50}, operation.Key("acme", "", "", operation.ID(id))
}

func (c *Client) mustDo(t testing.TB, cmd *operation.Command, key string) command.Answer {
	t.Helper()
	a, err := c.Do(within(t, 10*time.Second), cmd, key)
	if err != nil {
		t.Fatalf("%s %s: %v", cmd.Kind, cmd.ID, err)
	}
	return a
}

package answers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/producers/command"
	"github.com/opstream/opstream/schemas"
)

func TestAnswerSaysWhatBecameOfTheCommand(t *testing.T) {
	kafkatest.Each(t, testAnswerSaysWhatBecameOfTheCommand)
}

func testAnswerSaysWhatBecameOfTheCommand(t *testing.T, b *kafkatest.Broker) {
	w := newWorld(t, b)
	w.answer = func(cmd *operation.Command, _ int32) []operation.Event {
		e := operation.Event{Org: cmd.Org, ID: cmd.ID, At: 1, Cause: cmd.Cause, CommandID: cmd.CommandID, Command: cmd.Kind}
		// A second event with the same cause is not the answer.
		dispatched := operation.Event{Kind: operation.Dispatched, Org: cmd.Org, ID: cmd.ID, At: 1, Cause: cmd.Cause, Attempt: 1, Session: "s"}
		switch {
		case cmd.Kind == operation.Submit && cmd.ID == "later":
			e = accepted(cmd)
			e.Holds, e.Until = operation.HoldPostponed, 1<<50
		case cmd.Kind == operation.Submit && cmd.ID == "again":
			e.Kind, e.Status = operation.Unchanged, operation.StatusSucceeded
		case cmd.Kind == operation.Submit:
			return []operation.Event{accepted(cmd), dispatched}
		case cmd.Kind == operation.Cancel:
			e.Kind, e.Attempt, e.Session = operation.CancelRequested, 1, "s"
		case cmd.Kind == operation.Pause:
			e.Kind, e.Holds = operation.Paused, operation.HoldPaused
		case cmd.Kind == operation.Resume:
			e.Kind = operation.Resumed
		case cmd.Kind == operation.Postpone:
			e.Kind, e.Code, e.Reason = operation.Rejected, operation.InvalidTime, operation.Reasons[operation.InvalidTime]
		case cmd.Kind == operation.Retry:
			e.Kind, e.Code, e.Reason = operation.Rejected, schemas.OutOfRange, "retry.jitter: expected at most 1, but got 2"
		case cmd.Kind == operation.Delete:
			e.Kind = operation.Deleted
		}
		return []operation.Event{e}
	}
	w.run()
	c, _ := w.open(Config{})
	for _, test := range []struct {
		kind operation.CommandKind
		id   string
		want string
	}{
		{operation.Submit, "now", "requested ready"},
		{operation.Submit, "later", "requested waiting"},
		{operation.Submit, "again", "unchanged succeeded, unchanged"},
		{operation.Cancel, "now", "cancel-requested canceling"},
		{operation.Pause, "now", "paused waiting"},
		{operation.Resume, "now", "resumed ready"},
		{operation.Postpone, "now", "rejected absent, invalid_time at : " + operation.Reasons[operation.InvalidTime]},
		{operation.Retry, "now", "rejected absent, out_of_range at retry.jitter: expected at most 1, but got 2"},
		{operation.Delete, "now", "deleted deleted"},
	} {
		cmd, key := order(test.kind, test.id)
		if test.kind == operation.Submit {
			cmd, key = submit(test.id)
		}
		a := c.mustDo(t, cmd, key)
		got := fmt.Sprint(a.Event, " ", a.Status)
		if a.Unchanged {
			got += ", unchanged"
		}
		if a.Rejection != nil {
			got += fmt.Sprintf(", %s at %s: %s", a.Rejection.Code, a.Field, a.Rejection.Reason)
		}
		if got != test.want {
			t.Errorf("%s %s: expected %s, but got %s", test.kind, test.id, test.want, got)
		}
		if want := schemas.PartitionFor([]byte(key), partitions); a.Partition != want {
			t.Errorf("%s %s: expected partition %d, but got %d", test.kind, test.id, want, a.Partition)
		}
	}
}

// Each of many gets its own answer, whatever else the scheduler writes in between.
func TestEverybodyGetsHisOwnAnswer(t *testing.T) { kafkatest.Each(t, testEverybodyGetsHisOwnAnswer) }

func testEverybodyGetsHisOwnAnswer(t *testing.T, b *kafkatest.Broker) {
	w := newWorld(t, b)
	noise := rand.New(rand.NewPCG(1, 1))
	w.answer = func(cmd *operation.Command, partition int32) []operation.Event {
		e := accepted(cmd)
		switch noise.IntN(10) {
		case 0: // a stale writer's answer, which does not count
			refusal := operation.Event{Kind: operation.Rejected, Org: cmd.Org, ID: cmd.ID, At: 1, Cause: cmd.Cause, Code: operation.KeyReused}
			w.appendVoid(partition, refusal)
		case 1: // what the request led to besides
			return []operation.Event{e, {Kind: operation.Released, Org: cmd.Org, ID: "other", At: 1, Cause: cmd.Cause}}
		case 2: // something else
			return []operation.Event{{Kind: operation.BecameDue, Org: cmd.Org, ID: "other", At: 1, Cause: operation.Cause{Topic: "clock"}}, e}
		}
		return []operation.Event{e}
	}
	w.run()
	c, _ := w.open(Config{LagMax: time.Minute}) // a broker that is late is no reason to refuse here
	var all sync.WaitGroup
	for g := range 64 {
		all.Go(func() {
			for i := range 30 {
				cmd, key := submit(fmt.Sprintf("op-%d-%d", g, i))
				a, err := c.Do(within(t, 20*time.Second), cmd, key)
				if err != nil || a.Rejection != nil || a.Place != w.place(cmd.ID) {
					t.Errorf("%s: expected the answer at %d, but got %+v, %v", cmd.ID, w.place(cmd.ID), a, err)
				}
			}
		})
	}
	all.Wait()
	if s := c.Stats(); s.InFlight != 0 || s.Latency == 0 || s.Oldest != 0 {
		t.Errorf("expected nothing under way, and a latency, but got %+v", s)
	}
}

func TestPipelineKeepsThousandsUnderWay(t *testing.T) {
	kafkatest.Each(t, testPipelineKeepsThousandsUnderWay)
}

func testPipelineKeepsThousandsUnderWay(t *testing.T, b *kafkatest.Broker) {
	w := newWorld(t, b)
	c, _ := w.open(Config{PouredMax: 2000})
	const n = 5000
	waits := make(chan func() (command.Answer, error), n)
	began := make(chan struct{})
	go func() {
		defer close(waits)
		for i := range n {
			cmd, key := submit(fmt.Sprint("op-", i))
			waits <- c.Begin(t.Context(), cmd, key)
			if i == 1999 {
				close(began) // all slots are taken, and nothing has been answered
			}
		}
	}()
	<-began
	w.run()
	i := 0
	for wait := range waits {
		id := operation.ID(fmt.Sprint("op-", i))
		if a, err := wait(); err != nil || a.Event != operation.Requested || a.Place != w.place(id) {
			t.Fatalf("%s: expected the answer at %d, but got %+v, %v", id, w.place(id), a, err)
		}
		i++
	}
	if i != n {
		t.Errorf("expected %d answers, but got %d", n, i)
	}
}

func TestSubmitAllGoesThroughThePipeline(t *testing.T) {
	kafkatest.Each(t, testSubmitAllGoesThroughThePipeline)
}

func testSubmitAllGoesThroughThePipeline(t *testing.T, b *kafkatest.Broker) {
	w := newWorld(t, b)
	w.run()
	c, _ := w.open(Config{})
	i, accepted := 0, 0
	err := command.SubmitAll(within(t, 20*time.Second), c, 256,
		func(context.Context) (command.Submission, bool) {
			if i++; i > 3000 {
				return command.Submission{}, false
			}
			cmd, _ := submit(fmt.Sprint("op-", i))
			return command.Submission{Line: i, Request: cmd.Request, Size: 100}, true
		},
		func(s command.Submission, a command.Answer, err error) error {
			if err == nil && a.Event == operation.Requested {
				accepted++
			}
			return err
		},
		func() error { return nil })
	if err != nil || accepted != 3000 {
		t.Errorf("expected 3000 to be accepted, but got %d, %v", accepted, err)
	}
}

func TestNoAnswerInTime(t *testing.T) { kafkatest.Each(t, testNoAnswerInTime) }

func testNoAnswerInTime(t *testing.T, b *kafkatest.Broker) {
	w := newWorld(t, b)
	arrived := make(chan struct{})
	w.answer = func(*operation.Command, int32) []operation.Event {
		close(arrived)
		return nil
	}
	w.run()
	c, _ := w.open(Config{InFlightMax: 1})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cmd, key := submit("other")
		_, err := c.Do(ctx, cmd, key)
		overload, ok := errors.AsType[*command.OverloadError](err)
		if !ok || overload.RetryAfter < time.Second || !errors.Is(err, producers.ErrRetry) {
			t.Errorf("expected a refusal with the time to come back, but got %v", err)
		}
		if after, is := c.Overload(); !is || after < time.Second {
			t.Errorf("expected an overload to be told, but got %s, %t", after, is)
		}
		cancel()
	}()
	cmd, key := submit("op")
	_, err := c.Do(ctx, cmd, key)
	if !errors.Is(err, command.ErrOutcomeUnknown) || !errors.Is(err, producers.ErrRetry) || !errors.Is(err, context.Canceled) {
		t.Errorf("expected an unknown outcome, but got %v", err)
	}
	if s := c.Stats(); s.InFlight != 0 {
		t.Errorf("expected the slot to be free again, but %d are taken", s.InFlight)
	}
}

func TestForwardedCommandIsSaidToBe(t *testing.T) { kafkatest.Each(t, testForwardedCommandIsSaidToBe) }

func testForwardedCommandIsSaidToBe(t *testing.T, b *kafkatest.Broker) {
	w := newWorld(t, b)
	w.answer = func(cmd *operation.Command, _ int32) []operation.Event {
		return []operation.Event{{Kind: operation.Forwarded, At: 1, Cause: cmd.Cause, To: 3, Body: []byte(`{}`)}}
	}
	w.run()
	c, _ := w.open(Config{})
	cmd, key := submit("op")
	_, err := c.Do(within(t, 10*time.Second), cmd, key)
	if !errors.Is(err, command.ErrOutcomeUnknown) || !strings.Contains(err.Error(), "partition 3") {
		t.Errorf("expected an error that names the partition, but got %v", err)
	}
}

func TestEndOfRunIsToldToAll(t *testing.T) { kafkatest.Each(t, testEndOfRunIsToldToAll) }

func testEndOfRunIsToldToAll(t *testing.T, b *kafkatest.Broker) {
	w := newWorld(t, b)
	arrived := make(chan struct{})
	w.answer = func(*operation.Command, int32) []operation.Event {
		close(arrived)
		return nil
	}
	w.run()
	c, stop := w.open(Config{})
	watch := c.Watch("acme", "op")
	defer watch.Stop()
	go func() {
		<-arrived
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	cmd, key := submit("op")
	if _, err := c.Do(within(t, 10*time.Second), cmd, key); !errors.Is(err, command.ErrOutcomeUnknown) || errors.Is(err, command.ErrUnavailable) {
		t.Errorf("expected an unknown outcome and nothing else, since the command is on the log, but got %v", err)
	}
	if _, err := watch.Wait(within(t, 10*time.Second)); !errors.Is(err, command.ErrUnavailable) {
		t.Errorf("expected the watch to end, but got %v", err)
	}
	if _, err := c.Do(within(t, 10*time.Second), cmd, key); !errors.Is(err, command.ErrUnavailable) {
		t.Errorf("expected later commands to be refused, but got %v", err)
	}
}

func TestFeed(t *testing.T) { kafkatest.Each(t, testFeed) }

func testFeed(t *testing.T, b *kafkatest.Broker) {
	w := newWorld(t, b)
	w.answer = func(cmd *operation.Command, _ int32) []operation.Event {
		succeeded := operation.Event{Kind: operation.Succeeded, Org: cmd.Org, ID: cmd.ID, At: 2, Cause: operation.Cause{Topic: schemas.TopicReports, Offset: 7}, Attempt: 1, Session: "s", Result: []byte(`{"n":1}`)}
		return []operation.Event{accepted(cmd), succeeded}
	}
	w.run()
	c, _ := w.open(Config{})
	cmd, key := submit("op")
	heard := make(chan string, 10)
	stop := c.Subscribe(func(entries []Entry) {
		for _, e := range entries {
			heard <- fmt.Sprint(e.Kind, " ", e.Organization, " ", e.ID, " ", e.Place)
		}
	})
	watch, again := c.Watch("acme", "op"), c.Watch("acme", "op")
	never := c.Watch("other", "op")
	c.mustDo(t, cmd, key)
	for _, watch := range []*Watch{watch, again} {
		entry, err := watch.Wait(within(t, 10*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		event, err := entry.Event()
		if err != nil || entry.Kind != operation.Succeeded || entry.Place != 1 || string(event.Result) != `{"n":1}` {
			t.Errorf("expected the end of the operation with its result, but got %+v, %+v, %v", entry, event, err)
		}
		watch.Stop()
	}
	for _, want := range []string{"requested acme op 0", "succeeded acme op 1"} {
		if got := <-heard; got != want {
			t.Errorf("expected to hear %s, but got %s", want, got)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := never.Wait(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("expected another organization's operation to go on, but got %v", err)
	}
	never.Stop()
	stop()
	if c.feed.listened() {
		t.Error("expected nobody to listen any more")
	}
	cmd, key = submit("op-2")
	c.mustDo(t, cmd, key)
	if len(heard) != 0 {
		t.Errorf("expected nothing to be heard any more, but got %s", <-heard)
	}
}

// A client that comes late knows nothing of what was before, and answers all the same.
func TestBeginInTheMiddle(t *testing.T) { kafkatest.Each(t, testBeginInTheMiddle) }

func testBeginInTheMiddle(t *testing.T, b *kafkatest.Broker) {
	w := newWorld(t, b)
	noise := rand.New(rand.NewPCG(2, 2))
	for p := range int32(partitions) {
		for i := range 50 * int(p) {
			e := operation.Event{Kind: operation.BecameDue, Org: "acme", ID: operation.ID(fmt.Sprint("old-", i)), At: 1, Cause: operation.Cause{Topic: schemas.TopicRequests, Offset: int64(i)}}
			if noise.IntN(4) == 0 {
				w.appendVoid(p, e)
			} else {
				w.append(p, e)
			}
		}
	}
	w.flush()
	w.run()
	c, _ := w.open(Config{})
	heard := 0
	defer c.Subscribe(func(entries []Entry) { heard += len(entries) })()
	for i := range 200 {
		cmd, key := submit(fmt.Sprint("op-", i))
		if a := c.mustDo(t, cmd, key); a.Event != operation.Requested || a.Place != w.place(cmd.ID) {
			t.Fatalf("%s: expected the answer at %d, but got %+v", cmd.ID, w.place(cmd.ID), a)
		}
	}
}

func TestBrokenChainStopsTheReader(t *testing.T) { kafkatest.Each(t, testBrokenChainStopsTheReader) }

func testBrokenChainStopsTheReader(t *testing.T, b *kafkatest.Broker) {
	w := newWorld(t, b)
	c, err := New(within(t, 10*time.Second), Config{Brokers: w.seeds, Topics: w.topics})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(within(t, 10*time.Second))
	event := operation.Event{Kind: operation.BecameDue, Org: "acme", ID: "op", At: 1}
	rec := schemas.EncodeEvent(&event, []byte("key"), 0)
	w.chains[0].Seal(rec)
	rec.Value = []byte(`{ }`)
	w.produce(rec, 0)
	if _, broken := errors.AsType[*schemas.ErrBroken](c.Run(within(t, 10*time.Second))); !broken {
		t.Error("expected the reader to stop with the alarm")
	}
}

func TestTopicsMustBeAlike(t *testing.T) { kafkatest.Each(t, testTopicsMustBeAlike) }

func testTopicsMustBeAlike(t *testing.T, b *kafkatest.Broker) {
	three, four := b.Topics().Specs(3, 1), b.Topics().Specs(4, 1)
	for i := range three {
		if three[i].Short == schemas.TopicJournal {
			b.Create(t, four[i])
		} else {
			b.Create(t, three[i])
		}
	}
	if _, err := New(within(t, 10*time.Second), Config{Brokers: b.Seeds, Topics: b.Topics()}); err == nil || !strings.Contains(err.Error(), "4 and 3") {
		t.Errorf("expected an error that names the numbers of partitions, but got %v", err)
	}
}

// A broker may not know yet of topics that another has created a moment ago.
func TestTopicsMayComeALittleLater(t *testing.T) {
	b := kafkatest.Memory(t)
	asked := make(chan struct{})
	seen := sync.OnceFunc(func() { close(asked) })
	b.Fake.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
		b.Fake.KeepControl()
		for _, topic := range req.(*kmsg.MetadataRequest).Topics {
			if topic.Topic != nil && *topic.Topic == b.Topics().Journal() {
				seen()
			}
		}
		return nil, nil, false
	})
	began := make(chan error, 1)
	go func() {
		c, err := New(within(t, 30*time.Second), Config{Brokers: b.Seeds, Topics: b.Topics()})
		if err == nil {
			err = c.Close(within(t, 10*time.Second))
		}
		began <- err
	}()
	select {
	case <-asked: // and it will be told that there is no such topic, since nobody has created it
	case err := <-began:
		t.Fatalf("expected it to wait for the topics, but got %v", err)
	}
	b.Create(t, b.Topics().Specs(partitions, 1)...)
	if err := <-began; err != nil {
		t.Errorf("expected it to begin when the topics are there, but got %v", err)
	}
}

// Who gives up a batch does not ask for the answers any more.
func TestBegunAndForgotten(t *testing.T) { kafkatest.Each(t, testBegunAndForgotten) }

func testBegunAndForgotten(t *testing.T, b *kafkatest.Broker) {
	w := newWorld(t, b) // the scheduler does not run, so nothing is answered
	c, _ := w.open(Config{InFlightMax: 2})
	ctx, cancel := context.WithCancel(t.Context())
	for i := range 2 {
		cmd, key := submit(fmt.Sprint("op-", i))
		c.Begin(ctx, cmd, key)
	}
	cancel()
	for range 2 {
		select {
		case c.slots <- struct{}{}:
		case <-time.After(10 * time.Second):
			t.Fatal("expected the slots to be free again")
		}
	}
	<-c.slots
	<-c.slots
}

// A broker that drops connections for a while delays answers, and loses none.
func TestDroppedConnectionsLoseNothing(t *testing.T) {
	b := kafkatest.Memory(t)
	w := newWorld(t, b)
	w.run()
	c, _ := w.open(Config{})
	var drops atomic.Int32
	for _, request := range []kmsg.Key{kmsg.Fetch, kmsg.Produce} {
		b.Fake.ControlKey(int16(request), func(kmsg.Request) (kmsg.Response, error, bool) {
			b.Fake.KeepControl()
			if n := drops.Add(1); n%4 == 0 && n < 60 {
				return nil, errors.New("drop the connection"), true
			}
			return nil, nil, false
		})
	}
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			cmd, key := submit(fmt.Sprint("op-", i))
			a, err := c.Do(within(t, 30*time.Second), cmd, key)
			if err != nil || a.Place != w.place(cmd.ID) {
				t.Errorf("%s: expected the answer at %d, but got %+v, %v", cmd.ID, w.place(cmd.ID), a, err)
			}
		})
	}
	all.Wait()
	if drops.Load() < 4 {
		t.Errorf("expected some connections to be dropped, but there were %d requests", drops.Load())
	}
}

// A right that is taken away and given back: meanwhile no answer is heard, and the reader says why; afterwards it goes on where it was.
func TestRightThatComesBack(t *testing.T) {
	b := kafkatest.Memory(t)
	w := newWorld(t, b)
	w.run()
	c, _ := w.open(Config{Log: slog.New(slog.DiscardHandler)})
	ask := func(id string) <-chan error {
		heard := make(chan error, 1)
		go func() {
			cmd, key := submit(id)
			a, err := c.Do(within(t, 30*time.Second), cmd, key)
			if err == nil && a.Place != w.place(cmd.ID) {
				err = fmt.Errorf("expected the answer at %d, but got %+v", w.place(cmd.ID), a)
			}
			heard <- err
		}()
		return heard
	}
	if err := <-ask("before"); err != nil {
		t.Fatal(err)
	}
	topics, err := kadm.NewClient(kafkatest.Client(t, b.Seeds)).ListTopics(t.Context(), w.topics.Journal())
	if err != nil {
		t.Fatal(err)
	}
	journal := topics[w.topics.Journal()].ID
	var denying atomic.Bool
	denials := make(chan struct{}, 1000)
	denying.Store(true)
	began := time.Now() // before the first denial: the reader asks all the time
	b.Fake.ControlKey(int16(kmsg.Fetch), func(asked kmsg.Request) (kmsg.Response, error, bool) {
		b.Fake.KeepControl()
		req := asked.(*kmsg.FetchRequest)
		if !denying.Load() || len(req.Topics) != 1 || req.Topics[0].TopicID != [16]byte(journal) {
			return nil, nil, false
		}
		resp := req.ResponseKind().(*kmsg.FetchResponse)
		topic := kmsg.NewFetchResponseTopic()
		topic.TopicID = journal
		for _, p := range req.Topics[0].Partitions {
			part := kmsg.NewFetchResponseTopicPartition()
			part.Partition, part.ErrorCode = p.Partition, kerr.TopicAuthorizationFailed.Code
			topic.Partitions = append(topic.Partitions, part)
		}
		resp.Topics = append(resp.Topics, topic)
		denials <- struct{}{}
		return resp, nil, true
	})
	waiting := ask("meanwhile")
	for range 5 {
		<-denials
	}
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("expected the reader to take its time when it is denied, but it asked five times in %s", took)
	}
	if err := c.Denied(); !errors.Is(err, kerr.TopicAuthorizationFailed) || !strings.Contains(err.Error(), w.topics.Journal()) {
		t.Errorf("expected to hear what is denied, but got: %v", err)
	}
	denying.Store(false)
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	if err := <-ask("afterwards"); err != nil {
		t.Error(err)
	}
}

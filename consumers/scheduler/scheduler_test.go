package scheduler

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// service is the topics of an installation on some broker, for one test.
type service struct {
	client []kgo.Opt
	topics schemas.Topics
}

// each runs a test on topics with so many partitions, in memory and on Apache Kafka.
func each(t *testing.T, partitions int32, f func(*testing.T, service)) {
	t.Helper()
	kafkatest.Each(t, func(t *testing.T, b *kafkatest.Broker) {
		b.Create(t, b.Topics().Specs(partitions, 2)...)
		f(t, service{
			client: []kgo.Opt{kgo.SeedBrokers(b.Seeds...), kgo.MetadataMinAge(50 * time.Millisecond), kgo.FetchMaxWait(500 * time.Millisecond)},
			topics: b.Topics(),
		})
	})
}

// start runs a scheduler until the returned function is called or the test ends.
func start(t testing.TB, on service, owner string, change ...func(*Config)) (stop func()) {
	t.Helper()
	cfg := Config{Client: on.client, Topics: on.topics, Owner: owner, Engine: partition.Config{Lease: 3 * time.Second}}
	for _, c := range change {
		c(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return run(t, s)
}

// run runs s until the returned function is called or the test ends.
func run(t testing.TB, s *Scheduler) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// session is a worker of the test: it takes items, and answers each as told.
type session struct {
	t      testing.TB
	topics schemas.Topics
	id     operation.SessionID
	client *kgo.Client
	inbox  int32
	seq    int64
}

func newSession(t testing.TB, on service, id operation.SessionID) *session {
	return sessionAt(t, on, id, 0)
}

func sessionAt(t testing.TB, on service, id operation.SessionID, inbox int32) *session {
	c, err := kgo.NewClient(append(on.client[:len(on.client):len(on.client)],
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{on.topics.Inboxes(): {inbox: kgo.NewOffset().AtStart()}}),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	s := &session{t: t, topics: on.topics, id: id, client: c, inbox: inbox}
	s.beat(schemas.SessionRunning)
	return s
}

func (s *session) beat(state schemas.SessionState) {
	s.seq++
	rec := schemas.EncodeHeartbeat(s.topics, &schemas.Heartbeat{
		Session: s.id, Pool: "default", Types: []string{"noop"}, Slots: 64, Queue: 32, Inbox: s.inbox, Lease: 3 * time.Second, State: state, Sequence: s.seq,
	})
	if err := s.client.ProduceSync(s.t.Context(), rec).FirstErr(); err != nil {
		s.t.Error(err)
	}
}

// serve answers items with succeeded until ctx ends, and beats, also while it works.
func (s *session) serve(ctx context.Context, on func(*schemas.Item) *operation.Command) {
	next := time.Now().Add(time.Second)
	for ctx.Err() == nil {
		poll, cancel := context.WithDeadline(ctx, next)
		fetches := s.client.PollFetches(poll)
		cancel()
		beat := func() {
			if time.Now().After(next) && ctx.Err() == nil {
				s.beat(schemas.SessionRunning)
				next = time.Now().Add(time.Second)
			}
		}
		beat()
		fetches.EachRecord(func(rec *kgo.Record) {
			beat()
			it, _, err := schemas.DecodeInbox(rec)
			if err != nil {
				s.t.Error(err)
				return
			}
			if it == nil || it.Session != s.id {
				return
			}
			if c := on(it); c != nil {
				c.Org, c.ID, c.Attempt, c.Session = it.Org, it.ID, it.Attempt, it.Session
				c.StartedAt = operation.TimeOf(time.Now())
				out := schemas.EncodeReport(s.topics, c, []byte(it.Request.Key()))
				out.Partition = it.Partition
				s.client.Produce(context.WithoutCancel(ctx), out, nil)
			}
		})
	}
}

func succeed(*schemas.Item) *operation.Command { return &operation.Command{Kind: operation.Succeed} }

func request(t testing.TB, org, id, token string) *operation.Request {
	t.Helper()
	text := fmt.Sprintf(`{"organization":%q,"id":%q,"type":"noop","dependencyToken":%q}`, org, id, token)
	if token == "" {
		text = fmt.Sprintf(`{"organization":%q,"id":%q,"type":"noop"}`, org, id)
	}
	q, err := schemas.ParseRequest([]byte(text), "")
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// journal folds the journal as it grows.
type journal struct {
	t      testing.TB
	client *kgo.Client
	chains map[int32]*schemas.Chain
	states map[partition.Ref]*operation.State
	events []operation.Event
	keys   []string // of their records
	void   int
}

func watch(t testing.TB, on service) *journal {
	c, err := kgo.NewClient(append(on.client[:len(on.client):len(on.client)], kgo.ConsumeTopics(on.topics.Journal()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return &journal{t: t, client: c, chains: map[int32]*schemas.Chain{}, states: map[partition.Ref]*operation.State{}}
}

// until reads on until done says so.
func (j *journal) until(done func() bool) {
	j.t.Helper()
	ctx, cancel := context.WithTimeout(j.t.Context(), 60*time.Second)
	defer cancel()
	for !done() {
		fetches := j.client.PollFetches(ctx)
		if ctx.Err() != nil {
			counts := map[operation.Status]int{}
			for _, s := range j.states {
				counts[s.Status]++
			}
			j.t.Fatalf("the journal did not come to what was waited for: %v, %d void", counts, j.void)
		}
		fetches.EachRecord(j.read)
	}
}

func (j *journal) read(rec *kgo.Record) {
	chain := j.chains[rec.Partition]
	if chain == nil {
		chain = &schemas.Chain{}
		j.chains[rec.Partition] = chain
	}
	switch v, err := chain.Check(rec); v {
	case schemas.Broken:
		j.t.Fatal(err)
	case schemas.Void:
		j.void++
		return
	}
	ev, err := schemas.DecodeEvent(rec)
	if err != nil {
		j.t.Fatal(err)
	}
	j.events, j.keys = append(j.events, ev), append(j.keys, string(rec.Key))
	ref := partition.Ref{Org: ev.Org, ID: ev.ID}
	if j.states[ref] == nil {
		j.states[ref] = &operation.State{}
	}
	j.states[ref].Apply(&ev, operation.Place(rec.Offset))
}

func (j *journal) ended(n int) func() bool {
	return func() bool {
		ended := 0
		for _, s := range j.states {
			if s.Status.Terminal() {
				ended++
			}
		}
		return ended >= n
	}
}

func produce(t testing.TB, on service, records ...*kgo.Record) {
	t.Helper()
	c, err := kgo.NewClient(on.client...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

func TestOperationsRunInOrderAndEnd(t *testing.T) { each(t, 4, testOperationsRunInOrderAndEnd) }

func testOperationsRunInOrderAndEnd(t *testing.T, on service) {
	start(t, on, "one")
	w := newSession(t, on, "w1")
	go w.serve(t.Context(), succeed)
	j := watch(t, on)
	const n = 2000
	var records []*kgo.Record
	for i := range n {
		records = append(records, schemas.EncodeRequest(on.topics, request(t, fmt.Sprintf("org%d", i%7), fmt.Sprintf("op%d", i), fmt.Sprintf("chain%d", i%50))))
	}
	produce(t, on, records...)
	j.until(j.ended(n))
	running := map[string]operation.ID{}
	last := map[string]operation.Place{}
	for _, ev := range j.events {
		s := j.states[partition.Ref{Org: ev.Org, ID: ev.ID}]
		switch ev.Kind {
		case operation.Dispatched:
			key := ev.Org + "/" + s.Request.DependencyToken
			if other := running[key]; other != "" {
				t.Errorf("%s was dispatched while %s ran", ev.ID, other)
			}
			if s.RequestedPlace < last[key] {
				t.Errorf("%s was dispatched after a later one", ev.ID)
			}
			running[key], last[key] = ev.ID, s.RequestedPlace
		case operation.Succeeded:
			running[ev.Org+"/"+s.Request.DependencyToken] = ""
		}
	}
	if j.void != 0 {
		t.Errorf("expected one history of a single writer, but %d records are void", j.void)
	}
}

// Every record about an operation has the operation's key, also that of its end, with which the engine forgets it, and of what comes
// after that: by the key others find what belongs together.
func TestRecordsOfAnOperationHaveOneKey(t *testing.T) { each(t, 1, testRecordsOfAnOperationHaveOneKey) }

func testRecordsOfAnOperationHaveOneKey(t *testing.T, on service) {
	start(t, on, "one")
	w := newSession(t, on, "w1")
	go w.serve(t.Context(), succeed)
	j := watch(t, on)
	until := func(kind operation.EventKind, n int) {
		t.Helper()
		j.until(func() bool {
			have := 0
			for _, ev := range j.events {
				if ev.Kind == kind {
					have++
				}
			}
			return have == n
		})
	}
	command := func(kind operation.CommandKind, id operation.ID, commandID, key string) *kgo.Record {
		return schemas.EncodeCommand(on.topics, &operation.Command{Kind: kind, Org: "org", ID: id, CommandID: commandID}, []byte(key))
	}
	submit := schemas.EncodeRequest(on.topics, request(t, "org", "a", "chain"))
	produce(t, on, submit, schemas.EncodeRequest(on.topics, request(t, "org", "b", "chain")))
	until(operation.Succeeded, 2)
	produce(t, on, submit, command(operation.Pause, "a", "c1", "org/chain"), command(operation.Delete, "a", "c2", "org/chain"))
	until(operation.Deleted, 1)
	if len(j.events) == 0 || j.events[0].Kind != operation.Opened || j.keys[0] != "" {
		t.Errorf("expected the partition to be opened by a record without a key, but got %q of %v", j.keys, j.events)
	}
	seen := map[operation.EventKind]bool{}
	for i, ev := range j.events[1:] {
		seen[ev.Kind] = true
		if got := j.keys[i+1]; got != "org/chain" {
			t.Errorf("expected the key org/chain of %v %s, but got %q", ev.Kind, ev.ID, got)
		}
	}
	for _, kind := range []operation.EventKind{operation.Requested, operation.Dispatched, operation.Released, operation.Succeeded, operation.Unchanged, operation.Rejected, operation.Deleted} {
		if !seen[kind] {
			t.Errorf("expected an event %v, but there is none", kind)
		}
	}

	// What no request can have as a key does not get into the journal, which nobody could read then.
	before := len(j.events)
	odd, long := command(operation.Pause, "c", "c3", "org/c"), command(operation.Pause, "d", "c4", "org/d")
	odd.Key, long.Key = []byte("org/\xff"), []byte("org/"+strings.Repeat("k", schemas.MaxText+1))
	produce(t, on, odd, long)
	until(operation.Rejected, 3)
	if got := j.keys[before:]; len(got) != 2 || got[0] != "org/c" || got[1] != "org/d" {
		t.Errorf("expected the keys org/c and org/d, but got %q", got)
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
	on := service{client: []kgo.Opt{kgo.SeedBrokers(b.Seeds...), kgo.MetadataMinAge(50 * time.Millisecond)}, topics: b.Topics()}
	start(t, on, "one")
	<-asked // and it will be told that there is no such topic, since nobody has created it
	b.Create(t, b.Topics().Specs(1, 1)...)
	j := watch(t, on)
	j.until(func() bool { return len(j.events) > 0 }) // it has opened its partition
}

func TestTwoOwnersMakeOneHistory(t *testing.T) { each(t, 2, testTwoOwnersMakeOneHistory) }

func testTwoOwnersMakeOneHistory(t *testing.T, on service) {
	// Two groups: each of the two believes that it owns every partition.
	start(t, on, "one", func(c *Config) { c.Group = on.topics.Prefix + "a" })
	start(t, on, "two", func(c *Config) { c.Group = on.topics.Prefix + "b" })
	w := newSession(t, on, "w1")
	var mu sync.Mutex
	ran := map[string]int{}
	seen := map[string]bool{}
	go w.serve(t.Context(), func(it *schemas.Item) *operation.Command {
		mu.Lock()
		defer mu.Unlock()
		if at := fmt.Sprint(it.Partition, "/", it.Place); !seen[at] { // a session's memory
			seen[at] = true
			ran[fmt.Sprint(it.ID, "/", it.Attempt)]++
		}
		return &operation.Command{Kind: operation.Succeed}
	})
	j := watch(t, on)
	const n = 500
	for i := range n {
		produce(t, on, schemas.EncodeRequest(on.topics, request(t, "org", fmt.Sprintf("op%d", i), fmt.Sprintf("chain%d", i%5))))
	}
	j.until(j.ended(n))
	mu.Lock()
	defer mu.Unlock()
	for attempt, times := range ran {
		if times != 1 {
			t.Errorf("%s was run %d times", attempt, times)
		}
	}
	opened := 0
	for _, ev := range j.events {
		if ev.Kind == operation.Opened {
			opened++
		}
	}
	t.Logf("%d valid events, %d void records, %d changes of writer", len(j.events), j.void, opened)
	if opened < 3 {
		t.Errorf("expected two owners to take the partitions from one another, but they were opened %d times", opened)
	}
}

func TestNextOwnerGoesOnWhereTheLastOneStood(t *testing.T) {
	each(t, 3, testNextOwnerGoesOnWhereTheLastOneStood)
}

func testNextOwnerGoesOnWhereTheLastOneStood(t *testing.T, on service) {
	stop := start(t, on, "one", func(c *Config) { c.CheckpointEvery = 50 * time.Millisecond })
	j := watch(t, on)
	const n = 300
	var records []*kgo.Record
	for i := range n {
		records = append(records, schemas.EncodeRequest(on.topics, request(t, "org", fmt.Sprintf("op%d", i), fmt.Sprintf("chain%d", i%9))))
	}
	produce(t, on, records...)
	accepted := func(n int) func() bool { return func() bool { return len(j.states) >= n } }
	j.until(accepted(n + 1)) // one is the partitions' own
	stop()

	// Commands and copies that arrive while nobody is there are answered by the next owner.
	records[0] = schemas.EncodeRequest(on.topics, request(t, "org", "op0", "chain0"))
	other := *request(t, "org", "op1", "chain1")
	other.Name = "another"
	produce(t, on, records[0], schemas.EncodeRequest(on.topics, &other))
	start(t, on, "two")
	w := newSession(t, on, "w1")
	go w.serve(t.Context(), succeed)
	j.until(j.ended(n))
	var unchanged, reused int
	for _, ev := range j.events {
		switch {
		case ev.Kind == operation.Unchanged && ev.ID == "op0":
			unchanged++
		case ev.Kind == operation.Rejected && ev.ID == "op1" && ev.Code == operation.KeyReused:
			reused++
		}
	}
	if unchanged != 1 || reused != 1 {
		t.Errorf("expected one answer to each copy, but got %d unchanged and %d key_reused", unchanged, reused)
	}
	if j.void != 0 {
		t.Errorf("expected a hand-over without void records, but got %d", j.void)
	}
}

func TestBadInputIsAnsweredOrSetAside(t *testing.T) { each(t, 4, testBadInputIsAnsweredOrSetAside) }

func testBadInputIsAnsweredOrSetAside(t *testing.T, on service) {
	start(t, on, "one")
	w := newSession(t, on, "w1")
	go w.serve(t.Context(), succeed)
	j := watch(t, on)
	good := schemas.EncodeRequest(on.topics, request(t, "org", "good", ""))
	wrong := schemas.EncodeRequest(on.topics, request(t, "org", "wrong-partition", ""))
	right := schemas.PartitionFor(wrong.Key, 4)
	garbage := &kgo.Record{Topic: on.topics.Requests(), Key: good.Key, Value: []byte("{"), Headers: good.Headers}
	invalid := &kgo.Record{Topic: on.topics.Requests(), Key: good.Key, Value: []byte(`{"organization":"org","id":"bad","type":"Not A Type"}`), Headers: good.Headers}
	manual := service{append(on.client[:len(on.client):len(on.client)], kgo.RecordPartitioner(kgo.ManualPartitioner())), on.topics}
	for _, rec := range []*kgo.Record{good, garbage, invalid} {
		rec.Partition = schemas.PartitionFor(good.Key, 4)
	}
	wrong.Partition = (right + 1) % 4
	produce(t, manual, garbage, invalid, wrong, good)
	j.until(func() bool {
		a, b := j.states[partition.Ref{Org: "org", ID: "good"}], j.states[partition.Ref{Org: "org", ID: "wrong-partition"}]
		return a != nil && b != nil && a.Status.Terminal() && b.Status.Terminal()
	})
	refused := false
	for _, ev := range j.events {
		refused = refused || ev.Kind == operation.Rejected && ev.ID == "bad" && ev.Code == schemas.InvalidName && strings.HasPrefix(ev.Reason, "type: ")
		if ev.Kind == operation.Rejected {
			t.Logf("%s: %s %s", ev.ID, ev.Code, ev.Reason)
		}
	}
	if !refused {
		t.Error("expected the request with an invalid type to be refused in the journal, with the field and what is wrong with it")
	}
	dead, err := kgo.NewClient(append(on.client[:len(on.client):len(on.client)], kgo.ConsumeTopics(on.topics.DeadLetter()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	fetches := dead.PollFetches(ctx)
	if n := fetches.NumRecords(); n != 1 {
		t.Errorf("expected one dead letter, but got %d", n)
	}
}

// A request in a transaction counts when the transaction is committed, and not at all when it is aborted. The transaction's own
// records are no requests that somebody still has to decide.
func TestRequestsOfATransactionCountWhenItCommits(t *testing.T) {
	each(t, 1, testRequestsOfATransactionCountWhenItCommits)
}

func testRequestsOfATransactionCountWhenItCommits(t *testing.T, on service) {
	s, err := New(Config{Client: on.client, Topics: on.topics, Owner: "one", Engine: partition.Config{Lease: 3 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	w := newSession(t, on, "w1")
	go w.serve(t.Context(), succeed)
	j := watch(t, on)
	crm, err := kgo.NewClient(append(on.client[:len(on.client):len(on.client)], kgo.TransactionalID(on.topics.Requests()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer crm.Close()
	for _, tx := range []struct {
		id  string
		end kgo.TransactionEndTry
	}{{"aborted", kgo.TryAbort}, {"committed", kgo.TryCommit}, {"aborted-at-last", kgo.TryAbort}} {
		if err := crm.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := crm.ProduceSync(t.Context(), schemas.EncodeRequest(on.topics, request(t, "org", tx.id, ""))).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := crm.EndTransaction(t.Context(), tx.end); err != nil {
			t.Fatal(err)
		}
	}
	produce(t, on, schemas.EncodeRequest(on.topics, request(t, "org", "plain", "")))
	j.until(j.ended(2))
	for _, id := range []operation.ID{"aborted", "aborted-at-last"} {
		if got := j.states[partition.Ref{Org: "org", ID: id}]; got != nil {
			t.Errorf("%s: expected what was taken back not to be accepted, but it is %s", id, got.Status)
		}
	}
	if err := crm.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := crm.ProduceSync(t.Context(), schemas.EncodeRequest(on.topics, request(t, "org", "last", ""))).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := crm.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	j.until(j.ended(3))
	untilStatus(t, s, "no request left to decide", func(s Status) bool { return s.Undecided == 0 })
}

func TestFailedOperationIsRetriedByHandWithCorrectedInput(t *testing.T) {
	each(t, 1, testFailedOperationIsRetriedByHandWithCorrectedInput)
}

func testFailedOperationIsRetriedByHandWithCorrectedInput(t *testing.T, on service) {
	start(t, on, "one")
	w := newSession(t, on, "w1")
	var mu sync.Mutex
	var inputs []string
	go w.serve(t.Context(), func(it *schemas.Item) *operation.Command {
		mu.Lock()
		defer mu.Unlock()
		inputs = append(inputs, string(it.Request.Data))
		if len(inputs) == 1 {
			return &operation.Command{Kind: operation.Fail, Failure: &operation.Failure{Code: "bad_input", Message: "no"}}
		}
		return &operation.Command{Kind: operation.Succeed}
	})
	j := watch(t, on)
	q, err := schemas.ParseRequest([]byte(`{"organization":"org","id":"a","type":"noop","data":{"n":1}}`), "")
	if err != nil {
		t.Fatal(err)
	}
	produce(t, on, schemas.EncodeRequest(on.topics, q))
	is := func(s operation.Status) func() bool {
		return func() bool { a := j.states[partition.Ref{Org: "org", ID: "a"}]; return a != nil && a.Status == s }
	}
	j.until(is(operation.StatusFailed))
	produce(t, on, schemas.EncodeCommand(on.topics, &operation.Command{
		Kind: operation.Retry, Org: "org", ID: "a", CommandID: "c1", Data: []byte(`{"n":2}`), By: operation.By{Who: "u", Reason: "typo"},
	}, []byte(q.Key())))
	j.until(is(operation.StatusSucceeded))
	mu.Lock()
	defer mu.Unlock()
	if len(inputs) != 2 || inputs[1] != `{"n":2}` {
		t.Errorf("expected the second attempt with the corrected input, but got %q", inputs)
	}
	if s := j.states[partition.Ref{Org: "org", ID: "a"}]; s.Attempt != 2 {
		t.Errorf("expected attempt numbers to go on, but got %d", s.Attempt)
	}
}

func TestRequestsStayOnTheLogWhileTheBacklogIsLong(t *testing.T) {
	each(t, 1, func(t *testing.T, on service) { staysOnTheLog(t, on, 0, func(c *Config) { c.BacklogMax = 100 }) })
}

func TestRequestsStayOnTheLogWhileTheBacklogIsLarge(t *testing.T) {
	one := len(request(t, "org", "op1000", "").Raw)
	each(t, 1, func(t *testing.T, on service) {
		staysOnTheLog(t, on, 2*requestsAtOnce, func(c *Config) { c.BacklogBytes = 100 * one })
	})
}

// staysOnTheLog lets many requests come to a scheduler that takes little more than a hundred, and what one turn takes before it looks again.
func staysOnTheLog(t *testing.T, on service, turn int, limit func(*Config)) {
	start(t, on, "one", limit)
	w := newSession(t, on, "w1")
	let := make(chan struct{})
	closeOnce := sync.OnceFunc(func() { close(let) })
	go w.serve(t.Context(), func(*schemas.Item) *operation.Command {
		select {
		case <-let:
		case <-time.After(25 * time.Millisecond): // slow work, of which the scheduler takes in all that it may
		case <-t.Context().Done():
		}
		return &operation.Command{Kind: operation.Succeed}
	})
	j := watch(t, on)
	// Before it knows of a worker the scheduler cannot tell what is a backlog.
	produce(t, on, schemas.EncodeRequest(on.topics, request(t, "org", "first", "")))
	j.until(j.ended(1))
	const n = 5000
	var records []*kgo.Record
	for i := range n {
		records = append(records, schemas.EncodeRequest(on.topics, request(t, "org", fmt.Sprintf("op%d", i), "")))
	}
	produce(t, on, records...)
	most := 0
	j.until(func() bool {
		if j.ended(1 + 60)() { // the scheduler has seen more than once how slow the work is
			closeOnce()
		}
		open := 0
		for _, s := range j.states {
			if s.Status != operation.StatusAbsent && !s.Status.Terminal() {
				open++
			}
		}
		most = max(most, open)
		return j.ended(1 + n)()
	})
	// Beside the backlog there is what a session holds.
	if limit := 110 + 96 + turn; most > limit {
		t.Errorf("expected at most %d operations at once to be accepted and not ended, but there were %d", limit, most)
	}
}

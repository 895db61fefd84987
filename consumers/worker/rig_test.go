package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

const journalPartitions = 4

// rig is a broker and the part of a scheduler that a worker sees: it reads heartbeats and reports, and fills inboxes.
type rig struct {
	t       testing.TB
	cluster *kfake.Cluster // to inject faults; nil on Apache Kafka
	opts    []kgo.Opt
	client  *kgo.Client
	begin   time.Time
	beats   chan beat
	reports chan report
	topics  schemas.Topics
}

type beat struct {
	schemas.Heartbeat
	at time.Duration // since the rig began
}

type report struct {
	operation.Command
	partition int32
	key       string
	at        time.Duration
}

func (r report) String() string {
	s := fmt.Sprintf("%v %s.%d", r.Kind, r.ID, r.Attempt)
	if r.Result != nil {
		s += " result=" + string(r.Result)
	}
	if r.Failure != nil {
		s += fmt.Sprintf(" failure=%s class=%v", r.Failure.Code, r.Failure.Class)
	}
	if r.Progress != nil {
		s += " progress=" + string(r.Progress)
	}
	if r.Carry != nil {
		s += " checkpoint=" + string(r.Carry)
	}
	if r.Event != "" {
		s += " event=" + r.Event
	}
	if r.Until != 0 {
		s += " until=" + r.Until.Go().Format(time.RFC3339)
	}
	return s
}

// onBoth runs f on a broker in memory in a synctest bubble, and on Apache Kafka in real time. f must stop its workers, and must not
// depend on the order of reports in different partitions.
func onBoth(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) { inBubble(t, f) })
	t.Run("kafka", func(t *testing.T) { onReal(t, f) })
}

// inRig runs f in a synctest bubble, with a rig that is gone when f returns. f must stop its workers.
func inRig(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Helper()
	kafkatest.MemoryOnly(t)
	inBubble(t, f)
}

func inBubble(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var network kfake.VirtualNetwork
		f(t, newRig(t, []kfake.Opt{kfake.ListenFn(network.Listen), kfake.Ports(9092)}, kgo.Dialer(network.DialContext)))
	})
}

func onReal(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Helper()
	b := kafkatest.OnReal(t, kafkatest.Real(t))
	for _, s := range b.Topics().Specs(journalPartitions, 3) {
		if s.Short == schemas.TopicInboxes || s.Short == schemas.TopicSessions || s.Short == schemas.TopicReports {
			b.Create(t, s)
		}
	}
	r := &rig{t: t, topics: b.Topics()}
	r.connect(b.Seeds)
	f(t, r)
}

// newRig starts a broker in memory, which is gone with the test.
func newRig(t testing.TB, cluster []kfake.Opt, client ...kgo.Opt) *rig {
	t.Helper()
	r := &rig{t: t}
	var err error
	if r.cluster, err = kfake.NewCluster(append(cluster, kfake.NumBrokers(1))...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.cluster.Close)
	for name, n := range map[string]int32{r.topics.Inboxes(): 3, r.topics.Sessions(): 1, r.topics.Reports(): journalPartitions} {
		if err := r.cluster.CreateTopic(name, n, nil); err != nil {
			t.Fatal(err)
		}
	}
	r.connect(r.cluster.ListenAddrs(), client...)
	return r
}

// connect begins to read what workers write.
func (r *rig) connect(seeds []string, client ...kgo.Opt) {
	r.t.Helper()
	r.begin, r.beats, r.reports = time.Now(), make(chan beat, 10_000), make(chan report, 10_000)
	r.opts = append([]kgo.Opt{kgo.SeedBrokers(seeds...), kgo.DisableClientMetrics(), kgo.MetadataMinAge(50 * time.Millisecond), kgo.ProducerLinger(0)}, client...)
	var err error
	r.client, err = kgo.NewClient(append(r.opts, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ConsumeTopics(r.topics.Sessions(), r.topics.Reports()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(r.client.Close)
	go r.read()
}

func (r *rig) read() {
	for {
		fetches := r.client.PollFetches(context.Background())
		if fetches.IsClientClosed() {
			return
		}
		at := time.Since(r.begin)
		fetches.EachRecord(func(rec *kgo.Record) {
			if rec.Topic == r.topics.Sessions() {
				hb, err := schemas.DecodeHeartbeat(rec)
				if err != nil {
					r.t.Errorf("heartbeat: %v", err)
				}
				r.beats <- beat{hb, at}
				return
			}
			c, err := schemas.DecodeReport(rec)
			if err != nil {
				r.t.Errorf("report: %v", err)
			}
			r.reports <- report{c, rec.Partition, string(rec.Key), at}
		})
	}
}

// start runs a worker and returns how to stop it, which waits for its end.
func (r *rig) start(cfg Config) (*Worker, func() time.Duration) {
	r.t.Helper()
	cfg.Opts, cfg.Topics = append(cfg.Opts, r.opts...), r.topics
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	w, err := New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	return w, func() time.Duration {
		began := time.Now()
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("expected a clean end, but got %v", err)
		}
		return time.Since(began)
	}
}

// handlers serves the type "test".
func handlers(f HandlerFunc) map[string]Handler { return map[string]Handler{"test": f} }

func (r *rig) beat() beat {
	r.t.Helper()
	select {
	case b := <-r.beats:
		return b
	case <-time.After(time.Minute):
		r.t.Fatal("expected a heartbeat within a minute, but there was none")
		panic("unreachable")
	}
}

// beatWhere returns the next heartbeat that fits.
func (r *rig) beatWhere(what string, fits func(beat) bool) beat {
	r.t.Helper()
	for range 10_000 {
		if b := r.beat(); fits(b) {
			return b
		}
	}
	r.t.Fatalf("expected a heartbeat %s, but none of 10 000 was", what)
	panic("unreachable")
}

func (r *rig) report() report {
	r.t.Helper()
	select {
	case c := <-r.reports:
		return c
	case <-time.After(time.Minute):
		r.t.Fatal("expected a report within a minute, but there was none")
		panic("unreachable")
	}
}

// expect reads the next reports and compares them with their texts, in this order.
func (r *rig) expect(want ...string) []report {
	r.t.Helper()
	var got []report
	for _, w := range want {
		g := r.report()
		if g.String() != w {
			r.t.Errorf("expected the report %q, but got %q", w, g)
		}
		got = append(got, g)
	}
	return got
}

// silence checks that nothing is reported for a while, which is a short one where time is real.
func (r *rig) silence(d time.Duration) {
	r.t.Helper()
	if r.cluster == nil {
		d = min(d, time.Second)
	}
	select {
	case c := <-r.reports:
		r.t.Errorf("expected no report for %s, but got %q", d, c)
	case <-time.After(d):
	}
}

// work is an item for a session that was heard; change may alter it.
func (r *rig) work(hb beat, id string, place operation.Place, change ...func(*schemas.Item)) *schemas.Item {
	it := &schemas.Item{
		Session: hb.Session, Partition: int32(place) % journalPartitions, Place: place, Low: 1, Org: "acme", ID: operation.ID(id), Attempt: 1,
		Request: &operation.Request{ID: operation.ID(id), Organization: "acme", Type: "test", Priority: operation.PriorityDefault, Data: []byte(`{"n":1}`)},
	}
	for _, f := range change {
		f(it)
	}
	return it
}

func (r *rig) give(hb beat, items ...*schemas.Item) {
	r.t.Helper()
	var recs []*kgo.Record
	for _, it := range items {
		it.Request.Raw = schemas.AppendRequest(nil, it.Request)
		rec := schemas.EncodeItem(r.topics, it)
		rec.Partition = hb.Inbox
		recs = append(recs, rec)
	}
	if err := r.client.ProduceSync(context.Background(), recs...).FirstErr(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) halt(hb beat, it *schemas.Item, pause bool) {
	r.t.Helper()
	rec := schemas.EncodeStop(r.topics, &schemas.Stop{
		Pause: pause, Session: it.Session, Partition: it.Partition, Place: it.Place, Org: it.Org, ID: it.ID, Attempt: it.Attempt, Reason: "test",
	})
	rec.Partition = hb.Inbox
	if err := r.client.ProduceSync(context.Background(), rec).FirstErr(); err != nil {
		r.t.Fatal(err)
	}
}

func raw(s string) json.RawMessage { return json.RawMessage(s) }

// pass lets virtual time go by.
func pass(d time.Duration) { <-time.After(d) }

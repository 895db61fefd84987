package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/opstream/opstream/consumers/handlers/noop"
	"github.com/opstream/opstream/consumers/scheduler"
	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/internal/setup"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/producers/answers"
	"github.com/opstream/opstream/producers/command"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/projector"
	"github.com/opstream/opstream/projections/query"
	"github.com/opstream/opstream/projections/sqlite"
	"github.com/opstream/opstream/schemas"
)

func TestTopicsCommand(t *testing.T) {
	t.Parallel()
	seeds := kafkatest.Cluster(t)
	topics := func(stdin string, args ...string) result {
		t.Helper()
		return run(t, stdin, append([]string{"topics"}, append(args, "--brokers", strings.Join(seeds, ","), "--topic-prefix", "t.")...)...)
	}
	type planned struct {
		Brokers int
		Items   []setup.Item
		Done    []setup.Item
	}

	topics("", "plan").expect(t, exitOK, "create", "t.journal", "12 partitions, 1 copies", "what is acknowledged is lost")
	topics("", "plan", "--check").expect(t, exitDiffers)
	topics("", "apply", "--check").expect(t, exitDiffers)
	topics("", "apply", "--dry-run").expect(t, exitOK, "create")
	topics("no\n", "apply", "--partitions", "3").expect(t, exitFailed, "Make these 8 changes?", "nothing was changed")
	topics("", "apply").expect(t, exitFailed, "nothing was changed")
	if p := lines[planned](t, topics("", "plan", "-o", "json").out); len(p) != 1 || len(p[0].Items) < 8 || p[0].Items[0].Action != setup.Create || p[0].Brokers != 1 {
		t.Fatalf("expected nothing to have been made by then, but got %+v", p)
	}
	topics("yes\n", "apply", "--partitions", "3").expect(t, exitOK, "done: create t.journal: 3 partitions, 1 copies")
	topics("", "apply", "--yes").expect(t, exitOK, "nothing to do")
	topics("", "plan", "--check").expect(t, exitOK, "nothing to do")
	if p := lines[planned](t, topics("", "apply", "--yes", "-o", "json").out); len(p) != 1 || p[0].Done == nil || len(p[0].Done) != 0 {
		t.Errorf("expected programs to hear that nothing was done, but got %+v", p)
	}

	client := kafkatest.Client(t, seeds)
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "t.journal", Value: []byte("x")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	r := topics("", "apply", "--partitions", "6", "--inbox-partitions", "32", "--yes")
	r.expect(t, exitRefused, "nothing was changed", "--partitions 3", "--topic-prefix")
	topics("", "plan", "--partitions", "6").expect(t, exitOK, "refuse")
	topics("", "plan", "--partitions", "6", "--check").expect(t, exitDiffers)
	if p := lines[planned](t, topics("", "apply", "--inbox-partitions", "32", "--yes", "-o", "json").out); len(p) != 1 || len(p[0].Done) != 1 || p[0].Done[0].Want != "32" {
		t.Errorf("expected programs to hear what was done, but got %+v", p)
	}

	for _, args := range [][]string{
		{"apply", "--yes", "--dry-run"},
		{"apply", "--yes", "--check"},
		{"plan", "--partitions", "-1"},
		{"plan", "--timeout", "0s"},
		{"acls", "--role", "king"},
		{"acls", "apply"},
		{"acls", "apply", "--principal", "worker"},
		{"acls", "apply", "--principal", "worker=User:*"},
		{"acls", "apply", "--principal", "king=User:a"},
		{"acls", "apply", "--principal", "worker=a"},
	} {
		topics("", args...).expect(t, exitUsage, "expected")
	}
	run(t, "", "topics", "plan", "--brokers", "127.0.0.1:1").expect(t, exitUnavailable, "expected a broker at 127.0.0.1:1")
}

func TestServeCreatesTopicsAsApplyDoes(t *testing.T) {
	t.Parallel()
	seeds := kafkatest.Cluster(t)
	cfg := serviceConfig{brokers: seeds, topics: schemas.Topics{Prefix: "t."}, log: slog.New(slog.DiscardHandler)}
	for range 2 {
		if err := createTopics(t.Context(), &cfg, 5); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "", "topics", "plan", "--check", "--partitions", "5", "--brokers", seeds[0], "--topic-prefix", "t.").expect(t, exitOK, "nothing to do")
}

func TestACLsCommand(t *testing.T) {
	t.Parallel()
	run(t, "", "topics", "acls").expect(t, exitOK, "scheduler", "opstream.checkpoints", "Read, Write, Delete", "opstream.*", "opstream.scheduler")
	if r := run(t, "", "topics", "acls", "--role", "worker", "--kafka-acls", "--brokers", "k:9092"); r.out != ""+
		"kafka-acls.sh --bootstrap-server k:9092 --add --allow-principal User:opstream-worker --operation Read --topic opstream.inboxes\n"+
		"kafka-acls.sh --bootstrap-server k:9092 --add --allow-principal User:opstream-worker --operation Write --topic opstream.reports\n"+
		"kafka-acls.sh --bootstrap-server k:9092 --add --allow-principal User:opstream-worker --operation Write --topic opstream.sessions\n" {
		t.Errorf("expected the commands for a worker, but got %s", r)
	}
	run(t, "", "topics", "acls", "--kafka-acls", "--principal", "api=User:x y").expect(t, exitOK, "--allow-principal 'User:x y' --operation Write --topic opstream.requests")
	if rights := lines[setup.Right](t, run(t, "", "topics", "acls", "--role", "api", "-o", "json").out); len(rights) != 2 || rights[0].Operations[0] != "Write" {
		t.Errorf("expected programs to get the rights, but got %+v", rights)
	}

	seeds := kafkatest.Cluster(t)
	give := func(stdin string, args ...string) result {
		t.Helper()
		return run(t, stdin, append([]string{"topics", "acls", "apply", "--brokers", seeds[0], "--principal", "worker=User:w"}, args...)...)
	}
	give("", "--dry-run").expect(t, exitOK, "give", "User:w", "opstream.reports")
	give("", "--check").expect(t, exitDiffers)
	give("no\n").expect(t, exitFailed, "Give these 3 rights?", "nothing was changed")
	give("yes\n").expect(t, exitOK, "3 rights given")
	give("", "--check").expect(t, exitOK, "nothing to do")
	give("", "--yes", "--principal", "api=User:a").expect(t, exitOK, "2 rights given")
	if plans := lines[setup.ACLPlan](t, give("", "--yes", "-o", "json").out); len(plans) != 1 || len(plans[0].Missing) != 0 {
		t.Errorf("expected programs to hear that nothing is missing, but got %+v", plans)
	}
}

// guarded is a Kafka that knows its clients by name and lets each do what its role needs, and nothing else.
type guarded struct {
	*testing.T
	cluster *kfake.Cluster
	topics  schemas.Topics
	log     *slog.Logger
}

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	opts := []kfake.Opt{kfake.NumBrokers(1), kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "root", "root")}
	principals := map[setup.Role][]string{}
	for _, role := range setup.Roles() {
		opts = append(opts, kfake.User("PLAIN", string(role), string(role)))
		principals[role] = []string{"User:" + string(role)}
	}
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	g := &guarded{T: t, cluster: cluster, topics: schemas.Topics{Prefix: "guarded."}, log: slog.New(slog.DiscardHandler)}
	root := g.client("root")
	plan, err := setup.PlanACLs(t.Context(), root, g.topics, principals, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := setup.GrantAll(t.Context(), root, plan.Missing); err != nil {
		t.Fatal(err)
	}
	done, err := setup.Apply(t.Context(), g.client("admin"), setup.Config{Topics: g.topics, Partitions: 4, InboxPartitions: 2})
	if err != nil || len(done) != 8 {
		t.Fatalf("expected the role admin to make 8 topics, but it made %d: %v", len(done), err)
	}
	return g
}

// options are those of a client with this name.
func (g *guarded) options(name string) []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(g.cluster.ListenAddrs()...), kgo.SASL(plain.Auth{User: name, Pass: name}.AsMechanism()),
		kgo.MetadataMinAge(50 * time.Millisecond), kgo.FetchMaxWait(500 * time.Millisecond),
	}
}

func (g *guarded) client(name string, more ...kgo.Opt) *kgo.Client {
	g.Helper()
	client, err := kgo.NewClient(append(g.options(name), more...)...)
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(client.Close)
	return client
}

// start runs a part until it is stopped or the test ends; it must not end by itself before.
func (g *guarded) start(name string, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) || ctx.Err() == nil {
			g.Errorf("%s: expected it to run until it is stopped, but: %v", name, err)
		}
	})
	stop = func() {
		cancel()
		wg.Wait()
	}
	g.Cleanup(stop)
	return stop
}

// schedule starts a scheduler.
func (g *guarded) schedule() (stop func()) {
	g.Helper()
	s, err := scheduler.New(scheduler.Config{
		Client: g.options("scheduler"), Topics: g.topics, Owner: "test", Logger: g.log, Engine: partition.Config{Lease: 15 * time.Second},
		CheckpointEvery: 50 * time.Millisecond, CheckpointEvents: 1,
	})
	if err != nil {
		g.Fatal(err)
	}
	return g.start("scheduler", s.Run)
}

// service starts every role with its own principal, and returns the address of the API.
func (g *guarded) service() string {
	g.Helper()
	ctx := g.Context()
	store, err := sqlite.Open(ctx, filepath.Join(g.TempDir(), "tables.db"), sqlite.Options{})
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { _ = store.Close() })
	feed := query.NewFeed()
	project, err := projector.New(projector.Config{
		Store: store, Client: g.options("projector"), Topics: g.topics, Log: g.log,
		OnCommitted: func(b *projections.Batch) { feed.PublishBatch(b) },
	})
	if err != nil {
		g.Fatal(err)
	}
	g.start("projector", project.Run)

	work, err := worker.New(worker.Config{
		Opts: g.options("worker"), Topics: g.topics, Handlers: map[string]worker.Handler{"noop": noop.Handler{}}, Slots: 4, Logger: g.log,
	})
	if err != nil {
		g.Fatal(err)
	}
	g.start("worker", work.Run)

	answer, err := answers.New(ctx, answers.Config{Brokers: g.cluster.ListenAddrs(), Topics: g.topics, Options: g.options("api")})
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { _ = answer.Close(context.Background()) })
	g.start("api", answer.Run)

	status := func(context.Context) api.Status { return api.Status{Ready: true} }
	q := query.New(query.Config{Store: store, Progress: query.Projected{Projector: project}, Feed: feed, Status: status})
	routes := command.Routes(command.Config{Journal: answer, Parse: schemas.ParseRequest, Locator: q, Effects: q, Overload: answer.Overload})
	server := httptest.NewServer(api.Handler(g.log, append(routes, q.Routes()...)...))
	g.Cleanup(server.Close)
	return server.URL
}

// TestEveryRoleWithItsRightsOnly runs the whole service on a Kafka that lets each role do what opstream topics acls lists for
// it: operations that come over HTTP and over Kafka succeed, a request on the wrong partition is passed on, what cannot be read
// is set aside, checkpoints are written and trimmed.
func TestEveryRoleWithItsRightsOnly(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	url := g.service()
	stop := g.schedule()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	// A CRM core, with the library and without it.
	core, err := producers.New(producers.Config{Topics: g.topics, Source: "/crm", Brokers: g.cluster.ListenAddrs(), Options: g.options("requester")})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := core.Request(ctx, &producers.Request{Organization: "o", ID: fmt.Sprintf("kafka-%d", i), Type: "noop", DependencyToken: fmt.Sprint(i % 3)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := core.Close(ctx); err != nil {
		t.Fatal(err)
	}
	foreign := g.client("requester", kgo.RecordPartitioner(kgo.ManualPartitioner()))
	var stray []*kgo.Record
	for p := range int32(4) { // on every partition, so on three wrong ones
		rec := binaryMode(fmt.Sprintf("stray-%d", p), `{"organization":"o","id":"stray","type":"noop"}`)
		rec.Topic, rec.Partition, rec.Key = g.topics.Requests(), p, []byte("o/stray")
		stray = append(stray, rec, &kgo.Record{Topic: g.topics.Requests(), Partition: p, Value: []byte("no message at all")})
	}
	if err := foreign.ProduceSync(ctx, stray...).FirstErr(); err != nil {
		t.Fatal(err)
	}

	for i := range 20 {
		body := fmt.Sprintf(`{"organization":"o","id":"http-%d","type":"noop"}`, i)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/operations", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Prefer", "wait=30")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var op struct{ Status string }
		err = json.NewDecoder(resp.Body).Decode(&op)
		_ = resp.Body.Close()
		if err != nil || op.Status != "succeeded" {
			t.Fatalf("expected the operation to succeed, but got %d, %+v, %v", resp.StatusCode, op, err)
		}
	}

	// What else happens shows on the topics, to those who may read them.
	admin := kadm.NewClient(g.client("root"))
	g.until(ctx, "forwarded requests on signals", func() bool { return g.sum(ctx, admin.ListEndOffsets, g.topics.Signals()) >= 3 })
	stop()
	g.schedule() // another owner begins with a checkpoint of its own and deletes the ones before
	g.until(ctx, "trimmed checkpoints", func() bool { return g.sum(ctx, admin.ListStartOffsets, g.topics.Checkpoints()) > 0 })
	reader := g.client("reader", kgo.ConsumeTopics(g.topics.DeadLetter()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	for letters := 0; letters < 4; {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("expected the role reader to read 4 dead letters, but after %d: %v", letters, err)
		}
		letters += fetches.NumRecords()
	}
	ends, err := projector.Journal{Client: g.options("reader"), Topics: g.topics}.Ends(ctx)
	if err != nil || len(ends) != 4 {
		t.Fatalf("expected the role reader to see the journal, but got %v: %v", ends, err)
	}
	succeeded := 0
	for p, end := range ends {
		if _, err := (projector.Journal{Client: g.options("reader"), Topics: g.topics}).Read(ctx, p, end, func(e projections.Entry) error {
			if e.Event.Kind.String() == "succeeded" {
				succeeded++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	g.until(ctx, "41 operations in the tables", func() bool {
		resp, err := http.Get(url + "/v1/counts?organization=o")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		var counts api.Counts
		if json.NewDecoder(resp.Body).Decode(&counts) != nil {
			return false
		}
		n := int64(0)
		for _, c := range counts.ByStatus {
			if c.Status == operation.StatusSucceeded.String() {
				n += c.Count
			}
		}
		return n == 41
	})
	if succeeded == 0 {
		t.Error("expected the role reader to see that operations succeeded, but it saw none")
	}
}

// until waits for what comes by itself.
func (g *guarded) until(ctx context.Context, what string, holds func() bool) {
	g.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			g.Fatalf("expected %s, but they did not come", what)
		case <-tick.C:
		}
	}
}

func (g *guarded) sum(ctx context.Context, list func(context.Context, ...string) (kadm.ListedOffsets, error), topic string) int64 {
	offsets, err := list(ctx, topic)
	if err != nil {
		g.Error(err)
	}
	n := int64(0)
	offsets.Each(func(o kadm.ListedOffset) { n += o.Offset })
	return n
}

// TestRolesAreKeptFromWhatIsNotTheirs lets principals try what others may.
func TestRolesAreKeptFromWhatIsNotTheirs(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	journal, checkpoints := g.topics.Journal(), g.topics.Checkpoints()
	for _, tt := range []struct{ role, topic string }{
		{"worker", journal},
		{"worker", checkpoints},
		{"worker", g.topics.Requests()},
		{"worker", g.topics.Inboxes()},
		{"worker", g.topics.DeadLetter()},
		{"api", journal},
		{"api", g.topics.Reports()},
		{"projector", journal},
		{"requester", journal},
		{"requester", g.topics.Signals()},
		{"reader", journal},
		{"admin", journal},
		{"admin", g.topics.Requests()},
		{"scheduler", g.topics.Requests()},
		{"scheduler", g.topics.Reports()},
	} {
		err := g.client(tt.role).ProduceSync(t.Context(), &kgo.Record{Topic: tt.topic, Value: []byte("x")}).FirstErr()
		// A client that may not even see the topic is told so, too.
		if !errors.Is(err, kerr.TopicAuthorizationFailed) && !errors.Is(err, kerr.ClusterAuthorizationFailed) {
			t.Errorf("expected %s to be kept from writing %s, but got: %v", tt.role, tt.topic, err)
		}
	}
	for _, tt := range []struct{ role, topic string }{
		{"worker", journal},
		{"worker", g.topics.Requests()},
		{"worker", g.topics.Reports()},
		{"requester", g.topics.Requests()},
		{"api", g.topics.Requests()},
		{"projector", g.topics.Requests()},
		{"admin", journal},
		{"reader", checkpoints},
	} {
		c := g.client(tt.role, kgo.ConsumeTopics(tt.topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.KeepRetryableFetchErrors())
		if err := c.PollFetches(t.Context()).Err(); !errors.Is(err, kerr.TopicAuthorizationFailed) {
			t.Errorf("expected %s to be kept from reading %s, but got: %v", tt.role, tt.topic, err)
		}
	}
	if err := g.client("scheduler", kgo.RecordPartitioner(kgo.ManualPartitioner())).ProduceSync(t.Context(), &kgo.Record{Topic: journal, Value: []byte("x")}).FirstErr(); err != nil {
		t.Errorf("expected the scheduler to write the journal, but: %v", err)
	}
	var offsets kadm.Offsets
	offsets.Add(kadm.Offset{Topic: journal, At: 1, LeaderEpoch: -1})
	for _, role := range []string{"scheduler", "worker", "admin"} {
		admin := kadm.NewClient(g.client(role))
		answers, err := admin.DeleteRecords(t.Context(), offsets)
		if err == nil {
			err = answers.Error()
		}
		if err == nil {
			t.Errorf("expected %s to be kept from deleting records of the journal, but it did", role)
		}
		if _, err := admin.DeleteTopic(t.Context(), journal); !errors.Is(err, kerr.TopicAuthorizationFailed) {
			t.Errorf("expected %s to be kept from deleting the journal, but got: %v", role, err)
		}
	}
	if _, err := setup.Apply(t.Context(), g.client("scheduler"), setup.Config{Topics: schemas.Topics{Prefix: "other."}}); !errors.Is(err, kerr.TopicAuthorizationFailed) || !strings.Contains(err.Error(), "opstream topics acls --role admin") {
		t.Errorf("expected the scheduler to be told who makes topics, but got: %v", err)
	}
	if err := setup.GrantAll(t.Context(), g.client("admin"), []setup.Grant{{Principal: "User:admin", Resource: "topic", Name: journal, Operation: "Write"}}); !errors.Is(err, kerr.ClusterAuthorizationFailed) || !strings.Contains(err.Error(), "super.users") {
		t.Errorf("expected the admin to be kept from giving itself rights, but got: %v", err)
	}
}

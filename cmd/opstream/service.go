package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/opstream/opstream/consumers/handlers/noop"
	"github.com/opstream/opstream/consumers/handlers/webhook"
	"github.com/opstream/opstream/consumers/scheduler"
	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/internal/kafkaclient"
	"github.com/opstream/opstream/internal/setup"
	"github.com/opstream/opstream/producers/answers"
	"github.com/opstream/opstream/producers/command"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/cockroach"
	"github.com/opstream/opstream/projections/projector"
	"github.com/opstream/opstream/projections/query"
	"github.com/opstream/opstream/schemas"
)

// The roles that a process can have.
const (
	roleScheduler = "scheduler"
	roleWorker    = "worker"
	roleProjector = "projector"
	roleAPI       = "api"
)

var allRoles = []string{roleScheduler, roleWorker, roleProjector, roleAPI}

// serviceConfig says what a process is part of and what it does there.
type serviceConfig struct {
	brokers  []string
	dial     func(ctx context.Context, network, address string) (net.Conn, error) // to a broker in this process; nil for none
	topics   schemas.Topics
	roles    []string
	listen   string // address of the API
	database string // file or URL of the tables; "" keeps them in memory
	sync     bool
	lease    time.Duration
	takeover time.Duration // for how long a scheduler may be silent; 0 for the scheduler's default
	log      *slog.Logger

	opsListen       string // address of the operations listener; "" for none
	tlsCert, tlsKey string // of the API; "" for plain http
	security        []kgo.Opt
	metrics         *metrics // nil when nobody asks

	handlers    map[string]worker.Handler
	slots       int
	backlogMax  int                      // of the scheduler; 0 for its default
	liveMax     int                      // of the engines; 0 for their default
	onCommitted func(*projections.Batch) // hears of every batch in the tables; nil for none
}

// service is the running parts of one process.
type service struct {
	cfg   serviceConfig
	group *group
	url   string // of the API, when it has that role

	reach     *reach
	store     projections.Store
	progress  query.Progress
	follower  *query.Follower // when others may write the tables too
	was       atomic.Bool     // ready, at some time
	projector *projector.Projector
	answers   *answers.Client
	scheduler *scheduler.Scheduler
	worker    *worker.Worker
	query     *query.Query
	feed      *query.Feed
}

func (c *serviceConfig) has(role string) bool { return slices.Contains(c.roles, role) }

// clientOptions are what every Kafka client of this process needs.
func (c *serviceConfig) clientOptions() []kgo.Opt {
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.brokers...),
		kgo.ClientID("opstream"),
		kgo.DisableClientMetrics(), // there are our own, and the last push of these would hold up the end
		// A partition without a leader, as topics that were just created have them, is asked for again soon; and the
		// first fetch of a partition does not wait for long behind one of others that are empty.
		kgo.MetadataMinAge(100 * time.Millisecond),
		kgo.FetchMaxWait(500 * time.Millisecond),
	}
	if c.dial != nil {
		opts = append(opts, kgo.Dialer(c.dial))
	}
	return append(opts, c.security...)
}

// ownerName names this process: in the journal, as the writer of its partitions.
func ownerName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s/%d/%s", host, os.Getpid(), uuid.NewString()[:8])
}

// startService starts the roles in the order in which they lean on one another. On an error it has stopped what it started.
func startService(ctx context.Context, g *group, cfg serviceConfig) (_ *service, err error) {
	s := &service{cfg: cfg, group: g}
	if cfg.has(roleAPI) && !cfg.has(roleProjector) && !cockroach.IsURL(cfg.database) {
		return nil, &exitError{exitUsage, errors.New("expected the role projector beside api, or --database with the URL of PostgreSQL or CockroachDB: SQLite's tables are read in the process that writes them")}
	}
	s.reach = newReach(cfg.log)
	client := append(cfg.clientOptions(), kgo.WithHooks(s.reach))
	if cfg.has(roleProjector) || cfg.has(roleAPI) {
		if s.store, err = openTables(ctx, &cfg); err != nil {
			return nil, err
		}
		g.start("store", func(ctx context.Context) error {
			<-ctx.Done()
			return s.store.Close()
		})
		s.feed = query.NewFeed()
		if cockroach.IsURL(cfg.database) {
			s.follower = query.NewFollower(s.store, pollEvery, s.feed, cfg.log)
			s.progress = s.follower.Progress
		}
	}
	if cfg.has(roleProjector) {
		if err := s.startProjector(client); err != nil {
			return nil, err
		}
	}
	if cfg.has(roleScheduler) {
		sc := scheduler.Config{
			Client: client, Topics: cfg.topics, Owner: ownerName(), Logger: cfg.log, Engine: partition.Config{Lease: cfg.lease, LiveMax: cfg.liveMax},
			BacklogMax:   cfg.backlogMax,
			GroupSession: cfg.takeover,
		}
		if s.scheduler, err = scheduler.New(sc); err != nil {
			return nil, err
		}
		g.start(roleScheduler, s.scheduler.Run)
	}
	if cfg.has(roleWorker) {
		s.worker, err = worker.New(worker.Config{
			Brokers: cfg.brokers, Opts: client, Topics: cfg.topics, Handlers: cfg.metrics.handlers(cfg.handlers), Slots: cfg.slots,
			Lease: cfg.lease, Version: versionOf().Version, Logger: cfg.log,
		})
		if err != nil {
			return nil, err
		}
		g.start(roleWorker, s.worker.Run)
	}
	if cfg.has(roleAPI) {
		if err := s.startAPI(ctx, client); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// pollEvery is the least time between two questions to a database that others write, how far its tables are.
const pollEvery = 10 * time.Millisecond

func (s *service) startProjector(client []kgo.Opt) error {
	var err error
	var missed func()
	if s.follower == nil {
		missed = s.feed.Gap
	}
	s.projector, err = projector.New(projector.Config{
		Store: s.store, Client: client, Topics: s.cfg.topics, Log: s.cfg.log, OnMissed: missed,
		OnCommitted: func(b *projections.Batch) {
			if s.follower != nil {
				s.follower.Progress.Advance(b.Steps)
			} else {
				s.feed.PublishBatch(b)
			}
			s.cfg.metrics.committed(b)
			if s.cfg.onCommitted != nil {
				s.cfg.onCommitted(b)
			}
		},
	})
	if err != nil {
		return err
	}
	if s.progress == nil {
		s.progress = query.Projected{Projector: s.projector}
	}
	s.group.start(roleProjector, s.projector.Run)
	return nil
}

// follow has the API's own reader of the journal tell what is about to change in tables that others write.
func (s *service) follow(ctx context.Context) error {
	// Before that, so that nothing comes between the two.
	stop := s.answers.Subscribe(func(entries []answers.Entry) {
		heard := make([]query.Heard, 0, len(entries))
		for i := range entries {
			e := &entries[i]
			h := query.Heard{Partition: e.Partition, Place: e.Place, At: e.Time()}
			if e.Kind.Changes() {
				h.Org, h.ID = e.Organization, e.ID
			}
			heard = append(heard, h)
		}
		s.follower.Hear(heard)
	})
	ends, err := projector.Journal{Client: s.cfg.clientOptions(), Topics: s.cfg.topics}.Ends(ctx)
	if err != nil {
		stop()
		return err
	}
	s.follower.Begin(ends)
	s.group.start("follower", func(ctx context.Context) error {
		defer stop()
		return s.follower.Run(ctx)
	})
	return nil
}

// answersLimit is how long commands are waited for at a stop, when those who gave them have been told that they will not hear the answer.
const answersLimit = 2 * time.Second

func (s *service) startAPI(ctx context.Context, client []kgo.Opt) error {
	var err error
	s.answers, err = answers.New(ctx, answers.Config{Brokers: s.cfg.brokers, Topics: s.cfg.topics, Options: client, Log: s.cfg.log})
	if err != nil {
		return err
	}
	s.query = query.New(query.Config{Store: s.store, Progress: s.progress, Feed: s.feed, Status: s.status})
	if s.follower != nil {
		if err := s.follow(ctx); err != nil {
			return err
		}
	}
	s.group.start("answers", func(ctx context.Context) error {
		err := s.answers.Run(ctx)
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), answersLimit)
		defer cancel()
		if err := s.answers.Close(closing); err != nil {
			s.cfg.log.Warn("the API ends before the brokers have said what became of all commands; nothing is lost: who gave them has heard so, and gives them again under the same ids", "err", err)
		}
		return err
	})
	routes := command.Routes(command.Config{
		Journal: s.answers, Parse: schemas.ParseRequest, Locator: s.query, Effects: s.query, Overload: s.answers.Overload,
	})
	routes = append(routes, s.query.Routes()...)
	routes = append(routes, api.Process{
		Status: s.status, Serves: s.serves, AsyncAPI: schemas.AsyncAPI(), Schemas: schemas.JSONSchemas(),
	}.Routes()...)
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.cfg.listen)
	if err != nil {
		return fmt.Errorf("cannot listen for the API, choose another address with --listen: %w", err)
	}
	address := listener.Addr().String()
	listener, scheme, err := s.cfg.secured(listener)
	if err != nil {
		return err
	}
	s.url = scheme + "://" + address
	server := api.NewServer(s.cfg.listen, s.cfg.metrics.api(routes, api.Handler(s.cfg.log, routes...)))
	server.ErrorLog = slog.NewLogLogger(s.cfg.log.Handler(), slog.LevelWarn)
	s.group.start(roleAPI, func(ctx context.Context) error {
		served := make(chan error, 1)
		go func() { served <- server.Serve(listener) }()
		select {
		case err := <-served:
			return err
		case <-ctx.Done():
		}
		// Streams never end by themselves; ordinary requests get a moment.
		s.feed.Close()
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if server.Shutdown(closing) != nil {
			_ = server.Close() // what did not end in time is cut off
		}
		return nil
	})
	return nil
}

// status tells what this process is and how it goes.
func (s *service) status(ctx context.Context) api.Status {
	out := api.Status{Version: versionOf().Version, Roles: s.cfg.roles, Ready: true, Details: map[string]any{}}
	if err := s.ready(ctx); err != nil {
		out.Ready, out.Reason = false, err.Error()
	}
	if s.progress != nil {
		if positions, lag, err := s.progress.AsOf(ctx); err == nil {
			out.AsOf, out.LagMs = positions.String(), lag.Milliseconds()
		}
	}
	if s.projector != nil {
		p := s.projector.Status()
		out.Details["projector"] = map[string]any{"lag": p.Lag, "ageMs": p.Age.Milliseconds()}
	}
	if s.scheduler != nil {
		live, owned, waiting, age := 0, 0, int64(0), time.Duration(0)
		for _, p := range s.scheduler.Status() {
			live += p.Live
			owned++
			waiting += p.Undecided
			if !p.Oldest.IsZero() {
				age = max(age, time.Since(p.Oldest))
			}
		}
		out.Details["scheduler"] = map[string]any{"partitions": owned, "live": live, "requests": waiting, "requestsAgeMs": age.Milliseconds()}
	}
	if s.answers != nil {
		_, out.Overloaded = s.answers.Overload()
		stats := s.answers.Stats()
		out.Details["commands"] = map[string]any{"inFlight": stats.InFlight, "latencyMs": stats.Latency.Milliseconds()}
	}
	return out
}

// serves says whether requests may be sent to this process, and what it waits for, or nil.
//
// One with the API may have them once everything was in order: what it answers without a database, or without a broker, nobody else
// would answer either, since all of them lack it; and were all of them taken away from their address, commands would fail for
// want of tables, and reads for want of brokers.
func (s *service) serves(ctx context.Context) (bool, error) {
	err := s.ready(ctx)
	if err == nil {
		s.was.Store(true)
	}
	return err == nil || s.cfg.has(roleAPI) && s.was.Load(), err
}

// readyTime is how long a database may be silent before whoever asks for readiness is told so. Probes do not wait for long themselves
// (opstream ready 3 s, the chart's 5 s), and an answer that comes too late for them is none: they would take an API from its callers
// that is ready for commands.
const readyTime = 2 * time.Second

// ready says what this process waits for, or nil; what does not pass by itself first.
func (s *service) ready(ctx context.Context) error {
	if s.follower != nil && s.cfg.has(roleAPI) {
		asking, cancel := context.WithTimeout(ctx, readyTime)
		defer cancel()
		if _, _, err := s.progress.AsOf(asking); err != nil && asking.Err() != nil && ctx.Err() == nil {
			return fmt.Errorf("the tables cannot be read: the database has not answered within %s", readyTime)
		} else if err != nil {
			return fmt.Errorf("the tables cannot be read: %w", err)
		}
	}
	if s.projector != nil {
		p := s.projector.Status()
		if p.Failing != nil {
			return fmt.Errorf("the tables cannot be written: %w", p.Failing)
		}
		if !p.Begun {
			return errors.New("the projector has not begun: it asks where the tables and the journal stand")
		}
		for _, part := range p.Partitions {
			if part.Stopped != nil {
				return fmt.Errorf("partition %d is not projected any more: %w", part.Partition, part.Stopped)
			}
		}
	}
	if err := s.reach.err(); err != nil {
		return err
	}
	if s.answers != nil {
		if err := s.answers.Denied(); err != nil {
			return fmt.Errorf("answers to commands are not heard: %w", err)
		}
	}
	// Heartbeats that are on the log are what schedulers know a worker by.
	if s.worker != nil && s.worker.Counters().Heartbeats.Load() == 0 {
		return errors.New("the worker has no session yet: it waits for the brokers")
	}
	if s.scheduler != nil {
		if !s.scheduler.Joined() {
			return errors.New("the scheduler has no place in its group yet")
		}
		for _, p := range s.scheduler.Status() {
			if !p.Active {
				if p.Fault != nil {
					return fmt.Errorf("partition %d is being recovered: %w", p.Partition, p.Fault)
				}
				return fmt.Errorf("partition %d is being recovered", p.Partition)
			}
		}
	}
	return nil
}

// standardHandlers serve the types that come with opstream.
func standardHandlers(noopTypes []string, hooks webhook.Config) (map[string]worker.Handler, error) {
	hook, err := webhook.New(hooks)
	if err != nil {
		return nil, err
	}
	handlers := map[string]worker.Handler{"system-event": hook, "webhook": hook}
	for _, t := range noopTypes {
		handlers[t] = noop.Handler{StandIn: true}
	}
	handlers["noop"] = noop.Handler{} // also where --noop names it
	return handlers, nil
}

// leadersLimit is how long new topics may take until every partition has a leader.
const leadersLimit = 30 * time.Second

// createTopics creates the topics that are missing, and returns when all can be used: a broker answers before its partitions have
// leaders, and before the other brokers know of them. Existing topics stay as they are; what opstream topics plan would say of
// them is logged.
func createTopics(ctx context.Context, cfg *serviceConfig, partitions int32) error {
	client, err := kafkaclient.Within(ctx, cfg.clientOptions()...)
	if err != nil {
		return err
	}
	defer client.Close()
	plan, err := setup.CreateMissing(ctx, client.Client, setup.Config{Topics: cfg.topics, NewPartitions: partitions})
	if err != nil {
		return fmt.Errorf("cannot create the topics at %s: %w", strings.Join(cfg.brokers, ","), err)
	}
	for _, it := range plan.Of(setup.Create) {
		cfg.log.Info("topic is there now", "topic", it.Topic, "partitions", it.Partitions, "replication_factor", it.Replication)
	}
	for _, it := range plan.Of(setup.Grow, setup.Set, setup.Refuse) {
		cfg.log.Warn("a topic is not as it should be, see opstream topics plan", "topic", it.Topic, "detail", it.String())
	}
	var names []string
	for _, spec := range cfg.topics.Specs(partitions, schemas.DefaultInboxPartitions) {
		names = append(names, spec.Name)
	}
	waiting, cancel := context.WithTimeout(ctx, leadersLimit)
	defer cancel()
	for {
		without, err := leaderless(waiting, client.Client, names)
		if err == nil && without == "" {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-waiting.Done():
			return fmt.Errorf("expected every partition to have a leader within %s of the topics' creation, but %s has none; see whether all brokers run: %w", leadersLimit, cmp.Or(without, "one"), errors.Join(err, ctx.Err()))
		}
	}
}

// leaderless asks every broker, and names a partition of the topics that nobody leads, or a topic that one does not know yet; "" when
// all are led.
func leaderless(ctx context.Context, client *kgo.Client, topics []string) (string, error) {
	for _, broker := range client.DiscoveredBrokers() {
		req := kmsg.NewPtrMetadataRequest()
		for _, name := range topics {
			topic := kmsg.NewMetadataRequestTopic()
			topic.Topic = kmsg.StringPtr(name)
			req.Topics = append(req.Topics, topic)
		}
		resp, err := req.RequestWith(ctx, broker)
		if err != nil {
			return "", err
		}
		for _, t := range resp.Topics {
			if err := kerr.ErrorForCode(t.ErrorCode); err != nil || len(t.Partitions) == 0 {
				return *t.Topic, err
			}
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil || p.Leader < 0 {
					return fmt.Sprintf("%s/%d", *t.Topic, p.Partition), err
				}
			}
		}
	}
	return "", nil
}

// reachTables waits until the tables have all that the journal has now.
func (s *service) reachTables(ctx context.Context) error {
	ends, err := projector.Journal{Client: s.cfg.clientOptions(), Topics: s.cfg.topics}.Ends(ctx)
	if err != nil {
		return err
	}
	for p, end := range ends {
		if end == 0 {
			continue
		}
		if err := s.projector.WaitFor(ctx, p, operation.Place(end-1)); err != nil {
			return fmt.Errorf("waiting for the tables to have partition %d up to %d: %w", p, end, err)
		}
	}
	return nil
}

// typesOf lists the operation types of handlers, for people.
func typesOf(handlers map[string]worker.Handler) []string {
	return slices.Sorted(maps.Keys(handlers))
}

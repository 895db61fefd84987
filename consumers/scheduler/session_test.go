package scheduler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// said collects what a scheduler logs.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// Where the brokers do not allow so short a session as is wanted, a longer one must do.
func TestSessionIsAsLongAsTheBrokersWantIt(t *testing.T) {
	each(t, 1, func(t *testing.T, on service) {
		var log said
		start(t, on, "one", func(c *Config) {
			c.GroupSession = 500 * time.Millisecond // less than any of them allows
			c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
		j := watch(t, on)
		j.until(func() bool { return len(j.events) > 0 }) // it has opened its partition
		if text := log.String(); !strings.Contains(text, "group.min.session.timeout.ms") || !strings.Contains(text, "session=500ms") {
			t.Errorf("expected the scheduler to say that the session is longer than wanted, but it said\n%s", text)
		}
	})
}

func TestSessionThatIsTooLongIsAnError(t *testing.T) {
	each(t, 1, func(t *testing.T, on service) {
		s, err := New(Config{Client: on.client, Topics: on.topics, Owner: "one", GroupSession: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context()); !errors.Is(err, kerr.InvalidSessionTimeout) || !strings.Contains(err.Error(), "group.max.session.timeout.ms") {
			t.Errorf("expected an error that names the brokers' setting, but got %v", err)
		}
	})
}

// A scheduler that has not read for so long that the log has lost heartbeats does not know who has sent them: nobody is silent before
// one more lease has gone by.
func TestHeartbeatsThatAreGoneAreNotSilence(t *testing.T) {
	each(t, 1, func(t *testing.T, on service) {
		for _, c := range []struct {
			name string
			log  func(*session) // what becomes of it before it is read
		}{
			{"and others came", func(s *session) { s.trim(); s.beat(schemas.SessionRunning) }},
			{"and nobody is left", func(s *session) { s.trim() }},
		} {
			t.Run(c.name, func(t *testing.T) {
				s := newSession(t, on, operation.SessionID(c.name))
				cfg := Config{Client: on.client, Topics: on.topics, Owner: "one"}.withDefaults()
				clock := ticker{time.Now()}
				f, err := newFetcher(t.Context(), cfg, kadm.NewClient(s.client), clock, func(heard) {})
				if err != nil {
					t.Fatal(err)
				}
				for f.pulse.BufferedFetchRecords() == 0 { // the client asks for no more before these are taken
					<-time.After(time.Millisecond)
				}
				s.beat(schemas.SessionRunning)
				c.log(s)
				ctx, stop := context.WithCancel(t.Context())
				var running sync.WaitGroup
				defer running.Wait()
				defer stop()
				running.Go(func() { f.run(ctx) })

				began := clock.now()
				a := &actor{wake: make(chan struct{}, 1), engine: partition.New(cfg.Engine)}
				f.begin(a, partition.Positions{})
				for {
					f.askSilence(ctx)
					<-a.wake
					a.mu.Lock()
					missed, through := a.missed, a.audit.at
					a.mu.Unlock()
					if through < began {
						continue
					}
					if missed < began {
						t.Errorf("expected heartbeats to be missed until %d at least, but they were until %d, and heard through %d", began, missed, through)
					}
					return
				}
			})
		}
	})
}

// A session may have been silent for longer than a scheduler's own lease when that begins, and still be within its own.
func TestASchedulerThatBeginsLearnsOfOlderLeases(t *testing.T) {
	each(t, 1, func(t *testing.T, on service) {
		client, err := kgo.NewClient(on.client...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		beat := func() {
			rec := schemas.EncodeHeartbeat(on.topics, &schemas.Heartbeat{Session: "long", Types: []string{"noop"}, Slots: 1, Lease: 10 * time.Minute})
			if err := client.ProduceSync(t.Context(), rec).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		beat()
		cfg := Config{Client: on.client, Topics: on.topics, Owner: "one", Engine: partition.Config{Lease: time.Second}}.withDefaults()
		cfg.Now = func() time.Time { return time.Now().Add(time.Minute) } // it begins a minute later
		said := make(chan heard, 10)
		f, err := newFetcher(t.Context(), cfg, kadm.NewClient(client), ticker{time.Now()}, func(h heard) { said <- h })
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer stop()
		running.Go(func() { f.run(ctx) })
		if h := <-said; h.beat.Session != "long" || h.beat.Lease != 10*time.Minute || !h.beat.Draining {
			t.Errorf("expected the session with its own lease, and nothing new for it before it is heard again, but got %+v", h.beat)
		}
		beat()
		if h := <-said; h.beat.Session != "long" || h.beat.Draining {
			t.Errorf("expected the session to live, but got %+v", h.beat)
		}
	})
}

// trim has the broker forget all heartbeats.
func (s *session) trim() {
	admin, topic := kadm.NewClient(s.client), s.topics.Sessions()
	ends, err := admin.ListEndOffsets(s.t.Context(), topic)
	if err == nil {
		_, err = admin.DeleteRecords(s.t.Context(), ends.Offsets())
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// Inboxes may be added at any time, and whoever reads one gets its work at once.
func TestInboxesMayGrow(t *testing.T) {
	each(t, 1, func(t *testing.T, on service) {
		start(t, on, "one", func(c *Config) {
			c.Engine.ResendAfter = 200 * time.Millisecond
			c.CheckpointEvery = time.Hour // the first one has the client ask for all topics
		})
		j := watch(t, on)
		work := func(w *session, op string) {
			ctx, stop := context.WithCancel(t.Context())
			var serving sync.WaitGroup
			serving.Go(func() { w.serve(ctx, succeed) })
			produce(t, on, schemas.EncodeRequest(on.topics, request(t, "org", op, "")))
			j.until(func() bool {
				s := j.states[partition.Ref{Org: "org", ID: operation.ID(op)}]
				return s != nil && s.Status.Terminal()
			})
			stop()
			serving.Wait()
			w.beat(schemas.SessionEnded)
		}
		old := newSession(t, on, "old")
		work(old, "a") // from then on the scheduler knows the inboxes that there are
		if _, err := kadm.NewClient(old.client).UpdatePartitions(t.Context(), 3, on.topics.Inboxes()); err != nil {
			t.Fatal(err)
		}
		work(sessionAt(t, on, "new", 2), "b")
	})
}

// A log of heartbeats that was cut short may never come to where it ended when somebody asked. The question must not stand in the way of
// those that follow.
func TestSilenceIsNoticedOnAShorterLog(t *testing.T) {
	each(t, 1, func(t *testing.T, on service) {
		s := newSession(t, on, "w")
		cfg := Config{Client: on.client, Topics: on.topics, Owner: "one"}.withDefaults()
		clock := ticker{time.Now()}
		f, err := newFetcher(t.Context(), cfg, kadm.NewClient(s.client), clock, func(heard) {})
		if err != nil {
			t.Fatal(err)
		}
		const before = 1000 // as if it had been so long, and all but the last had been read
		f.sessions, f.asked = before-1, audit{end: before, at: clock.now()}
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer stop()
		running.Go(func() { f.run(ctx) })
		a := &actor{wake: make(chan struct{}, 1)}
		f.begin(a, partition.Positions{})
		for known := false; !known; {
			f.askSilence(ctx)
			select {
			case <-a.wake:
			case <-time.After(10 * time.Millisecond):
			}
			a.mu.Lock()
			known = a.audit.at != 0
			a.mu.Unlock()
			if time.Since(clock.began) > time.Minute {
				t.Fatal("expected the silence to become certain, but it did not in a minute")
			}
		}
	})
}

// Reports that the log loses before they are read are not waited for.
func TestReportsThatAreGoneAreNotWaitedFor(t *testing.T) {
	now := operation.Time(time.Hour / time.Microsecond)
	a := &actor{wake: make(chan struct{}, 1), engine: partition.New(partition.Config{Lease: 15 * time.Second, Partitions: 1}), fetched: 40}
	waits := func() bool {
		var cause operation.Cause
		a.takeBeats(now, &cause)
		return a.audit.at != 0
	}
	a.heardThrough(audit{end: 50, at: now})
	a.heardThrough(audit{end: 60, at: now})
	if a.audit.end != 50 || !waits() {
		t.Errorf("expected the reports up to 50 to be waited for, but %+v", a.audit)
	}
	a.heardThrough(audit{at: now}) // there are none any more
	if waits() {
		t.Errorf("expected nothing to be waited for, but %+v", a.audit)
	}
}

// What an actor was told before the log lost heartbeats, and looks at afterwards, takes nothing from what is granted for these.
func TestOlderHeartbeatsDoNotShortenWhatIsGranted(t *testing.T) {
	now := operation.Time(time.Hour / time.Microsecond)
	a := &actor{wake: make(chan struct{}, 1), engine: partition.New(partition.Config{Lease: 15 * time.Second, Partitions: 1})}
	a.hear(heard{beat: partition.Heartbeat{Session: "w", Types: []string{"noop"}, Room: 1, Lease: 15 * time.Second}, at: now})
	missed := now.Add(time.Minute)
	a.miss(missed)
	a.heardThrough(audit{at: missed})
	var cause operation.Cause
	a.takeBeats(missed, &cause)
	a.engine.Settle(cause, missed)
	if !a.engine.Served("noop") {
		t.Error("expected the session to live until one lease after heartbeats were missed, but it is lost")
	}
}

// A session that has said goodbye has reported all that it did not give back. A scheduler that reads the farewell first, because a
// connection hangs or a leader is away, must not run again what was done.
func TestReportsThatAreNotReadYetAreNotSilence(t *testing.T) {
	each(t, 1, func(t *testing.T, on service) {
		s, err := New(Config{Client: on.client, Topics: on.topics, Owner: "one", Engine: partition.Config{Lease: 3 * time.Second}})
		if err != nil {
			t.Fatal(err)
		}
		run(t, s)
		w := newSession(t, on, "w")
		ctx, stop := context.WithCancel(t.Context())
		reports := map[string][]int32{on.topics.Reports(): {0}}
		var serving sync.WaitGroup
		serving.Go(func() {
			w.serve(ctx, func(*schemas.Item) *operation.Command {
				s.fetch.client.PauseFetchPartitions(reports)
				stop()
				return succeed(nil)
			})
		})
		j := watch(t, on)
		produce(t, on, schemas.EncodeRequest(on.topics, request(t, "org", "a", "")))
		serving.Wait()
		if err := w.client.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.beat(schemas.SessionEnded)
		lost := func() bool {
			return slices.ContainsFunc(j.events, func(ev operation.Event) bool { return ev.Kind == operation.LeaseWasLost })
		}
		asked := make(chan bool)
		for found := false; !found && !lost(); { // the silence is certain, but for what is not read
			poll, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
			j.client.PollFetches(poll).EachRecord(j.read)
			stop()
			s.fetch.do(func() {
				a := s.fetch.actors[0]
				a.mu.Lock()
				defer a.mu.Unlock()
				asked <- a.audit.at != 0
			})
			found = <-asked
		}
		s.fetch.resume(0, true, false)
		j.until(func() bool { return lost() || j.ended(1)() })
		if lost() {
			t.Error("expected the report to count, but the attempt was given up before it was read")
		}
	})
}

// An inbox whose leader takes nothing costs those who read it their work, and nobody else: what is offered again must not fill the
// memory that all appends share.
func TestAnInboxThatCannotBeWrittenHoldsUpNothingElse(t *testing.T) {
	b := kafkatest.Memory(t)
	b.Create(t, b.Topics().Specs(1, 2)...)
	on := service{client: []kgo.Opt{kgo.SeedBrokers(b.Seeds...), kgo.MetadataMinAge(50 * time.Millisecond)}, topics: b.Topics()}
	var log said
	start(t, on, "one", func(c *Config) {
		c.Engine.Lease, c.Engine.ResendAfter, c.UnackedBytes = time.Hour, 100*time.Millisecond, 512<<10
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	defer b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: on.topics.Inboxes(), Err: kerr.NotEnoughReplicas, Count: -1}).Remove()
	w := newSession(t, on, "w")
	j := watch(t, on)
	seen := func(n int) func() bool {
		return func() bool { w.beat(schemas.SessionRunning); return len(j.states) >= n }
	}
	const some = 50
	var records []*kgo.Record
	for i := range some {
		q := request(t, "org", fmt.Sprint(i), "")
		q.Data = []byte(`"` + strings.Repeat("x", 1<<10) + `"`)
		q.Raw = schemas.AppendRequest(nil, q)
		records = append(records, schemas.EncodeRequest(on.topics, q))
	}
	produce(t, on, records...)
	j.until(seen(some))
	for n := some + 1; !strings.Contains(log.String(), "the brokers do not take what workers are sent"); n++ {
		produce(t, on, schemas.EncodeRequest(on.topics, request(t, "org", fmt.Sprint(n), "")))
		j.until(seen(n))
	}
}

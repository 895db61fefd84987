package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/internal/embedded"
	"github.com/opstream/opstream/internal/kafkaclient"
	"github.com/opstream/opstream/internal/oftenlog"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Config of a [Scheduler].
type Config struct {
	// Client holds what every client needs: seed brokers, dialer, TLS, SASL. Required.
	Client []kgo.Opt
	Topics schemas.Topics
	// Group is the consumer group that decides who owns which partition. Default: the topics' prefix + "scheduler".
	Group string
	// GroupSession is how long a silent member keeps its partitions. Where the brokers allow only more (their
	// group.min.session.timeout.ms is 6 s by default), the least multiple by a power of two is used that they take. Default 3 s.
	GroupSession time.Duration
	// Owner names this process in the journal. Required, unique.
	Owner string
	// Engine is the configuration of every partition; Partitions is filled in from the topic.
	Engine partition.Config
	// CheckpointEvery is the time between checkpoints of a partition that has changed. Default 5 s.
	CheckpointEvery time.Duration
	// CheckpointEvents is the number of events after which one is written earlier. Default 50 000.
	CheckpointEvents int
	// InFlightMax is the number of events of one partition that may be unacknowledged. Default 16 384.
	InFlightMax int
	// QueueMax is the number of requests, and of reports, of one partition that may wait in memory. Default 8192.
	QueueMax int
	// BacklogMax is the number of ready operations of one partition, of types that somebody serves, above which no more requests
	// are taken: they wait on the log, and who waits for an answer hears that the service is behind. Default 50 000.
	BacklogMax int
	// BacklogBytes is the same for the size of their requests. Default 64 MiB.
	BacklogBytes int
	// UnackedBytes bounds the records of all partitions of this process that are sent and not yet acknowledged: above it actors wait.
	// Default 128 MiB.
	UnackedBytes int
	// Now reads this machine's wall clock, by which operations become due. It may be wrong, and may be set: leases do not depend
	// on it. Default time.Now.
	Now    func() time.Time
	Logger *slog.Logger // Default slog.Default()

	balancer kgo.GroupBalancer // of the group; tests have others
}

func (c Config) withDefaults() Config {
	if c.Group == "" {
		c.Group = strings.TrimSuffix(c.Topics.Requests(), schemas.TopicRequests) + "scheduler"
	}
	if c.GroupSession == 0 {
		c.GroupSession = 3 * time.Second
	}
	if c.CheckpointEvery == 0 {
		c.CheckpointEvery = 5 * time.Second
	}
	if c.CheckpointEvents == 0 {
		c.CheckpointEvents = 50_000
	}
	if c.InFlightMax == 0 {
		c.InFlightMax = 16_384
	}
	if c.BacklogMax == 0 {
		c.BacklogMax = 50_000
	}
	if c.BacklogBytes == 0 {
		c.BacklogBytes = 64 << 20
	}
	if c.UnackedBytes == 0 {
		c.UnackedBytes = 128 << 20
	}
	if c.QueueMax == 0 {
		c.QueueMax = 8192
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.balancer == nil {
		c.balancer = kgo.CooperativeStickyBalancer()
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// now is the wall clock's time.
func (c *Config) now() operation.Time { return operation.TimeOf(c.Now()) }

// ticker is a clock that only runs: whoever sets the wall clock must not end the leases of living sessions, nor keep those of
// dead ones. (It stands still while the machine is suspended, which grants time and takes none.)
type ticker struct{ began time.Time }

// now begins far from 0, which means no time.
func (t ticker) now() operation.Time {
	return operation.Time(time.Since(t.began)/time.Microsecond) + operation.Time(time.Hour/time.Microsecond)
}

// Scheduler owns partitions and runs an actor for each. Make it with [New], run it once with [Scheduler.Run].
type Scheduler struct {
	cfg   Config
	log   *slog.Logger
	out   *kafkaclient.Client // appends and effects
	admin *kadm.Client
	fetch *fetcher
	ticks ticker
	told  func(*kgo.Record, error) // hears what became of what workers are sent
	mail  mail

	unsaved     *oftenlog.Warner // checkpoints that were not written
	undelivered *oftenlog.Warner // what workers are sent and no broker takes

	counters Counters
	joined   atomic.Bool

	mu      sync.Mutex
	owned   map[int32]*ownership
	ctx     context.Context //nolint:containedctx // of Run; the group's callbacks have none that outlives them
	running sync.WaitGroup
}

// ownership is one stay of a partition with this process.
type ownership struct {
	stop context.CancelCauseFunc
	done chan struct{}
	seen *status
}

var errRevoked = errors.New("the partition is another scheduler's now")

// New connects to the brokers. The caller must call [Scheduler.Run], which closes what New has opened.
func New(cfg Config) (*Scheduler, error) {
	cfg = cfg.withDefaults()
	if cfg.Owner == "" {
		return nil, errors.New("expected Config.Owner to name this process, but it is empty")
	}
	if cfg.BacklogMax < 0 || cfg.Engine.LiveMax < 0 {
		return nil, fmt.Errorf("expected Config.BacklogMax and Config.Engine.LiveMax to be positive, or 0 for the defaults, but got %d and %d", cfg.BacklogMax, cfg.Engine.LiveMax)
	}
	out, err := kafkaclient.New(append(cfg.Client[:len(cfg.Client):len(cfg.Client)],
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0),
		kgo.ProducerBatchMaxBytes(schemas.MaxBatchBytes),
		kgo.ProducerBatchCompression(kgo.SnappyCompression(), kgo.NoCompression()),
		kgo.MaxBufferedRecords(1<<18),
		kgo.MaxBufferedBytes(cfg.UnackedBytes),
	)...)
	if err != nil {
		return nil, fmt.Errorf("producing client: %w", err)
	}
	s := &Scheduler{
		cfg: cfg, log: cfg.Logger, out: out, admin: kadm.NewClient(out.Client), owned: make(map[int32]*ownership),
		ticks: ticker{time.Now()}, mail: mail{inboxes: make(map[int32]*letters)},
	}
	s.told = s.hearTold()
	s.unsaved = oftenlog.New(s.log, "checkpoint was not written; the next one is whole again", "topic")
	s.undelivered = oftenlog.New(s.log, "the brokers do not take what workers are sent, which waits for them: see that the partition has a leader and enough copies (min.insync.replicas)", "topic")
	return s, nil
}

// Run takes part until ctx ends, then hands its partitions over and returns nil. It returns an error when it cannot go on.
func (s *Scheduler) Run(ctx context.Context) error {
	defer s.out.Close()
	stop := context.AfterFunc(ctx, s.out.Abandon) // until there is something to hand over
	defer stop()
	partitions, err := s.partitionsPatiently(ctx)
	if err != nil {
		return err
	}
	s.cfg.Engine.Partitions = partitions

	// Actors outlive ctx until they have handed over.
	work, stopWork := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopWork(errStopped)
	s.ctx = work
	s.fetch, err = newFetcher(ctx, s.cfg, s.admin, s.ticks, s.hear)
	if err != nil {
		return fmt.Errorf("fetching client: %w", err)
	}
	stop()
	// Actors hand over within closing, but for one that waits for room to append, which comes with an answer.
	defer context.AfterFunc(ctx, func() {
		select {
		case <-time.After(2 * closing):
			stopWork(errStopped)
		case <-work.Done():
		}
	})()
	var fetching sync.WaitGroup
	fetchCtx, stopFetch := context.WithCancel(work)
	fetching.Go(func() { s.fetch.run(fetchCtx) })

	err = s.takePart(ctx)
	s.running.Wait()
	stopFetch()
	fetching.Wait()
	return err
}

// sessionMost bounds what the brokers may ask for instead of Config.GroupSession.
const sessionMost = time.Minute

// takePart is a member of the group until ctx ends, and hands its partitions over.
func (s *Scheduler) takePart(ctx context.Context) error {
	for session := s.cfg.GroupSession; ; session *= 2 {
		member, err := s.member(session)
		if err != nil {
			s.releaseAll(errStopped)
			return fmt.Errorf("group client: %w", err)
		}
		watch, stop := context.WithCancel(ctx)
		var watching sync.WaitGroup
		watching.Go(func() { s.watchGroup(watch, member) })
		watching.Go(func() { s.awaitPlace(watch, member) })
		err = s.beMember(ctx, member)
		stop()
		s.releaseAll(errStopped)
		s.leave(member, session)
		watching.Wait()
		switch {
		case err == nil:
			return nil
		case 2*session > sessionMost:
			return fmt.Errorf("expected the brokers to take a session of %s for the group %s, but they do not; see their group.min.session.timeout.ms and group.max.session.timeout.ms: %w", session, s.cfg.Group, err)
		}
		s.log.Warn("the brokers do not take so short a session for the group of schedulers: the partitions of one that dies rest for longer; lower group.min.session.timeout.ms at the brokers",
			"group", s.cfg.Group, "session", session, "next", 2*session)
	}
}

// leaveLimit is how long the group's coordinator may take to hear that a member leaves.
const leaveLimit = 2 * time.Second

// leave ends the membership so that the others take over at once. A coordinator that does not hear of it finds out by itself.
func (s *Scheduler) leave(member *kafkaclient.Client, session time.Duration) {
	// detached: it is the end of ctx that leads here
	ctx, cancel := context.WithTimeout(context.Background(), leaveLimit)
	defer cancel()
	if err := member.LeaveGroupContext(ctx); err != nil && !errors.Is(err, kerr.UnknownMemberID) {
		s.log.Warn("the group of schedulers could not be told that this one leaves; nothing is lost: the others get its partitions when its session has run out",
			"group", s.cfg.Group, "session", session, "err", err)
	}
	member.Close()
}

// beMember returns when ctx ends (nil), or when the brokers refuse the session's length.
func (s *Scheduler) beMember(ctx context.Context, member *kafkaclient.Client) error {
	for ctx.Err() == nil {
		for _, err := range member.PollFetches(ctx).Errors() {
			if errors.Is(err.Err, kerr.InvalidSessionTimeout) {
				return err.Err
			}
			if ctx.Err() == nil {
				s.log.Warn("the group of schedulers cannot be reached", "group", s.cfg.Group, "err", err.Err)
				break
			}
		}
	}
	return nil
}

// member joins the group. The membership is all that is wanted of this client.
func (s *Scheduler) member(session time.Duration) (*kafkaclient.Client, error) {
	// By MetadataMaxAge partitions that somebody adds are noticed: nobody decides what stands on them. The caller's options may say otherwise.
	opts := append([]kgo.Opt{kgo.MetadataMaxAge(time.Minute)}, s.cfg.Client...)
	member, err := kafkaclient.New(append(opts,
		kgo.ConsumerGroup(s.cfg.Group),
		kgo.ConsumeTopics(s.cfg.Topics.Requests()),
		// A change must not stop the partitions that stay.
		kgo.Balancers(s.cfg.balancer),
		kgo.SessionTimeout(session),
		// A member learns from its heartbeat's answer that others come or go, and a partition that moves rests until all
		// have learned it.
		kgo.HeartbeatInterval(min(session/6, heartbeatMost)),
		// Below the session's timeout: a member that dies while it joins must not hold up the others for longer than any other,
		// and the embedded broker begins the wait anew with each member whose session ends meanwhile.
		kgo.RebalanceTimeout(session*2/3),
		kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, got map[string][]int32) { s.assigned(got) }),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) { s.release(lost, errRevoked) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) { s.release(lost, errRevoked) }),
	)...)
	if err != nil {
		return nil, err
	}
	member.PauseFetchTopics(s.cfg.Topics.Requests())
	return member, nil
}

// groupLook is the time between two looks at what the group has given to whom.
const groupLook = 5 * time.Second

// watchGroup sees to it that every partition has an owner. The members of a group give away in one step and take in the next, and
// when the group's coordinator dies in between, the group may come to rest with a partition that nobody was given: all members
// are well, and none of them knows. So each looks from time to time, and one that finds the same partition without an owner
// twice asks for a new distribution; the brokers make one when the group's leader asks. It returns when ctx ends.
//
// The embedded broker has a fault of its own: a member that dies at the moment in which it is answered that it has joined stays in
// the group for ever, with the partitions that it is given. Only another distribution finds it out, so there is one every half
// minute. Partitions stay where they are meanwhile.
func (s *Scheduler) watchGroup(ctx context.Context, member *kafkaclient.Client) {
	before := map[int32]bool{}
	for look := 1; ; look++ {
		select {
		case <-time.After(groupLook):
		case <-ctx.Done():
			return
		}
		if look%ghostLooks == 0 && s.embedded(ctx) {
			member.ForceRebalance()
			continue
		}
		_, without, _ := s.distribution(ctx)
		again := false
		for p := range without {
			again = again || before[p]
		}
		before = without
		if again {
			s.log.Warn("the group of schedulers has left partitions without an owner, and is asked to distribute them anew", "group", s.cfg.Group, "partitions", slices.Sorted(maps.Keys(without)))
			s.counters.Unowned.Add(1)
			member.ForceRebalance()
			before = map[int32]bool{}
		}
	}
}

// ghostLooks is how many looks lie between two distributions that find out members which are none.
const ghostLooks = 6

// embedded says whether the broker is the one of package embedded, by the cluster's id.
func (s *Scheduler) embedded(ctx context.Context) bool {
	bounded, cancel := context.WithTimeout(ctx, groupLook)
	defer cancel()
	brokers, err := s.admin.BrokerMetadata(bounded)
	return err == nil && brokers.Cluster == embedded.ClusterID
}

// awaitPlace returns when this member has its place in the group, or when ctx ends: the group has taken it in and come to rest, and
// every partition is somebody's. That may leave it without any. A newcomer's partitions are first taken from others and then given to
// it; whoever replaces schedulers one by one must not take the next away in between.
func (s *Scheduler) awaitPlace(ctx context.Context, member *kafkaclient.Client) {
	const first, most = 50 * time.Millisecond, time.Second
	for wait := first; ; wait = min(2*wait, most) {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		me, generation := member.GroupMetadata()
		if generation < 0 {
			wait = first // which asks nobody
			continue
		}
		group, without, known := s.distribution(ctx)
		if known && len(without) == 0 && slices.ContainsFunc(group.Members, func(m kadm.DescribedGroupMember) bool { return m.MemberID == me && s.owns(&m) }) {
			s.joined.Store(true)
			return
		}
	}
}

// owns says whether a member, which is this one, has begun with all that the group has given to it.
func (s *Scheduler) owns(m *kadm.DescribedGroupMember) bool {
	given, ok := m.Assigned.AsConsumer()
	if !ok {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, topic := range given.Topics {
		for _, p := range topic.Partitions {
			if topic.Topic == s.cfg.Topics.Requests() && s.owned[p] == nil {
				return false
			}
		}
	}
	return true
}

// distribution asks the group's coordinator which partitions it has given to nobody. It is not known while the group is changing.
func (s *Scheduler) distribution(ctx context.Context) (group kadm.DescribedGroup, without map[int32]bool, known bool) {
	bounded, cancel := context.WithTimeout(ctx, groupLook)
	defer cancel()
	groups, err := s.admin.DescribeGroups(bounded, s.cfg.Group)
	if err != nil {
		return group, nil, false
	}
	group = groups[s.cfg.Group]
	if group.Err != nil || group.State != "Stable" {
		return group, nil, false
	}
	given := group.AssignedPartitions()[s.cfg.Topics.Requests()]
	without = map[int32]bool{}
	for p := range int32(s.cfg.Engine.Partitions) {
		if _, ok := given[p]; !ok {
			without[p] = true
		}
	}
	return group, without, true
}

// heartbeatMost is the longest time between two heartbeats of a member, whatever its session.
const heartbeatMost = 250 * time.Millisecond

var errStopped = errors.New("the scheduler stops")

// topicsLimit is how long a broker may not know of topics that another has created.
const topicsLimit = 10 * time.Second

// partitionsPatiently is partitions, again and again while the brokers may still hear of one another's topics, and for as long as
// none can be reached: processes start in any order, and whoever starts them must not have to see to it.
func (s *Scheduler) partitionsPatiently(ctx context.Context) (int, error) {
	for deadline, warned := time.Now().Add(topicsLimit), (time.Time{}); ; {
		n, err := s.partitions(ctx)
		away := errors.Is(err, errUnreachable)
		if err == nil || !away && (!kerr.IsRetriable(err) || time.Now().After(deadline)) {
			return n, err
		}
		if away && time.Since(warned) > topicsLimit {
			s.log.Warn("the brokers cannot be reached; the scheduler starts when they can", "err", err)
			warned = time.Now()
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return 0, errors.Join(err, ctx.Err())
		}
	}
}

var errUnreachable = errors.New("cannot ask the brokers for the topics")

// partitions is the number of partitions of the journal, which requests, reports, signals and checkpoints must share.
func (s *Scheduler) partitions(ctx context.Context) (int, error) {
	t := s.cfg.Topics
	names := []string{t.Journal(), t.Requests(), t.Reports(), t.Signals(), t.Checkpoints()}
	details, err := s.admin.ListTopics(ctx, append(names, t.Inboxes(), t.Sessions(), t.DeadLetter())...)
	if kafka := (*kerr.Error)(nil); err != nil && !errors.As(err, &kafka) {
		return 0, fmt.Errorf("%w: %w", errUnreachable, err)
	} else if err != nil {
		return 0, fmt.Errorf("cannot ask the brokers for %s: %w", s.refused(ctx, append(names, t.Inboxes(), t.Sessions(), t.DeadLetter())), err)
	}
	for _, d := range details {
		if errors.Is(d.Err, kerr.UnknownTopicOrPartition) {
			return 0, fmt.Errorf("topic %s does not exist; create the topics first, for instance with opstream serve --create-topics: %w", d.Topic, d.Err)
		} else if d.Err != nil {
			return 0, fmt.Errorf("topic %s: %w", d.Topic, d.Err)
		}
	}
	n := len(details[names[0]].Partitions)
	for _, name := range names {
		if m := len(details[name].Partitions); m != n {
			return 0, fmt.Errorf("expected topic %s to have %d partitions as %s has, but it has %d; opstream topics plan says what can be done", name, n, names[0], m)
		}
	}
	return n, nil
}

// refused names the topics that the brokers say nothing of: of many in one question they say only that there are some.
func (s *Scheduler) refused(ctx context.Context, topics []string) string {
	var out []string
	for _, topic := range topics {
		if _, err := s.admin.ListTopics(ctx, topic); err != nil {
			out = append(out, topic)
		}
	}
	if len(out) == 0 {
		return "the topics" // by now they do
	}
	return strings.Join(out, ", ")
}

func (s *Scheduler) assigned(got map[string][]int32) {
	for _, p := range got[s.cfg.Topics.Requests()] {
		s.own(p)
	}
}

func (s *Scheduler) own(p int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owned[p] != nil || s.ctx.Err() != nil {
		return
	}
	ctx, stop := context.WithCancelCause(s.ctx)
	o := &ownership{stop: stop, done: make(chan struct{}), seen: &status{}}
	s.owned[p] = o
	s.running.Go(func() {
		defer close(o.done)
		s.tend(ctx, p, o.seen)
	})
}

// tend runs one actor of partition p after the other, until the partition is given up: an actor ends whenever it finds
// that it does not know the journal's end.
func (s *Scheduler) tend(ctx context.Context, p int32, seen *status) {
	log := s.log.With("partition", p)
	// A cause that lasts, of all partitions at once, would fill the log.
	anew := oftenlog.New(s.log, "partition is recovered anew", "partition")
	pause := time.Duration(0)
	for ctx.Err() == nil {
		began := time.Now()
		err := newActor(s, p, seen, log).run(ctx)
		if ctx.Err() != nil || err == nil {
			return
		}
		s.counters.Failed.Add(1)
		// Another writer, a broker that does not answer, a log that cannot be read: all mended by reading anew. Two
		// owners that fight take turns at growing distance instead of burning the CPU; chance keeps them out of step.
		if pause = min(max(2*pause, 5*time.Millisecond), 2*time.Second); time.Since(began) > 10*time.Second {
			pause = 5 * time.Millisecond
		}
		wait := time.Duration(float64(pause) * (0.25 + 1.5*rand.Float64()))
		seen.fault.Store(&err)
		anew.Warn(strconv.Itoa(int(p)), slog.Any("err", err), slog.Duration("in", wait))
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

func (s *Scheduler) release(lost map[string][]int32, why error) {
	s.mu.Lock()
	var leaving []*ownership
	for _, p := range lost[s.cfg.Topics.Requests()] {
		if o := s.owned[p]; o != nil {
			o.stop(why)
			leaving = append(leaving, o)
			delete(s.owned, p)
		}
	}
	s.mu.Unlock()
	for _, o := range leaving {
		<-o.done
	}
}

func (s *Scheduler) releaseAll(why error) {
	s.mu.Lock()
	all := make([]int32, 0, len(s.owned))
	for p := range s.owned {
		all = append(all, p)
	}
	s.mu.Unlock()
	s.release(map[string][]int32{s.cfg.Topics.Requests(): all}, why)
}

// hear gives a heartbeat to every actor, and keeps it for those that start later. The fetcher calls it.
func (s *Scheduler) hear(h heard) {
	for _, a := range s.fetch.actors {
		a.hear(h)
	}
}

// Joined says whether the scheduler has had its place in the group, be it without partitions. It is for whoever waits for a newcomer:
// what becomes of a membership later is the group's business.
func (s *Scheduler) Joined() bool { return s.joined.Load() }

// Counters returns the scheduler's counters, for reading.
func (s *Scheduler) Counters() *Counters { return &s.counters }

// Status lists the partitions that this process owns.
func (s *Scheduler) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.now()
	out := make([]Status, 0, len(s.owned))
	for p, o := range s.owned {
		out = append(out, o.seen.get(p, now))
	}
	return out
}

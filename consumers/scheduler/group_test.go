package scheduler

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/internal/kafkatest"
)

// forgetful distributes all partitions but the last one, until it is mended.
type forgetful struct {
	kgo.GroupBalancer
	mended atomic.Bool
}

// MemberBalancer returns a balancer of these members that forgets.
func (f *forgetful) MemberBalancer(members []kmsg.JoinGroupResponseMember) (kgo.GroupMemberBalancer, map[string]struct{}, error) {
	inner, topics, err := f.GroupBalancer.MemberBalancer(members)
	if err != nil {
		return nil, nil, err
	}
	return forgetfulMembers{inner.(kgo.GroupMemberBalancerOrError), f}, topics, nil
}

type forgetfulMembers struct {
	kgo.GroupMemberBalancerOrError
	f *forgetful
}

// BalanceOrError leaves the last partition of each topic out.
func (m forgetfulMembers) BalanceOrError(topics map[string]int32) (kgo.IntoSyncAssignment, error) {
	if !m.f.mended.Load() {
		for topic := range topics {
			topics[topic]--
		}
	}
	return m.GroupMemberBalancerOrError.BalanceOrError(topics)
}

// TestPartitionThatTheGroupForgot is given away in the end. The scheduler's own balancer forgets nothing, so the one that does
// belongs to the scheduler under test, which is the group's leader.
func TestPartitionThatTheGroupForgot(t *testing.T) {
	b := kafkatest.Memory(t)
	b.Create(t, b.Topics().Specs(2, 1)...)
	balancer := &forgetful{GroupBalancer: kgo.CooperativeStickyBalancer()}
	s, err := New(Config{
		Client: []kgo.Opt{kgo.SeedBrokers(b.Seeds...), kgo.MetadataMinAge(50 * time.Millisecond)}, Topics: b.Topics(), Owner: "one",
		Engine: partition.Config{Lease: 3 * time.Second}, balancer: balancer,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	owned := func(n int) {
		t.Helper()
		limit, tick := time.After(time.Minute), time.NewTicker(10*time.Millisecond)
		defer tick.Stop()
		for len(s.Status()) != n {
			select {
			case <-tick.C:
			case <-limit:
				t.Fatalf("expected %d partitions, but got %+v", n, s.Status())
			}
		}
	}
	owned(1)
	if s.Joined() {
		t.Error("expected the scheduler to have no place in a group that has not come to rest")
	}
	balancer.mended.Store(true) // nobody asks for another distribution now but the scheduler itself
	owned(2)
	joined(t, s)
	if got := s.Counters().Unowned.Load(); got != 1 {
		t.Errorf("expected the group to be asked once, but it was %d times", got)
	}
}

// joined waits until a scheduler has its place in the group.
func joined(t *testing.T, s *Scheduler) {
	t.Helper()
	limit, tick := time.After(time.Minute), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !s.Joined() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("expected the scheduler to get its place in the group, but it has none; its partitions: %+v", s.Status())
		}
	}
}

// TestNewcomersPlace: one that comes when there are partitions for it has its place when it has some; one for which there are none has
// its place all the same.
func TestNewcomersPlace(t *testing.T) { kafkatest.Each(t, testNewcomersPlace) }

func testNewcomersPlace(t *testing.T, b *kafkatest.Broker) {
	b.Create(t, b.Topics().Specs(2, 1)...)
	var all []*Scheduler
	for _, owner := range []string{"one", "two", "three"} {
		s, err := New(Config{
			Client: []kgo.Opt{kgo.SeedBrokers(b.Seeds...), kgo.MetadataMinAge(50 * time.Millisecond)}, Topics: b.Topics(), Owner: owner,
			Engine: partition.Config{Lease: 3 * time.Second},
		})
		if err != nil {
			t.Fatal(err)
		}
		if s.Joined() {
			t.Errorf("%s: expected no place before it runs", owner)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		joined(t, s)
		all = append(all, s)
		// Of two partitions.
		want := map[int]int{1: 2, 2: 1, 3: 0}[len(all)]
		if got := len(s.Status()); got != want {
			t.Errorf("%s: expected it to have %d partitions with its place in the group, but it has %d", owner, want, got)
		}
	}
}

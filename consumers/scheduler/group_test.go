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
	balancer.mended.Store(true) // nobody asks for another distribution now but the scheduler itself
	owned(2)
	if got := s.Counters().Unowned.Load(); got != 1 {
		t.Errorf("expected the group to be asked once, but it was %d times", got)
	}
}

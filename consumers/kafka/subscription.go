package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/internal/kafkaclient"
	"github.com/opstream/opstream/internal/oftenlog"
)

const (
	// settleTimeout bounds each of the last requests of a subscription: the commit of what was marked, and leaving the group.
	// If they fail, the group finds out by itself, and some messages are handed out again.
	settleTimeout = 5 * time.Second

	// growthInterval is how often a group-less subscription that began at Latest looks for new partitions. The client does that
	// by itself for topics, but not when it was given exact offsets.
	growthInterval = time.Minute
)

// A subscription is one call of Subscribe: a client, and a goroutine for each partition that the client was given.
type subscription struct {
	config SubscriberConfig
	topic  string
	client *kgo.Client
	out    chan *message.Message
	values context.Context //nolint:containedctx // the values of the context given to Subscribe, without its end

	pinned int32 // partitions read from exact offsets; 0 if the client chooses

	mu         sync.Mutex
	partitions map[int32]*partition // those that are not done
}

func newSubscription(ctx context.Context, config SubscriberConfig, topic string) (*subscription, error) {
	s := &subscription{
		config:     config,
		topic:      topic,
		out:        make(chan *message.Message),
		values:     context.WithoutCancel(ctx),
		partitions: map[int32]*partition{},
	}
	start := kgo.NewOffset().AtStart()
	if config.StartAt == Latest {
		start = kgo.NewOffset().AtEnd()
	}
	opts := append(commonOpts(config.Seeds),
		// The first fetch of a partition can queue behind a long poll of others, which takes 5 s by default.
		kgo.FetchMaxWait(500*time.Millisecond),
		kgo.FetchMaxPartitionBytes(int32(max(1<<10, min(256<<10, config.BufferBytes)))),
		kgo.ConsumeStartOffset(start),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), // the place was trimmed away: go on with what is left, skip nothing
	)
	opts = append(opts, config.Opts...)
	if config.Group != "" {
		opts = append(opts,
			kgo.ConsumerGroup(config.Group),
			kgo.ConsumeTopics(topic),
			kgo.AutoCommitMarks(),
			kgo.BlockRebalanceOnPoll(),
			kgo.OnPartitionsRevoked(s.revoked),
			kgo.OnPartitionsLost(s.lost),
		)
	} else if config.StartAt == Earliest {
		opts = append(opts, kgo.ConsumeTopics(topic))
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("its options do not fit: %w", err)
	}
	s.client = client
	if config.Group == "" && config.StartAt == Latest {
		if err := s.pin(ctx); err != nil {
			client.Close()
			return nil, err
		}
	}
	return s, nil
}

// pin looks up where the partitions end now, so that "latest" means the moment of Subscribe and not that of the first fetch.
func (s *subscription) pin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.config.InitializeTimeout)
	defer cancel()
	ends, err := kadm.NewClient(s.client).ListEndOffsets(ctx, s.topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("looking up where it ends (create the topic first, for instance with SubscribeInitialize): %w", err)
	}
	at := map[int32]kgo.Offset{}
	ends.Each(func(o kadm.ListedOffset) {
		at[o.Partition] = kgo.NewOffset().At(o.Offset)
		s.pinned = max(s.pinned, o.Partition+1)
	})
	s.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{s.topic: at})
	return nil
}

// grow adds partitions that are newer than the subscription, from their beginning.
func (s *subscription) grow(ctx context.Context, every time.Duration) {
	for sleep(every, ctx.Done()) {
		details, err := kadm.NewClient(s.client).ListTopics(ctx, s.topic)
		if err != nil {
			continue // the next round asks again, and a broker that is gone is reported by the fetches
		}
		at := map[int32]kgo.Offset{}
		for ; int(s.pinned) < len(details[s.topic].Partitions); s.pinned++ {
			at[s.pinned] = kgo.NewOffset().AtStart()
		}
		if len(at) > 0 {
			s.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{s.topic: at})
		}
	}
}

// run polls until ctx ends, then drains.
func (s *subscription) run(ctx context.Context) {
	defer close(s.out)
	var growing sync.WaitGroup
	if s.pinned > 0 {
		growing.Go(func() { s.grow(ctx, growthInterval) })
	}
	s.poll(ctx)
	growing.Wait()
	s.drain()
}

func (s *subscription) poll(ctx context.Context) {
	faults := oftenlog.New(s.config.Logger, "reading failed, the client tries again", "topic")
	for {
		fetches := s.client.PollFetches(ctx)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			s.client.AllowRebalance()
			return
		}
		fetches.EachError(func(_ string, partition int32, err error) { // without a topic if the whole group has the error
			faults.Warn(s.topic, slog.Int("partition", int(partition)), slog.Any("err", err))
		})
		fetches.EachPartition(func(f kgo.FetchTopicPartition) {
			if len(f.Records) > 0 {
				s.partition(f.Partition).push(f.Records)
			}
		})
		// Partitions can be revoked only here, never between the poll and the push: so nothing is pushed to a partition that
		// was given up.
		s.client.AllowRebalance()
		kafkaclient.Pace(ctx, fetches)
	}
}

func (s *subscription) partition(id int32) *partition {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.partitions[id]
	if p == nil {
		p = newPartition(s, id)
		s.partitions[id] = p
		go p.run()
	}
	return p
}

// drain ends a subscription. Nothing is polled any more, but a rebalance may be under way beside it.
func (s *subscription) drain() {
	s.stop(nil, s.config.DrainTimeout, ErrClosed)
	if s.config.Group != "" {
		// detached: what was acknowledged is committed although the subscription's context has ended.
		s.commit(context.Background())
		// detached: the same, and the timeout bounds it.
		ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
		if err := s.client.LeaveGroupContext(ctx); err != nil && !errors.Is(err, kgo.ErrClientClosed) {
			s.config.Logger.LogAttrs(ctx, slog.LevelWarn, "could not leave the group, its other members wait for the session timeout",
				slog.String("topic", s.topic), slog.Any("err", err))
		}
		cancel()
	}
	s.client.CloseAllowingRebalance()
}

// revoked is called by the client, which gives the partitions away when it returns.
func (s *subscription) revoked(ctx context.Context, _ *kgo.Client, revoked map[string][]int32) {
	if len(revoked[s.topic]) == 0 {
		return
	}
	s.stop(revoked[s.topic], s.config.DrainTimeout, ErrRevoked)
	s.commit(ctx)
}

// lost is called by the client when the group has already given the partitions to others, so neither waiting nor
// committing has any use.
func (s *subscription) lost(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
	if len(lost[s.topic]) > 0 {
		s.stop(lost[s.topic], 0, ErrRevoked)
	}
}

// find returns the partitions with these ids that are not done, all of them for nil.
func (s *subscription) find(ids []int32) []*partition {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*partition
	for id, p := range s.partitions {
		if ids == nil || slices.Contains(ids, id) {
			found = append(found, p)
		}
	}
	return found
}

// stop lets partitions hand out nothing more, waits for the answers to what is in hand, and gives up on the rest.
//
// A rebalance and the end of the subscription may stop the same partition at once, and both must wait until it is done. If the
// rebalance went ahead, the next owner would get what is in hand here, and the answer to it, marked and committed later, could
// set the group back behind what the next owner has done.
func (s *subscription) stop(ids []int32, grace time.Duration, cause error) {
	partitions := s.find(ids)
	for _, p := range partitions {
		p.stop()
	}
	// detached: the revocation has no context of its own, and the grace bounds it.
	waiting, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	for _, p := range partitions {
		select {
		case <-p.done:
		case <-waiting.Done():
		}
	}
	for _, p := range partitions {
		p.giveUp(cause)
		<-p.done
		p.unpause()
		s.mu.Lock()
		if s.partitions[p.id] == p {
			delete(s.partitions, p.id)
		}
		s.mu.Unlock()
	}
}

func (s *subscription) commit(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	if err := s.client.CommitMarkedOffsets(ctx); err != nil {
		s.config.Logger.LogAttrs(ctx, slog.LevelWarn, "could not commit, some acknowledged messages may be handed out again",
			slog.String("topic", s.topic), slog.Any("err", err))
	}
}

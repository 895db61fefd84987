package kafka_test

import (
	"context"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/opstream/opstream/consumers/kafka"
	"github.com/opstream/opstream/internal/kafkatest"
)

func TestPubSubReconnectsToApacheKafka(t *testing.T) {
	t.Parallel()
	broker := kafkatest.StartLocal(t, 1)
	reconnect(t, broker.Seeds(), broker.RestartCommand(t, 1))
}

// TestPubSubReconnects restarts a broker in this process, with its data on disk. Watermill wants a command for that, so the test
// binary calls itself, and the copy asks this test to do it.
func TestPubSubReconnects(t *testing.T) {
	t.Parallel()
	broker := newRestartable(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if err := broker.restart(); err != nil {
				t.Error(err)
			} else {
				_, _ = conn.Write([]byte("restarted"))
			}
			_ = conn.Close()
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		serving.Wait()
	})
	reconnect(t, broker.seeds, []string{os.Args[0], "-restart-broker-at=" + listener.Addr().String()})
}

// TestNothingIsLostWhenTheBrokerRestarts is our own and smaller TestReconnect, which runs under the race detector too.
func TestNothingIsLostWhenTheBrokerRestarts(t *testing.T) {
	t.Parallel()
	t.Run("memory", func(t *testing.T) {
		broker := newRestartable(t)
		testNothingIsLostWhenTheBrokerRestarts(t, broker.seeds, broker.restart)
	})
	t.Run("kafka", func(t *testing.T) {
		broker := kafkatest.StartLocal(t, 1)
		testNothingIsLostWhenTheBrokerRestarts(t, broker.Seeds(), func() error {
			if err := broker.Kill(1); err != nil {
				return err
			}
			return broker.Start(1)
		})
	})
}

func testNothingIsLostWhenTheBrokerRestarts(t *testing.T, seeds []string, restart func() error) {
	topic := newTopic(t, seeds, 4)
	pub := publisher(t, seeds)
	messages := subscribe(t, subscriber(t, kafka.SubscriberConfig{Seeds: seeds, Group: "group"}), topic)

	const total = 600
	sent := numbered(0, total)
	var publishing sync.WaitGroup
	t.Cleanup(publishing.Wait) // also of a test that fails
	publishing.Go(func() {
		for i := 0; i < total; i += 10 {
			if i == total/3 || i == total/2 {
				if err := restart(); err != nil {
					t.Error(err)
					return
				}
			}
			for try := 1; ; try++ {
				err := pub.Publish(topic, sent[i:i+10]...)
				if err == nil {
					break
				}
				if try == 10 {
					t.Errorf("expected to publish after the restart, but: %v", err)
					return
				}
			}
		}
	})
	missing := map[string]bool{}
	for _, msg := range sent {
		missing[msg.UUID] = true
	}
	for len(missing) > 0 {
		msg := receive(t, messages)
		delete(missing, msg.UUID)
		msg.Ack()
	}
	publishing.Wait()
}

// restartable is a broker in this process that can be stopped and started on the same port and data.
type restartable struct {
	dir   string
	seeds []string

	mu      sync.Mutex
	cluster *kfake.Cluster
}

func newRestartable(t *testing.T) *restartable {
	t.Helper()
	b := &restartable{dir: t.TempDir()}
	if err := b.start(0); err != nil {
		t.Fatal(err)
	}
	b.seeds = b.cluster.ListenAddrs()
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.cluster.Close()
	})
	return b
}

func (b *restartable) start(port int) error {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(port), kfake.DataDir(b.dir))
	if err == nil {
		b.cluster = cluster
	}
	return err
}

func (b *restartable) restart() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, text, err := net.SplitHostPort(b.seeds[0])
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return err
	}
	b.cluster.Close()
	return b.start(port)
}

func reconnect(t *testing.T, seeds, command []string) {
	if raceEnabled {
		t.Skip("NOT RUN under the race detector: Watermill's TestReconnect reads its list of published messages while another of its " +
			"goroutines appends to it. Run without -race; TestNothingIsLostWhenTheBrokerRestarts runs with it")
	}
	v := variant{partitions: 4, grouped: true}
	features := tests.Features{ConsumerGroups: true, Persistent: true, RestartServiceCommand: command}
	plain := v.constructor(seeds)
	tests.TestReconnect(t, tests.TestContext{TestID: tests.TestID(watermill.NewUUID()), Features: features},
		func(t *testing.T) (message.Publisher, message.Subscriber) {
			pub, sub := plain(t)
			return pub, &lastHeldBack{Subscriber: sub, limit: 10_000}
		})
}

// lastHeldBack delays the last message that TestReconnect waits for. The test compares what came with a list that one of its
// goroutines fills after Publish returned; a message can be here sooner, and the test then finds one too many. There is no
// signal for the end of that goroutine's work, so this waits for longer than it can take.
type lastHeldBack struct {
	message.Subscriber
	limit int
}

func (s *lastHeldBack) SubscribeInitialize(topic string) error {
	return s.Subscriber.(message.SubscribeInitializer).SubscribeInitialize(topic)
}

func (s *lastHeldBack) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	in, err := s.Subscriber.Subscribe(ctx, topic)
	if err != nil {
		return nil, err
	}
	out := make(chan *message.Message)
	go func() {
		defer close(out)
		seen := map[string]bool{}
		for msg := range in {
			seen[msg.UUID] = true
			if len(seen) == s.limit {
				<-time.After(time.Second)
			}
			select {
			case out <- msg:
			case <-msg.Context().Done(): // nobody reads any more
			}
		}
	}()
	return out, nil
}

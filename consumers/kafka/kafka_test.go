package kafka_test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/consumers/kafka"
	"github.com/opstream/opstream/internal/kafkatest"
)

// restartFlag makes the test binary a command that restarts the broker of the test process that started it: see reconnect_test.go.
var restartFlag = flag.String("restart-broker-at", "", "address of the test that is to restart its broker")

func TestMain(m *testing.M) {
	flag.Parse()
	if *restartFlag != "" {
		os.Exit(askForRestart(*restartFlag))
	}
	os.Exit(m.Run())
}

func askForRestart(address string) int {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	answer, err := io.ReadAll(conn)
	if err != nil || string(answer) != "restarted" {
		fmt.Fprintf(os.Stderr, "expected the broker to restart, but got %q, %v\n", answer, err)
		return 1
	}
	return 0
}

// onBoth runs a test on a broker in memory and on Apache Kafka, beside other tests.
func onBoth(t *testing.T, f func(t *testing.T, seeds []string)) {
	t.Helper()
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, b *kafkatest.Broker) {
		t.Parallel()
		f(t, b.Seeds)
	})
}

// quick are client options for tests with many members: groups settle at once.
var quick = []kgo.Opt{kgo.HeartbeatInterval(100 * time.Millisecond)}

func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func publisher(t testing.TB, seeds []string) *kafka.Publisher {
	t.Helper()
	p, err := kafka.NewPublisher(kafka.PublisherConfig{Seeds: seeds})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// subscriber fills in what all tests want alike.
func subscriber(t testing.TB, config kafka.SubscriberConfig) *kafka.Subscriber {
	t.Helper()
	if config.Logger == nil {
		config.Logger = testLogger(t)
	}
	if config.NackResendSleep == 0 {
		config.NackResendSleep = time.Millisecond
	}
	config.Opts = append(config.Opts, quick...)
	s, err := kafka.NewSubscriber(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func subscribe(t testing.TB, s *kafka.Subscriber, topic string) <-chan *message.Message {
	t.Helper()
	messages, err := s.Subscribe(context.WithoutCancel(t.Context()), topic)
	if err != nil {
		t.Fatal(err)
	}
	return messages
}

// newTopic creates a topic with a name of its own.
func newTopic(t testing.TB, seeds []string, partitions int32) string {
	t.Helper()
	topic := "topic-" + watermill.NewUUID()
	s := subscriber(t, kafka.SubscriberConfig{Seeds: seeds, Partitions: partitions})
	if err := s.SubscribeInitialize(topic); err != nil {
		t.Fatal(err)
	}
	return topic
}

func newMessage(payload string) *message.Message {
	return message.NewMessage(watermill.NewUUID(), message.Payload(payload))
}

func numbered(from, to int) []*message.Message {
	var messages []*message.Message
	for i := from; i < to; i++ {
		messages = append(messages, newMessage(fmt.Sprint(i)))
	}
	return messages
}

// spread gives each message a partition key of its own. Without keys the client fills one partition after the other.
func spread(messages []*message.Message) []*message.Message {
	for _, msg := range messages {
		msg.Metadata.Set(kafka.MetadataPartitionKey, msg.UUID)
	}
	return messages
}

func publish(t testing.TB, p message.Publisher, topic string, messages ...*message.Message) {
	t.Helper()
	if err := p.Publish(topic, messages...); err != nil {
		t.Fatal(err)
	}
}

const patience = time.Minute // for what should take milliseconds, or a restart of the broker, on a loaded machine

// receive returns the next message, or fails the test.
func receive(t testing.TB, messages <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case msg, ok := <-messages:
		if !ok {
			t.Fatal("expected a message, but the channel is closed")
		}
		return msg
	case <-time.After(patience):
		t.Fatalf("expected a message, but none came within %s", patience)
	}
	return nil
}

func receiveAcked(t testing.TB, messages <-chan *message.Message, n int) []string {
	t.Helper()
	var payloads []string
	for range n {
		msg := receive(t, messages)
		payloads = append(payloads, string(msg.Payload))
		msg.Ack()
	}
	return payloads
}

func await(t testing.TB, what string, signal <-chan struct{}) {
	t.Helper()
	select {
	case <-signal:
	case <-time.After(patience):
		t.Fatalf("expected %s, but it did not happen within %s", what, patience)
	}
}

func admin(t testing.TB, seeds []string) *kadm.Client {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(seeds...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return kadm.NewClient(client)
}

func partitions(t testing.TB, seeds []string, topic string) int {
	t.Helper()
	details, err := admin(t, seeds).ListTopics(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	return len(details[topic].Partitions)
}

// committed returns the offset that the group has committed in each partition.
func committed(t testing.TB, seeds []string, group, topic string) map[int32]int64 {
	t.Helper()
	offsets, err := admin(t, seeds).FetchOffsetsForTopics(t.Context(), group, topic)
	if err != nil {
		t.Fatal(err)
	}
	at := map[int32]int64{}
	offsets.Each(func(o kadm.OffsetResponse) { at[o.Partition] = max(0, o.At) })
	return at
}

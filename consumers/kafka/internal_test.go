package kafka

import (
	"context"
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/schemas"
)

// These tests look at what the API does not show.

// onTopic runs a test with a topic in memory and on Apache Kafka, beside other tests.
func onTopic(t *testing.T, partitions int32, f func(t *testing.T, seeds []string, topic string)) {
	t.Helper()
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, b *kafkatest.Broker) {
		t.Parallel()
		spec := schemas.Spec{Name: b.Prefix + "topic", Partitions: partitions, MaxBytes: 1 << 20}
		b.Create(t, spec)
		f(t, b.Seeds, spec.Name)
	})
}

func startSubscription(t *testing.T, config SubscriberConfig, topic string) *subscription {
	t.Helper()
	s, err := newSubscription(context.Background(), config.withDefaults(), topic)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return s
}

func publishTo(t *testing.T, seeds []string, topic string, payloads ...string) {
	t.Helper()
	p, err := NewPublisher(PublisherConfig{Seeds: seeds})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var messages []*message.Message
	for _, payload := range payloads {
		messages = append(messages, message.NewMessage(watermill.NewUUID(), message.Payload(payload)))
	}
	if err := p.Publish(topic, messages...); err != nil {
		t.Fatal(err)
	}
}

func incompressible(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return string(b)
}

func receiveFrom(t *testing.T, s *subscription) *message.Message {
	t.Helper()
	select {
	case msg := <-s.out:
		return msg
	case <-time.After(20 * time.Second):
		t.Fatal("expected a message, but none came")
		return nil
	}
}

func TestASlowPartitionIsPausedAndResumed(t *testing.T) {
	onTopic(t, 1, testASlowPartitionIsPausedAndResumed)
}

func testASlowPartitionIsPausedAndResumed(t *testing.T, seeds []string, topic string) {
	const total, limit = 3000, 64 << 10 // about 3 MB in all, a fetch is at most the limit
	var payloads []string
	for i := range total {
		payloads = append(payloads, fmt.Sprintf("%05d", i)+incompressible(1000))
	}
	for i := 0; i < total; i += 20 { // small batches, because the broker answers with whole ones
		publishTo(t, seeds, topic, payloads[i:i+20]...)
	}
	s := startSubscription(t, SubscriberConfig{Seeds: seeds, Group: "group-" + topic, BufferBytes: limit}, topic)

	switches, most, paused := 0, 0, false
	for i := range total {
		msg := receiveFrom(t, s)
		if got := string(msg.Payload[:5]); got != payloads[i][:5] {
			t.Fatalf("expected message %s, but got %s", payloads[i][:5], got)
		}
		p := s.partition(0)
		p.mu.Lock()
		most = max(most, p.bytes)
		if p.paused != paused {
			paused = p.paused
			switches++
		}
		p.mu.Unlock()
		msg.Ack()
	}
	if switches < 4 {
		t.Errorf("expected the partition to be paused and resumed several times, but it switched %d times", switches)
	}
	if most > 4*limit { // the limit, one fetch of as much payload, and what records cost beside that
		t.Errorf("expected about %d bytes to wait at most, but there were %d", 2*limit, most)
	}
}

func TestNewPartitionsAreFoundFromTheirBeginning(t *testing.T) {
	onTopic(t, 1, testNewPartitionsAreFoundFromTheirBeginning)
}

func testNewPartitionsAreFoundFromTheirBeginning(t *testing.T, seeds []string, topic string) {
	publishTo(t, seeds, topic, "old")
	s, err := newSubscription(context.Background(), SubscriberConfig{Seeds: seeds, StartAt: Latest}.withDefaults(), topic)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(seeds...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).CreatePartitions(t.Context(), 2, topic); err != nil {
		t.Fatal(err)
	}
	for partition, value := range []string{"new in 0", "first in 1"} {
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Partition: int32(partition), Value: []byte(value)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		growing := make(chan struct{})
		go func() {
			defer close(growing)
			s.grow(ctx, time.Millisecond)
		}()
		s.poll(ctx)
		<-growing
		s.drain()
	}()
	got := map[string]bool{}
	for range 2 {
		msg := receiveFrom(t, s)
		got[string(msg.Payload)] = true
		msg.Ack()
	}
	if !got["new in 0"] || !got["first in 1"] {
		t.Errorf("expected what is new in both partitions, but got %v", got)
	}
	cancel()
	<-ended
}

package kafka_test

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/consumers/kafka"
	"github.com/opstream/opstream/internal/kafkatest"
)

var payload = string(make([]byte, 256))

// The broker is in the process and takes its share of the time. "bare" is franz-go alone doing the same, so the difference is
// what the adapter costs.
func BenchmarkPublish(b *testing.B) {
	const batch = 100
	seeds := kafkatest.Memory(b).Seeds
	b.Run("adapter", func(b *testing.B) {
		topic := newTopic(b, seeds, 4)
		pub := publisher(b, seeds)
		messages := spread(numbered(0, batch))
		for _, msg := range messages {
			msg.Payload = message.Payload(payload)
		}
		b.ReportAllocs()
		for n := 0; n < b.N; n += batch {
			publish(b, pub, topic, messages...)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
	})
	b.Run("bare", func(b *testing.B) {
		topic := newTopic(b, seeds, 4)
		client := bareClient(b, seeds)
		messages := spread(numbered(0, batch))
		b.ReportAllocs()
		for n := 0; n < b.N; n += batch {
			records := make([]*kgo.Record, batch)
			for i, msg := range messages {
				records[i] = &kgo.Record{Topic: topic, Key: []byte(msg.UUID), Value: []byte(payload), Headers: []kgo.RecordHeader{
					{Key: kafka.HeaderUUID, Value: []byte(msg.UUID)}, {Key: kafka.MetadataPartitionKey, Value: []byte(msg.UUID)},
				}}
			}
			if err := client.ProduceSync(b.Context(), records...).FirstErr(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
	})
}

func BenchmarkConsume(b *testing.B) {
	seeds := kafkatest.Memory(b).Seeds
	filled := func(b *testing.B) string {
		topic := newTopic(b, seeds, 4)
		pub := publisher(b, seeds)
		for n := 0; n < b.N; n += 1000 {
			messages := spread(numbered(n, min(n+1000, b.N)))
			for _, msg := range messages {
				msg.Payload = message.Payload(payload)
			}
			publish(b, pub, topic, messages...)
		}
		return topic
	}
	b.Run("adapter", func(b *testing.B) {
		topic := filled(b)
		s := subscriber(b, kafka.SubscriberConfig{Seeds: seeds, Group: "group-" + topic})
		b.ReportAllocs()
		b.ResetTimer()
		messages := subscribe(b, s, topic)
		for range b.N {
			(<-messages).Ack()
		}
		b.StopTimer()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
	})
	b.Run("bare", func(b *testing.B) {
		topic := filled(b)
		b.ReportAllocs()
		b.ResetTimer()
		client := bareClient(b, seeds, kgo.ConsumeTopics(topic), kgo.ConsumerGroup("group-"+topic))
		for n := 0; n < b.N; {
			n += client.PollFetches(b.Context()).NumRecords()
		}
		b.StopTimer()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
	})
}

func bareClient(b *testing.B, seeds []string, opts ...kgo.Opt) *kgo.Client {
	b.Helper()
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(seeds...))...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(client.Close)
	return client
}

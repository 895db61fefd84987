package kafkatest_test

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/internal/kafkatest"
)

func TestRecordGoesRound(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	seeds := kafkatest.Cluster(t, kafkatest.Topic{Name: "words", Partitions: 3})
	producer := kafkatest.Client(t, seeds, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := producer.ProduceSync(ctx, &kgo.Record{Topic: "words", Partition: 2, Value: []byte("hello")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	consumer := kafkatest.Client(t, seeds, kgo.ConsumeTopics("words"))
	fetches := consumer.PollFetches(ctx)
	if err := fetches.Err(); err != nil {
		t.Fatal(err)
	}
	records := fetches.Records()
	if len(records) != 1 || string(records[0].Value) != "hello" || records[0].Partition != 2 {
		t.Fatalf("expected hello on partition 2, but got %v", records)
	}
}

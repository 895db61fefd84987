package embedded

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/opstream/opstream/internal/kafkatest"
)

// TestMain is also the entry of the process that the kill test kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv(victimDir); dir != "" {
		beVictim(dir)
	}
	os.Exit(m.Run())
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// deadline is for tests over real connections; nothing in them should come near it.
func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func open(t *testing.T, config Config) *Broker {
	t.Helper()
	if config.Logger == nil {
		config.Logger = quiet()
	}
	b, err := Open(t.Context(), config)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func closeBroker(t *testing.T, b *Broker) {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// refused opens and wants an error with all these words.
func refused(t *testing.T, config Config, words ...string) {
	t.Helper()
	config.Logger = quiet()
	b, err := Open(t.Context(), config)
	if err == nil {
		b.Close()
		t.Fatalf("expected an error with %q, but the broker opened", words)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("expected an error with %q, but got: %v", word, err)
		}
	}
}

func producer(t *testing.T, seeds []string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	return kafkatest.Client(t, seeds, append([]kgo.Opt{kgo.RecordPartitioner(kgo.ManualPartitioner())}, opts...)...)
}

func produce(t *testing.T, client *kgo.Client, records ...*kgo.Record) {
	t.Helper()
	if err := client.ProduceSync(deadline(t), records...).FirstErr(); err != nil {
		t.Fatalf("produce: %v", err)
	}
}

// readAll reads every partition of a topic from its first record to the end that the broker names, in offset order.
func readAll(t *testing.T, b *Broker, topic string) map[int32][]*kgo.Record {
	t.Helper()
	left := make(map[int32]int64)
	starts := make(map[int32]kgo.Offset)
	for _, info := range b.Cluster().PartitionInfos(topic) {
		starts[info.Partition] = kgo.NewOffset().At(info.LogStartOffset)
		if info.HighWatermark > info.LogStartOffset {
			left[info.Partition] = info.HighWatermark
		}
	}
	client := kafkatest.Client(t, b.Addrs(), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: starts}))
	defer client.Close()
	ctx := deadline(t)
	got := make(map[int32][]*kgo.Record)
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("read %s with %v still to come: %v", topic, left, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			got[r.Partition] = append(got[r.Partition], r)
			if r.Offset+1 == left[r.Partition] {
				delete(left, r.Partition)
			}
		})
	}
	return got
}

func request[R kmsg.Response](t *testing.T, client *kgo.Client, req kmsg.Request) R {
	t.Helper()
	response, err := client.Request(deadline(t), req)
	if err != nil {
		t.Fatalf("request %s: %v", kmsg.NameForKey(req.Key()), err)
	}
	return response.(R)
}

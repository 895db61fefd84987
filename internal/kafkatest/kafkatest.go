// Package kafkatest gives a test a Kafka of its own, in memory and gone with the test.
package kafkatest

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Topic is a topic that the cluster starts with.
type Topic struct {
	Name       string
	Partitions int32
}

// Cluster starts one broker in memory with these topics and returns its seeds.
func Cluster(t testing.TB, topics ...Topic) []string {
	t.Helper()
	return Start(t, topics...).ListenAddrs()
}

// Start is Cluster for a test that also injects faults. Unlike the embedded broker it has transactions and no guards.
func Start(t testing.TB, topics ...Topic) *kfake.Cluster {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatalf("start a broker in memory: %v", err)
	}
	t.Cleanup(cluster.Close)
	for _, topic := range topics {
		if err := cluster.CreateTopic(topic.Name, topic.Partitions, nil); err != nil {
			t.Fatalf("create topic %q with %d partitions: %v", topic.Name, topic.Partitions, err)
		}
	}
	return cluster
}

// Client is a client that waits for nothing longer than a test likes to: it asks again for an unknown topic after 50 ms, not after
// 5 s, and no fetch waits behind empty partitions for more than 500 ms. It is closed with the test.
func Client(t testing.TB, seeds []string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	quick := []kgo.Opt{
		kgo.SeedBrokers(seeds...),
		kgo.MetadataMinAge(50 * time.Millisecond),
		kgo.FetchMaxWait(500 * time.Millisecond),
	}
	client, err := kgo.NewClient(append(quick, opts...)...)
	if err != nil {
		t.Fatalf("make a client for %v: %v", seeds, err)
	}
	t.Cleanup(client.Close)
	return client
}

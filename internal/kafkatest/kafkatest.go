// Package kafkatest gives tests a Kafka: one in memory that is gone with the test, and Apache Kafka itself.
//
// A test that injects no faults runs on both, with [Each]; those that do are named in memory.go. The one in memory is always there. Apache Kafka must be asked for, so that
// the tests need nothing but Go: see [SeedsEnv].
package kafkatest

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/opstream/opstream/schemas"
)

// Topic is a topic that the cluster starts with.
type Topic struct {
	Name       string
	Partitions int32
}

// Broker is what a test runs on.
type Broker struct {
	Seeds []string
	Real  bool // Apache Kafka, which other tests use at the same time
	// Prefix begins the names of topics and groups: it is the test's own.
	Prefix string
	// Fake injects faults. It is nil on Apache Kafka.
	Fake *kfake.Cluster
}

// Each runs a test on the broker in memory, and on Apache Kafka where somebody has asked for one.
func Each(t *testing.T, f func(*testing.T, *Broker)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) { f(t, inMemory(t)) })
	t.Run("kafka", func(t *testing.T) { f(t, OnReal(t, Real(t))) })
}

// Memory is a broker in memory for a test that needs one: see [MemoryOnly].
func Memory(t testing.TB) *Broker {
	t.Helper()
	MemoryOnly(t)
	return inMemory(t)
}

func inMemory(t testing.TB) *Broker {
	t.Helper()
	fake := Start(t)
	return &Broker{Seeds: fake.ListenAddrs(), Prefix: "test.", Fake: fake}
}

// OnReal is Apache Kafka at these seeds, as one test uses it: the topics with its prefix are deleted with the test.
func OnReal(t testing.TB, seeds []string) *Broker {
	t.Helper()
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, t.Name())
	b := &Broker{Seeds: seeds, Real: true, Prefix: name[:min(len(name), 100)] + "-" + rand.Text()[:8] + "."}
	t.Cleanup(func() { b.clear(t) })
	return b
}

// Topics are the topics of an installation that is the test's own. They are not there yet.
func (b *Broker) Topics() schemas.Topics { return schemas.Topics{Prefix: b.Prefix} }

// Create creates topics as an installation has them, and waits until each partition has a leader.
func (b *Broker) Create(t testing.TB, specs ...schemas.Spec) {
	t.Helper()
	client := Client(t, b.Seeds)
	admin := kadm.NewClient(client)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, s := range specs {
		config := map[string]*string{}
		for k, v := range s.Config() {
			config[k] = kadm.StringPtr(v)
		}
		if _, err := admin.CreateTopic(ctx, s.Partitions, -1, config, s.Name); err != nil {
			t.Fatalf("create topic %q with %d partitions: %v", s.Name, s.Partitions, err)
		}
	}
	for _, s := range specs {
		for !led(ctx, t, client, s) {
			// sleep: a broker offers no signal for the election of a leader
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// led tells whether every broker knows a leader of each partition of a topic.
func led(ctx context.Context, t testing.TB, client *kgo.Client, s schemas.Spec) bool {
	t.Helper()
	for _, broker := range client.DiscoveredBrokers() {
		req := kmsg.NewPtrMetadataRequest()
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = kmsg.StringPtr(s.Name)
		req.Topics = append(req.Topics, topic)
		resp, err := req.RequestWith(ctx, broker)
		if err != nil {
			t.Fatalf("expected topic %q to have leaders within a minute, but: %v", s.Name, err)
		}
		n := int32(0)
		for _, p := range resp.Topics[0].Partitions {
			if p.ErrorCode == 0 && p.Leader >= 0 {
				n++
			}
		}
		if n != s.Partitions {
			return false
		}
	}
	return true
}

// clear makes room for other tests. What is left takes only space.
func (b *Broker) clear(t testing.TB) {
	client, err := kgo.NewClient(kgo.SeedBrokers(b.Seeds...))
	if err != nil {
		t.Error(err)
		return
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), reachLimit)
	defer cancel()
	admin := kadm.NewClient(client)
	all, err := admin.ListTopics(ctx)
	if err == nil {
		mine := slices.DeleteFunc(all.Names(), func(name string) bool { return !strings.HasPrefix(name, b.Prefix) })
		_, err = admin.DeleteTopics(ctx, mine...)
	}
	if err != nil {
		t.Logf("the topics of the test stay on the broker: %v", err)
	}
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

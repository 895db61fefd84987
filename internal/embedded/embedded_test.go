package embedded

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/opstream/opstream/internal/kafkatest"
)

func TestOnlyThisHost(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:9092", ":9092", "[::]:9092", "[::1]:9092", "127.0.0.2:9092", "example.org:9092"} {
		refused(t, Config{Addr: addr}, "127.0.0.1:9092", addr)
	}
	refused(t, Config{Addr: "127.0.0.1"}, "127.0.0.1:9092")
	refused(t, Config{Addr: "127.0.0.1:kafka"}, "port from 0 to 65535", "kafka")
	refused(t, Config{Addr: "127.0.0.1:65536"}, "port from 0 to 65535", "65536")
	open(t, Config{Addr: "localhost:0"})
}

func TestAllFaultsOfAConfigAtOnce(t *testing.T) {
	refused(t, Config{Addr: "0.0.0.0:1", Topics: []Topic{{Partitions: 1}, {Name: "a"}, {Name: "b", Partitions: 1}, {Name: "b", Partitions: 1}}},
		"0.0.0.0:1", "topic 0 to have a name", `"a" to have at least 1 partition`, `"b" is there twice`)
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	refused(t, Config{Dir: t.TempDir(), Addr: l.Addr().String()}, "port "+strconv.Itoa(port), "another process", "choose another port")
}

// TestClientRidesOverARestart also shows that a fixed port is kept.
func TestClientRidesOverARestart(t *testing.T) {
	dir := t.TempDir()
	topics := []Topic{{Name: "a", Partitions: 1}}
	first := open(t, Config{Dir: dir, Topics: topics})
	addr := first.Addrs()[0]
	client := producer(t, first.Addrs())
	produce(t, client, &kgo.Record{Topic: "a", Value: []byte("before")})
	closeBroker(t, first)
	second := open(t, Config{Dir: dir, Addr: addr, Topics: topics})
	produce(t, client, &kgo.Record{Topic: "a", Value: []byte("after")})
	records := readAll(t, second, "a")[0]
	if len(records) != 2 || string(records[0].Value) != "before" || string(records[1].Value) != "after" {
		t.Fatalf("expected before and after, but got %v", records)
	}
}

// TestNoClientBeforeTheGuards looks at the gate alone: that Open closes it late enough is plain from Open.
func TestNoClientBeforeTheGuards(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	accepted := make(chan error, 1)
	gate := newGatedListener(inner, quiet(), ready)
	accept := func() {
		conn, err := gate.Accept()
		if err == nil {
			conn.Close()
		}
		accepted <- err
	}
	go accept()
	conn, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	select {
	case err := <-accepted:
		t.Fatalf("expected the client to wait, but it was accepted, err %v", err)
	default:
	}
	close(ready)
	if err := <-accepted; err != nil {
		t.Fatalf("expected the client to be accepted, but got %v", err)
	}

	gate = newGatedListener(inner, quiet(), nil)
	go accept()
	gate.Close()
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Fatalf("expected a closed gate to end Accept, but got %v", err)
	}
}

// brokenListener fails as one does for want of descriptors, some times, and then accepts.
type brokenListener struct {
	net.Listener
	failures int
}

func (l *brokenListener) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

// TestClientsAreTakenAgainAfterAFailure guards against a broker that refuses everybody for good because it had no descriptor left
// for a moment.
func TestClientsAreTakenAgainAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := &kfake.VirtualNetwork{}
		broken := 0
		b := open(t, Config{
			Addr: "127.0.0.1:9092", Topics: []Topic{{Name: "a", Partitions: 1}},
			Options: []kfake.Opt{kfake.ListenFn(func(kind, address string) (net.Listener, error) {
				l, err := network.Listen(kind, address)
				if err != nil {
					return nil, err
				}
				broken++
				always := make(chan struct{})
				close(always)
				return newGatedListener(&brokenListener{l, 20}, quiet(), always), nil
			})},
		})
		client := producer(t, b.Addrs(), kgo.Dialer(network.DialContext))
		produce(t, client, &kgo.Record{Topic: "a"})
		if broken == 0 {
			t.Error("expected the broken listener to be used")
		}
		client.Close()
		closeBroker(t, b)
		synctest.Wait()
	})
}

func TestCancelledOpen(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("changed my mind"))
	if _, err := Open(ctx, Config{Dir: dir, Logger: quiet()}); err == nil || !strings.Contains(err.Error(), "changed my mind") {
		t.Fatalf("expected the cause, but got %v", err)
	}
	open(t, Config{Dir: dir})
}

func TestTopicsAreMadeWhenMissingAndNeverChanged(t *testing.T) {
	dir := t.TempDir()
	b := open(t, Config{Dir: dir, Topics: []Topic{{Name: "a", Partitions: 2, Configs: map[string]string{"segment.bytes": "65536", "retention.ms": "1000"}}}})
	closeBroker(t, b)

	refused(t, Config{Dir: dir, Topics: []Topic{{Name: "new", Partitions: 1}, {Name: "a", Partitions: 12}}},
		`"a"`, "12 partitions", "it has 2", dir, "another data directory")

	b = open(t, Config{Dir: dir, Topics: []Topic{{Name: "a", Partitions: 2}, {Name: "b", Partitions: 3}}})
	if info := b.Cluster().TopicInfo("new"); info != nil {
		t.Fatal("expected a refused opening to create nothing, but topic \"new\" is there")
	}
	for topic, partitions := range map[string]int{"a": 2, "b": 3} {
		if have := len(b.Cluster().PartitionInfos(topic)); have != partitions {
			t.Errorf("expected %d partitions of %s, but got %d", partitions, topic, have)
		}
		for name, want := range ownTopicConfigs {
			if have := b.Cluster().TopicInfo(topic).Configs[name]; have == nil || *have != want {
				t.Errorf("expected %s of %s to be %s, but got %v", name, topic, want, have)
			}
		}
	}
	if have := b.Cluster().TopicInfo("a").Configs["segment.bytes"]; have == nil || *have != "65536" {
		t.Errorf("expected the given setting to be kept over a restart, but got %v", have)
	}
}

func TestClientsMakeNoTopicsByAccident(t *testing.T) {
	b := open(t, Config{})
	client := kafkatest.Client(t, b.Addrs(), kgo.AllowAutoTopicCreation())
	req := kmsg.NewPtrMetadataRequest()
	req.AllowAutoTopicCreation = true
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = kmsg.StringPtr("typo")
	req.Topics = append(req.Topics, topic)
	response := request[*kmsg.MetadataResponse](t, client, req)
	if code := response.Topics[0].ErrorCode; code != kerr.UnknownTopicOrPartition.Code {
		t.Fatalf("expected UNKNOWN_TOPIC_OR_PARTITION, but got code %d", code)
	}
	if b.Cluster().TopicInfo("typo") != nil {
		t.Fatal("expected no topic, but it was created")
	}
}

// TestNothingExpires uses a topic that a client made without a word about retention, and a record dated a year back: kfake alone
// would give it seven days, and drop the fresh record before the old one too.
func TestNothingExpires(t *testing.T) {
	b := open(t, Config{Topics: []Topic{{Name: "ours", Partitions: 1}}})
	client := producer(t, b.Addrs())
	req := kmsg.NewPtrCreateTopicsRequest()
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = "theirs", 1, 1
	req.Topics = append(req.Topics, topic)
	if code := request[*kmsg.CreateTopicsResponse](t, client, req).Topics[0].ErrorCode; code != 0 {
		t.Fatalf("create topic: code %d", code)
	}
	for _, name := range []string{"ours", "theirs"} {
		produce(t, client, &kgo.Record{Topic: name, Value: []byte("fresh")})
		produce(t, client, &kgo.Record{Topic: name, Value: []byte("old"), Timestamp: time.Now().AddDate(-1, 0, 0)}) // a batch of its own
	}
	b.Cluster().ApplyRetention()
	for _, name := range []string{"ours", "theirs"} {
		if n := len(readAll(t, b, name)[0]); n != 2 {
			t.Errorf("expected both records of %s to stay, but %d are left", name, n)
		}
	}

	alter := kmsg.NewPtrIncrementalAlterConfigsRequest()
	resource := kmsg.NewIncrementalAlterConfigsRequestResource()
	resource.ResourceType = kmsg.ConfigResourceTypeBroker
	config := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	config.Name, config.Value = "log.cleaner.backoff.ms", kmsg.StringPtr("1")
	resource.Configs = append(resource.Configs, config)
	alter.Resources = append(alter.Resources, resource)
	if code := request[*kmsg.IncrementalAlterConfigsResponse](t, client, alter).Resources[0].ErrorCode; code != kerr.PolicyViolation.Code {
		t.Errorf("expected POLICY_VIOLATION for a setting of the broker, but got code %d", code)
	}
}

// TestCleanerNeverRuns gives a topic everything that calls for the cleaner, and a virtual day, in which kfake alone would run it
// 24 times.
func TestCleanerNeverRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := &kfake.VirtualNetwork{}
		b := open(t, Config{Addr: "127.0.0.1:9092", Options: []kfake.Opt{kfake.ListenFn(network.Listen)}})
		err := b.Cluster().CreateTopic("theirs", 1, map[string]string{"cleanup.policy": "compact", "retention.ms": "1000"})
		if err != nil {
			t.Fatal(err)
		}
		client := producer(t, b.Addrs(), kgo.Dialer(network.DialContext))
		for range 5 {
			if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "theirs", Key: []byte("same")}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if info := b.Cluster().PartitionInfo("theirs", 0); info.LogStartOffset != 0 || info.HighWatermark != 5 {
			t.Errorf("expected the log to go from 0 to 5, but it goes from %d to %d", info.LogStartOffset, info.HighWatermark)
		}
		client.Close()
		closeBroker(t, b)
		synctest.Wait()
	})
}

package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/consumers/kafka"
)

func TestPublishErrorsNameTheMessage(t *testing.T) { onBoth(t, testPublishErrorsNameTheMessage) }

func testPublishErrorsNameTheMessage(t *testing.T, seeds []string) {
	topic := newTopic(t, seeds, 1)
	pub := publisher(t, seeds)
	ended, end := context.WithCancelCause(context.Background())
	cause := errors.New("the caller went away")
	end(cause)

	batch := func() []*message.Message { return numbered(0, 4) }
	expect := func(what string, messages []*message.Message, failed int, want error) {
		t.Helper()
		err := pub.Publish(topic, messages...)
		var got *kafka.PublishError
		if !errors.As(err, &got) {
			t.Fatalf("%s: expected a PublishError, but got %v", what, err)
		}
		if got.Topic != topic || got.Position != 2 || got.UUID != messages[2].UUID || got.Failed != failed || got.Total != 4 {
			t.Errorf("%s: expected topic %q, position 2, UUID %q, %d of 4 failed, but got %+v", what, topic, messages[2].UUID, failed, got)
		}
		if want != nil && !errors.Is(err, want) {
			t.Errorf("%s: expected %v within %v", what, want, err)
		}
	}

	tooLarge := batch()
	tooLarge[2].Payload = make([]byte, 2<<20)
	expect("too large", tooLarge, 1, kerr.MessageTooLarge)
	late := batch()
	late[2].SetContext(ended)
	expect("ended context", late, 4, cause)
	reserved := batch()
	reserved[2].Metadata.Set(kafka.HeaderUUID, "x")
	expect("reserved metadata", reserved, 4, nil)

	if err := pub.Close(); err != nil {
		t.Fatal(err)
	}
	if err := pub.Publish(topic, batch()...); !errors.Is(err, kafka.ErrClosed) {
		t.Errorf("expected ErrClosed, but got %v", err)
	}

	// The messages beside the one that was too large are on the log, those of the other calls are not.
	messages := subscribe(t, subscriber(t, kafka.SubscriberConfig{Seeds: seeds}), topic)
	if got, want := receiveAcked(t, messages, 3), strings.Fields("0 1 3"); !slices.Equal(got, want) {
		t.Errorf("expected %v, but got %v", want, got)
	}
}

func TestPublishGivesUpOnABrokerThatIsNotThere(t *testing.T) {
	t.Parallel()
	pub, err := kafka.NewPublisher(kafka.PublisherConfig{Seeds: []string{"127.0.0.1:1"}, Opts: []kgo.Opt{kgo.RecordDeliveryTimeout(time.Second)}})
	if err != nil {
		t.Fatal(err)
	}
	defer pub.Close()
	var failed *kafka.PublishError
	if err := pub.Publish("topic", newMessage("x")); !errors.As(err, &failed) {
		t.Errorf("expected a PublishError, but got %v", err)
	}
}

func TestPartitionKeyKeepsMessagesTogether(t *testing.T) {
	onBoth(t, testPartitionKeyKeepsMessagesTogether)
}

func testPartitionKeyKeepsMessagesTogether(t *testing.T, seeds []string) {
	topic := newTopic(t, seeds, 8)
	client, err := kgo.NewClient(kgo.SeedBrokers(seeds...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	pub, err := kafka.NewPublisher(kafka.PublisherConfig{Client: client, Marshaler: kafka.DefaultMarshaler{KeyMetadata: "customer"}})
	if err != nil {
		t.Fatal(err)
	}
	var all []*message.Message
	for i := range 80 {
		msg := newMessage(fmt.Sprint(i))
		msg.Metadata.Set("customer", fmt.Sprint(i%10))
		all = append(all, msg)
	}
	publish(t, pub, topic, all...)
	if err := pub.Close(); err != nil {
		t.Fatal(err)
	}
	if err := client.Ping(t.Context()); err != nil {
		t.Errorf("expected a shared client to stay open, but: %v", err)
	}

	messages := subscribe(t, subscriber(t, kafka.SubscriberConfig{Seeds: seeds}), topic)
	partitionOf, used := map[string]int32{}, map[int32]bool{}
	for range all {
		msg := receive(t, messages)
		at, _ := kafka.PositionOf(msg.Context())
		customer := msg.Metadata.Get("customer")
		if string(at.Key) != customer || at.Timestamp.IsZero() {
			t.Errorf("expected the key %q and a timestamp, but got %+v", customer, at)
		}
		if before, ok := partitionOf[customer]; ok && before != at.Partition {
			t.Errorf("customer %s is in partitions %d and %d", customer, before, at.Partition)
		}
		partitionOf[customer] = at.Partition
		used[at.Partition] = true
		msg.Ack()
	}
	if len(used) < 2 {
		t.Errorf("expected several partitions to be used, but only %v were", used)
	}
}

func TestDefaultMarshaler(t *testing.T) {
	var m kafka.DefaultMarshaler
	msg := newMessage("payload")
	msg.Metadata = message.Metadata{"b": "2", "a": "1", "c": "\xff", kafka.MetadataPartitionKey: "k"}
	record, err := m.Marshal("topic", msg)
	if err != nil {
		t.Fatal(err)
	}
	want := &kgo.Record{Topic: "topic", Key: []byte("k"), Value: []byte("payload"), Headers: []kgo.RecordHeader{
		{Key: "_watermill_message_uuid", Value: []byte(msg.UUID)}, // the official adapter's name: never change it
		{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte("2")}, {Key: "c", Value: []byte("\xff")}, {Key: "partition_key", Value: []byte("k")},
	}}
	if !reflect.DeepEqual(record, want) {
		t.Errorf("expected %+v, but got %+v", want, record)
	}
	back, err := m.Unmarshal(record)
	if err != nil || !back.Equals(msg) {
		t.Errorf("expected the same message back, but got %+v, %v", back, err)
	}

	foreign, err := m.Unmarshal(&kgo.Record{Topic: "t", Partition: 3, Offset: 7, Key: []byte("k"), Headers: []kgo.RecordHeader{
		{Key: "h", Value: []byte("first")}, {Key: "h", Value: []byte("last")}, {Key: "nil"},
	}})
	wanted := message.NewMessage("t/3/7", nil)
	wanted.Metadata = message.Metadata{"h": "last", "nil": "", kafka.MetadataPartitionKey: "k"}
	if err != nil || !foreign.Equals(wanted) {
		t.Errorf("expected %+v, but got %+v, %v", wanted, foreign, err)
	}
}

func FuzzDefaultMarshaler(f *testing.F) {
	f.Add("uuid", "name", "value", []byte("payload"))
	f.Add("", "", "", []byte(nil))
	f.Fuzz(func(t *testing.T, uuid, name, value string, payload []byte) {
		var m kafka.DefaultMarshaler
		msg := message.NewMessage(uuid, payload)
		msg.Metadata.Set(name, value)
		record, err := m.Marshal("topic", msg)
		if name == kafka.HeaderUUID {
			if err == nil {
				t.Error("expected the reserved name to be refused")
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		back, err := m.Unmarshal(record)
		if err != nil {
			t.Fatal(err)
		}
		if uuid == "" {
			msg.UUID = back.UUID
		}
		if !back.Equals(msg) {
			t.Errorf("expected %+v, but got %+v", msg, back)
		}
	})
}

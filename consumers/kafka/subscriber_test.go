package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/consumers/kafka"
)

// Two members share a topic; one joins while the other works, and the first leaves in the middle. What was acknowledged must not
// come again, and what was not must.
func TestRebalanceLosesAndRepeatsNothing(t *testing.T) {
	onBoth(t, testRebalanceLosesAndRepeatsNothing)
}

func testRebalanceLosesAndRepeatsNothing(t *testing.T, seeds []string) {
	topic := newTopic(t, seeds, 4)
	group := "group-" + topic
	pub := publisher(t, seeds)

	var (
		mu       sync.Mutex
		sent     []*message.Message
		answered = map[string]string{} // by whom
		counts   = map[string]int{}
		held     *message.Message
		progress = make(chan struct{}, 1)
	)
	member := func(name string, messages <-chan *message.Message) {
		for msg := range messages {
			mu.Lock()
			if by, ok := answered[msg.UUID]; ok {
				t.Errorf("message %s was acknowledged by %s and came again to %s", msg.Payload, by, name)
			}
			counts[name]++
			if name == "first" && counts[name] == 100 {
				held = msg // never answered: must go to the second member
			} else {
				answered[msg.UUID] = name
				msg.Ack()
			}
			mu.Unlock()
			select {
			case progress <- struct{}{}:
			default:
			}
		}
	}
	// until publishes, if more is set, and waits for the members to get somewhere.
	until := func(what string, more bool, reached func() bool) {
		t.Helper()
		deadline := time.After(patience)
		for {
			mu.Lock()
			done, n := reached(), len(sent)
			mu.Unlock()
			if done {
				return
			}
			if more {
				batch := spread(numbered(n, n+20))
				mu.Lock()
				sent = append(sent, batch...)
				mu.Unlock()
				publish(t, pub, topic, batch...)
			}
			select {
			case <-progress:
			case <-time.After(50 * time.Millisecond): // both may wait for more
			case <-deadline:
				t.Fatalf("expected %s, but it did not happen within %s (counts %v of %d)", what, patience, counts, n)
			}
		}
	}

	// Revoking must not wait long for the message that is never answered, and must wait for the others.
	config := kafka.SubscriberConfig{Seeds: seeds, Group: group, DrainTimeout: 300 * time.Millisecond}
	first, second := subscriber(t, config), subscriber(t, config)
	var members sync.WaitGroup
	firstMessages := subscribe(t, first, topic)
	members.Go(func() { member("first", firstMessages) })
	until("the first member to work", true, func() bool { return counts["first"] >= 300 })
	secondMessages := subscribe(t, second, topic)
	members.Go(func() { member("second", secondMessages) })
	until("the second member to work", true, func() bool { return counts["second"] >= 300 })
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	until("the second member to go on alone", true, func() bool { return counts["second"] >= 900 })
	until("all messages to be acknowledged", false, func() bool { return len(answered) == len(sent) })
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	members.Wait()

	mu.Lock()
	defer mu.Unlock()
	for _, msg := range sent {
		if answered[msg.UUID] == "" {
			t.Errorf("message %s was lost", msg.Payload)
		}
	}
	if answered[held.UUID] != "second" {
		t.Errorf("expected the message that the first member never answered to be acknowledged by the second, but it was by %q", answered[held.UUID])
	}
	var end int64
	for _, at := range committed(t, seeds, group, topic) {
		end += at
	}
	if end != int64(len(sent)) {
		t.Errorf("expected offsets of %d in all partitions together, but they are %d", len(sent), end)
	}
}

func TestNackKeepsTheOrder(t *testing.T) { onBoth(t, testNackKeepsTheOrder) }

func testNackKeepsTheOrder(t *testing.T, seeds []string) {
	topic := newTopic(t, seeds, 1)
	publish(t, publisher(t, seeds), topic, numbered(0, 9)...)
	messages := subscribe(t, subscriber(t, kafka.SubscriberConfig{Seeds: seeds, Group: "group-" + topic}), topic)

	var got []string
	nacks := 0
	for len(got) < 9+2*3 {
		msg := receive(t, messages)
		got = append(got, string(msg.Payload))
		if strings.Contains("2 5 8", string(msg.Payload)) && nacks < 2 {
			nacks++
			msg.Metadata.Set("spoilt", "by the handler")
			msg.Nack()
			await(t, "the context to end with the nack", msg.Context().Done())
			continue
		}
		if msg.Metadata.Get("spoilt") != "" {
			t.Error("expected a new message after the nack, but it has what the handler did to the old one")
		}
		nacks = 0
		msg.Ack()
	}
	if want := strings.Fields("0 1 2 2 2 3 4 5 5 5 6 7 8 8 8"); !slices.Equal(got, want) {
		t.Errorf("expected deliveries %v, but got %v", want, got)
	}
}

// refusing cannot read records that begin with "bad".
type refusing struct{ kafka.DefaultMarshaler }

var errRefused = errors.New("refused")

func (m refusing) Unmarshal(r *kgo.Record) (*message.Message, error) {
	if strings.HasPrefix(string(r.Value), "bad") {
		return nil, errRefused
	}
	return m.DefaultMarshaler.Unmarshal(r)
}

func TestUndecodableRecordsArePassedOver(t *testing.T) {
	onBoth(t, testUndecodableRecordsArePassedOver)
}

func testUndecodableRecordsArePassedOver(t *testing.T, seeds []string) {
	topic := newTopic(t, seeds, 1)
	group := "group-" + topic
	publish(t, publisher(t, seeds), topic, newMessage("bad 0"), newMessage("good 1"), newMessage("bad 2"), newMessage("good 3"), newMessage("bad 4"))

	told := make(chan string, 10)
	s := subscriber(t, kafka.SubscriberConfig{
		Seeds: seeds, Group: group, Marshaler: refusing{},
		OnUndecodable: func(_ context.Context, r *kgo.Record, err error) {
			told <- fmt.Sprintf("%s at %s/%d/%d: %v", r.Value, r.Topic, r.Partition, r.Offset, errors.Is(err, errRefused))
		},
	})
	got := receiveAcked(t, subscribe(t, s, topic), 2)
	if want := []string{"good 1", "good 3"}; !slices.Equal(got, want) {
		t.Errorf("expected %v, but got %v", want, got)
	}
	for _, want := range []string{"bad 0 at %s/0/0: true", "bad 2 at %s/0/2: true", "bad 4 at %s/0/4: true"} {
		select {
		case got := <-told:
			if want := fmt.Sprintf(want, topic); got != want {
				t.Errorf("expected %q, but got %q", want, got)
			}
		case <-time.After(patience):
			t.Fatalf("expected %q, but nothing came", want)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if at := committed(t, seeds, group, topic)[0]; at != 5 {
		t.Errorf("expected the group to have passed all 5 records, but it is at %d", at)
	}
}

// A member that holds a message in each of four partitions must give two of them to a member that joins.
func TestRevokingEndsContexts(t *testing.T) { onBoth(t, testRevokingEndsContexts) }

func testRevokingEndsContexts(t *testing.T, seeds []string) {
	topic := newTopic(t, seeds, 4)
	group := "group-" + topic
	pub := publisher(t, seeds)
	publish(t, pub, topic, spread(numbered(0, 100))...)
	config := kafka.SubscriberConfig{Seeds: seeds, Group: group, DrainTimeout: 100 * time.Millisecond}
	first, second := subscriber(t, config), subscriber(t, config)
	held := map[int32]*message.Message{}
	messages := subscribe(t, first, topic)
	for range 4 {
		msg := receive(t, messages)
		at, ok := kafka.PositionOf(msg.Context())
		if !ok || at.Topic != topic || held[at.Partition] != nil {
			t.Fatalf("expected one message of each partition with its position, but got %+v, %v", at, ok)
		}
		held[at.Partition] = msg
	}

	taken := receive(t, subscribe(t, second, topic))
	at, _ := kafka.PositionOf(taken.Context())
	old := held[at.Partition]
	await(t, "the context of the revoked message to end", old.Context().Done())
	if cause := context.Cause(old.Context()); !errors.Is(cause, kafka.ErrRevoked) {
		t.Errorf("expected the cause ErrRevoked, but it is %v", cause)
	}
	if taken.UUID != old.UUID {
		t.Errorf("expected the second member to begin with message %s, which was not answered, but it got %s", old.Payload, taken.Payload)
	}
	old.Ack() // too late, and must not matter
	alive := 0
	for _, msg := range held {
		if msg.Context().Err() == nil {
			alive++
		}
	}
	if alive != 2 {
		t.Errorf("expected 2 of 4 messages to stay with the first member, but %d did", alive)
	}

	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	for partition, at := range committed(t, seeds, group, topic) {
		if at > 0 {
			t.Errorf("nothing was acknowledged in time, but partition %d is committed at %d", partition, at)
		}
	}
}

func TestCloseGivesUpABlockedHandler(t *testing.T) { onBoth(t, testCloseGivesUpABlockedHandler) }

func testCloseGivesUpABlockedHandler(t *testing.T, seeds []string) {
	topic := newTopic(t, seeds, 1)
	config := kafka.SubscriberConfig{Seeds: seeds, Group: "group-" + topic, DrainTimeout: 200 * time.Millisecond}
	publish(t, publisher(t, seeds), topic, numbered(0, 3)...)

	for _, how := range []string{"Close", "context"} {
		s := subscriber(t, config)
		ctx, cancel := context.WithCancel(context.Background())
		messages, err := s.Subscribe(ctx, topic)
		if err != nil {
			t.Fatal(err)
		}
		msg := receive(t, messages)
		if string(msg.Payload) != "0" {
			t.Errorf("expected message 0 again, because nobody acknowledged it, but got %s", msg.Payload)
		}
		begin := time.Now()
		if how == "context" {
			cancel()
		} else if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		await(t, "the message's context to end", msg.Context().Done())
		if cause := context.Cause(msg.Context()); !errors.Is(cause, kafka.ErrClosed) {
			t.Errorf("expected the cause ErrClosed, but it is %v", cause)
		}
		select {
		case _, open := <-messages:
			if open {
				t.Error("expected no message after the end")
			}
		case <-time.After(patience):
			t.Error("expected the channel to be closed")
		}
		if took := time.Since(begin); took < config.DrainTimeout || took > 10*time.Second {
			t.Errorf("expected the handler to get %s and the end to come soon after, but it took %s", config.DrainTimeout, took)
		}
		cancel()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Subscribe(context.Background(), topic); !errors.Is(err, kafka.ErrClosed) {
			t.Errorf("expected a closed subscriber to say ErrClosed, but got %v", err)
		}
	}
}

func TestCloseWaitsForTheMessageInHand(t *testing.T) { onBoth(t, testCloseWaitsForTheMessageInHand) }

func testCloseWaitsForTheMessageInHand(t *testing.T, seeds []string) {
	topic := newTopic(t, seeds, 1)
	group := "group-" + topic
	publish(t, publisher(t, seeds), topic, numbered(0, 3)...)
	s := subscriber(t, kafka.SubscriberConfig{Seeds: seeds, Group: group, DrainTimeout: patience})
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), recordedKey{}, "value"))
	messages, err := s.Subscribe(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	msg := receive(t, messages)
	cancel() // the subscription's end, not the message's
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = s.Close()
	}()
	if msg.Context().Err() != nil {
		t.Error("expected the message in hand to keep its context while the subscriber drains")
	}
	if msg.Context().Value(recordedKey{}) != "value" {
		t.Error("expected the message's context to have the values of the subscription's")
	}
	msg.Ack()
	await(t, "Close to return after the answer", closed)
	if at := committed(t, seeds, group, topic)[0]; at != 1 {
		t.Errorf("expected the answer while draining to count, but the group is at %d", at)
	}
}

type recordedKey struct{}

// While one member drains, another joins: the rebalance must wait for the messages in hand as well.
func TestNobodyGetsWhatAClosingMemberHasInHand(t *testing.T) {
	onBoth(t, testNobodyGetsWhatAClosingMemberHasInHand)
}

func testNobodyGetsWhatAClosingMemberHasInHand(t *testing.T, seeds []string) {
	topic := newTopic(t, seeds, 2)
	group := "group-" + topic
	publish(t, publisher(t, seeds), topic, spread(numbered(0, 50))...)
	config := kafka.SubscriberConfig{Seeds: seeds, Group: group, DrainTimeout: patience}
	first, second := subscriber(t, config), subscriber(t, config)
	ctx, cancel := context.WithCancel(context.Background())
	firstMessages, err := first.Subscribe(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	held := []*message.Message{receive(t, firstMessages), receive(t, firstMessages)}
	cancel()
	secondMessages := subscribe(t, second, topic)
	select {
	case msg := <-secondMessages:
		t.Errorf("expected nothing while both partitions have a message in hand, but got %s", msg.Payload)
		msg.Nack()
	case <-time.After(500 * time.Millisecond): // several times what the rebalance takes
	}
	for _, msg := range held {
		if msg.Context().Err() != nil {
			t.Error("expected the messages in hand to stay alive")
		}
		msg.Ack()
	}
	got := append(receiveAcked(t, secondMessages, 48), string(held[0].Payload), string(held[1].Payload))
	slices.Sort(got)
	if got = slices.Compact(got); len(got) != 50 {
		t.Errorf("expected the second member to go on where the first stopped, but together they had %d of 50 messages", len(got))
	}
}

func TestWithoutGroupFromLatest(t *testing.T) { onBoth(t, testWithoutGroupFromLatest) }

func testWithoutGroupFromLatest(t *testing.T, seeds []string) {
	topic := newTopic(t, seeds, 3)
	pub := publisher(t, seeds)
	publish(t, pub, topic, numbered(0, 50)...)
	s := subscriber(t, kafka.SubscriberConfig{Seeds: seeds, StartAt: kafka.Latest})
	messages := subscribe(t, s, topic)
	publish(t, pub, topic, numbered(50, 60)...) // at once: none of these may be missed
	got := receiveAcked(t, messages, 10)
	slices.Sort(got)
	if want := strings.Fields("50 51 52 53 54 55 56 57 58 59"); !slices.Equal(got, want) {
		t.Errorf("expected only %v, but got %v", want, got)
	}
	if _, err := s.Subscribe(t.Context(), "no-such-topic-"+topic); err == nil || !strings.Contains(err.Error(), "create the topic first") {
		t.Errorf("expected an error that says to create the topic, but got %v", err)
	}
}

func TestGroupFromLatestBeginsAtTheEnd(t *testing.T) { onBoth(t, testGroupFromLatestBeginsAtTheEnd) }

func testGroupFromLatestBeginsAtTheEnd(t *testing.T, seeds []string) {
	topic := newTopic(t, seeds, 1)
	group := "group-" + topic
	pub := publisher(t, seeds)
	publish(t, pub, topic, numbered(0, 5)...)
	messages := subscribe(t, subscriber(t, kafka.SubscriberConfig{Seeds: seeds, Group: group, StartAt: kafka.Latest}), topic)
	// When the group has found its place is not known, so publish until something arrives.
	for i := 5; ; i++ {
		publish(t, pub, topic, newMessage(fmt.Sprint(i)))
		select {
		case msg := <-messages:
			if slices.Contains(strings.Fields("0 1 2 3 4"), string(msg.Payload)) {
				t.Errorf("expected nothing from before the subscription, but got %s", msg.Payload)
			}
			msg.Ack()
			return
		case <-time.After(20 * time.Millisecond):
			if i == 1000 {
				t.Fatal("expected a message, but none came")
			}
		}
	}
}

func TestSubscribeInitialize(t *testing.T) { onBoth(t, testSubscribeInitialize) }

func testSubscribeInitialize(t *testing.T, seeds []string) {
	topic := newTopic(t, seeds, 3)
	if n := partitions(t, seeds, topic); n != 3 {
		t.Errorf("expected 3 partitions, but there are %d", n)
	}
	if err := subscriber(t, kafka.SubscriberConfig{Seeds: seeds, Partitions: 7}).SubscribeInitialize(topic); err != nil {
		t.Errorf("expected an existing topic to be left as it is, but: %v", err)
	}
	s := subscriber(t, kafka.SubscriberConfig{Seeds: []string{"127.0.0.1:1"}, InitializeTimeout: 50 * time.Millisecond})
	if err := s.SubscribeInitialize(topic); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), topic) {
		t.Errorf("expected a deadline and the topic's name without a broker, but got %v", err)
	}
}

func TestConfigFaultsAreReportedTogether(t *testing.T) {
	_, err := kafka.NewSubscriber(kafka.SubscriberConfig{StartAt: 9, NackResendSleep: -1, BufferBytes: -1, Partitions: -1, InitializeTimeout: -1})
	for _, word := range []string{"Seeds", "StartAt", "NackResendSleep", "BufferBytes", "Partitions", "InitializeTimeout"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("expected an error about %s, but got %v", word, err)
		}
	}
	if _, err := kafka.NewPublisher(kafka.PublisherConfig{}); err == nil {
		t.Error("expected a publisher without brokers to be refused")
	}
	if _, err := kafka.NewPublisher(kafka.PublisherConfig{Seeds: []string{"a:1"}, Client: new(kgo.Client), Opts: quick}); err == nil || !strings.Contains(err.Error(), "Opts") {
		t.Errorf("expected both faults, but got %v", err)
	}
}

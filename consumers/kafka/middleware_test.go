package kafka_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/opstream/opstream/consumers/kafka"
)

func TestCorrelation(t *testing.T) {
	own := newMessage("own")
	own.Metadata.Set(kafka.MetadataCorrelationID, "own")
	var seen string
	handler := kafka.Correlation(func(msg *message.Message) ([]*message.Message, error) {
		seen = kafka.CorrelationIDOf(msg.Context())
		return []*message.Message{newMessage("a"), own, {UUID: "without metadata"}}, nil
	})

	msg := newMessage("in")
	msg.Metadata.Set(kafka.MetadataCorrelationID, "c1")
	produced, err := handler(msg)
	if err != nil || seen != "c1" {
		t.Errorf("expected c1 in the context, but got %q, %v", seen, err)
	}
	for i, want := range []string{"c1", "own", "c1"} {
		if got := produced[i].Metadata.Get(kafka.MetadataCorrelationID); got != want {
			t.Errorf("expected produced message %d to have %q, but it has %q", i, want, got)
		}
	}

	produced, _ = handler(newMessage("without"))
	if _, marked := produced[0].Metadata[kafka.MetadataCorrelationID]; marked || seen != "" {
		t.Errorf("expected no id from a message without one, but got %q and %v", seen, produced[0].Metadata)
	}
}

func TestTimeoutTellsALimitFromAStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var cause error
		waits := kafka.Timeout(time.Minute)(func(msg *message.Message) ([]*message.Message, error) {
			<-msg.Context().Done()
			cause = context.Cause(msg.Context())
			return nil, msg.Context().Err()
		})
		var limit *kafka.TimeLimitError

		msg := newMessage("slow")
		begin := time.Now()
		_, err := waits(msg)
		if !errors.As(err, &limit) || limit.Limit != time.Minute || !errors.As(cause, &limit) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("expected a time limit as error and cause, but got %v and %v", err, cause)
		}
		if took := time.Since(begin); took != time.Minute {
			t.Errorf("expected the end after a minute, but it came after %s", took)
		}
		if msg.Context().Err() != nil {
			t.Error("expected the message to have its own context back, for a retry")
		}

		ctx, stop := context.WithCancelCause(context.Background())
		msg.SetContext(ctx)
		time.AfterFunc(time.Second, func() { stop(kafka.ErrRevoked) })
		_, err = waits(msg)
		if errors.As(err, new(*kafka.TimeLimitError)) || !errors.Is(cause, kafka.ErrRevoked) {
			t.Errorf("expected a stop with the cause ErrRevoked, but got %v and %v", err, cause)
		}
	})
}

func TestTimeoutLeavesProducedMessagesPublishable(t *testing.T) {
	type key struct{}
	in := newMessage("in")
	produced, err := kafka.Timeout(time.Minute)(func(msg *message.Message) ([]*message.Message, error) {
		ctx := context.WithValue(msg.Context(), key{}, "kept")
		return []*message.Message{message.NewMessageWithContext(ctx, "out", nil), msg}, nil
	})(in)
	if err != nil {
		t.Fatal(err)
	}
	if ctx := produced[0].Context(); ctx.Err() != nil || ctx.Value(key{}) != "kept" {
		t.Errorf("expected a live context with its values, but got %v, %v", ctx.Err(), ctx.Value(key{}))
	}
	if produced[1].Context().Err() != nil {
		t.Error("expected a message that is passed through to stay alive")
	}
}

// recording is a publisher that keeps what it is given.
type recording struct {
	topic    string
	messages []*message.Message
	err      error
}

func (r *recording) Publish(topic string, messages ...*message.Message) error {
	r.topic, r.messages = topic, append(r.messages, messages...)
	return r.err
}

func (r *recording) Close() error { return nil }

// Whole chain, in the order that doc.go recommends, on a broker.
func TestPoisonAfterRetryWithItsPlace(t *testing.T) { onBoth(t, testPoisonAfterRetryWithItsPlace) }

func testPoisonAfterRetryWithItsPlace(t *testing.T, seeds []string) {
	topic, deadTopic := newTopic(t, seeds, 1), newTopic(t, seeds, 1)
	pub := publisher(t, seeds)
	sub := subscriber(t, kafka.SubscriberConfig{Seeds: seeds, Group: "group-" + topic})

	poison, err := kafka.Poison(pub, deadTopic, nil)
	if err != nil {
		t.Fatal(err)
	}
	router, err := message.NewRouter(message.RouterConfig{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	router.AddMiddleware(kafka.Correlation, poison, middleware.Retry{MaxRetries: 2, InitialInterval: time.Millisecond}.Middleware,
		middleware.Recoverer, kafka.Timeout(20*time.Millisecond))
	tries := map[string]*atomic.Int32{"fails": {}, "panics": {}, "hangs": {}, "good": {}}
	handled := make(chan string, 10)
	router.AddConsumerHandler("handler-1", topic, sub, func(msg *message.Message) error {
		payload := string(msg.Payload)
		tries[payload].Add(1)
		msg.Metadata.Set("origin", "spoilt")
		switch payload {
		case "fails":
			return errors.New("cannot")
		case "panics":
			panic("at the disco")
		case "hangs":
			<-msg.Context().Done()
			return msg.Context().Err()
		}
		handled <- payload
		return nil
	})
	running := make(chan error, 1)
	go func() { running <- router.Run(context.WithoutCancel(t.Context())) }()

	sent := []*message.Message{newMessage("fails"), newMessage("panics"), newMessage("hangs"), newMessage("good")}
	for _, msg := range sent {
		msg.Metadata.Set("origin", "kept")
		msg.Metadata.Set(kafka.MetadataPartitionKey, "k")
	}
	publish(t, pub, topic, sent...)
	dead := subscribe(t, subscriber(t, kafka.SubscriberConfig{Seeds: seeds}), deadTopic)
	for i, want := range []message.Metadata{
		{kafka.PoisonReason: "handler_error", kafka.PoisonOffset: "0", kafka.PoisonError: "cannot"},
		{kafka.PoisonReason: "handler_panic", kafka.PoisonOffset: "1"},
		{kafka.PoisonReason: "time_limit", kafka.PoisonOffset: "2"},
	} {
		got := receive(t, dead)
		if got.UUID != sent[i].UUID || string(got.Payload) != string(sent[i].Payload) || tries[string(got.Payload)].Load() != 3 {
			t.Fatalf("expected message %q after 3 tries, but got %q", sent[i].Payload, got.Payload)
		}
		want[kafka.PoisonTopic], want[kafka.PoisonPartition], want[kafka.PoisonHandler], want["origin"] = topic, "0", "handler-1", "kept"
		for name, value := range want {
			if got.Metadata.Get(name) != value {
				t.Errorf("message %q: expected %s=%q, but got %q", got.Payload, name, value, got.Metadata.Get(name))
			}
		}
		if at, _ := kafka.PositionOf(got.Context()); string(at.Key) != "k" {
			t.Errorf("expected the key to be kept, but it is %q", at.Key)
		}
		if text := got.Metadata.Get(kafka.PoisonError); text == "" || len(text) > 4096 {
			t.Errorf("expected an error of at most 4 KiB, but it has %d bytes", len(text))
		}
		got.Ack()
	}
	select {
	case got := <-handled:
		if got != "good" {
			t.Errorf("expected the good message to be handled, but %q was", got)
		}
	case <-time.After(patience):
		t.Error("expected the good message to be handled, but it was not")
	}
	if err := router.Close(); err != nil {
		t.Error(err)
	}
	if err := <-running; err != nil {
		t.Error(err)
	}
}

func TestPoisonKeepsItsHandsOff(t *testing.T) {
	cannot := errors.New("cannot")
	fails := func(*message.Message) ([]*message.Message, error) { return nil, cannot }
	ended, end := context.WithCancel(context.Background())
	end()
	for _, c := range []struct {
		name    string
		ctx     context.Context //nolint:containedctx // a row of the table is one call
		is      func(error) bool
		handler message.HandlerFunc
		publish error
		want    error
		moved   int
	}{
		{"all is well", context.Background(), nil, func(*message.Message) ([]*message.Message, error) { return nil, nil }, nil, nil, 0},
		{"a failure", context.Background(), nil, fails, nil, nil, 1},
		{"a stop is not the message's fault", ended, nil, fails, nil, cannot, 0},
		{"not this error", context.Background(), func(error) bool { return false }, fails, nil, cannot, 0},
		{"the dead-letter topic is away", context.Background(), nil, fails, errors.New("away"), cannot, 1},
	} {
		pub := &recording{err: c.publish}
		poison, err := kafka.Poison(pub, "dead", c.is)
		if err != nil {
			t.Fatal(err)
		}
		msg := newMessage("x")
		msg.SetContext(c.ctx)
		_, err = poison(c.handler)(msg)
		if !errors.Is(err, c.want) || len(pub.messages) != c.moved {
			t.Errorf("%s: expected error %v and %d moved, but got %v and %d", c.name, c.want, c.moved, err, len(pub.messages))
		}
		if c.publish != nil && !strings.Contains(err.Error(), "away") {
			t.Errorf("%s: expected both errors, but got %v", c.name, err)
		}
	}
	if _, err := kafka.Poison(nil, "dead", nil); err == nil {
		t.Error("expected Poison without a publisher to be refused")
	}
	if _, err := kafka.Poison(&recording{}, "", nil); err == nil {
		t.Error("expected Poison without a topic to be refused")
	}
}

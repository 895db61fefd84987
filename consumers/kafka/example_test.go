package kafka_test

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/opstream/opstream/consumers/kafka"
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func ExampleNewSubscriber() {
	broker := must(kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "greetings", "greetings-dead"))) // a Kafka in this process
	defer broker.Close()

	publisher := must(kafka.NewPublisher(kafka.PublisherConfig{Seeds: broker.ListenAddrs()}))
	defer publisher.Close()
	subscriber := must(kafka.NewSubscriber(kafka.SubscriberConfig{Seeds: broker.ListenAddrs(), Group: "greeters"}))

	router := must(message.NewRouter(message.RouterConfig{}, watermill.NopLogger{}))
	poison := must(kafka.Poison(publisher, "greetings-dead", nil))
	router.AddMiddleware(
		kafka.Correlation,
		poison, // outside Retry: sees only what that gave up
		middleware.Retry{MaxRetries: 2, InitialInterval: time.Millisecond}.Middleware,
		middleware.Recoverer,
		kafka.Timeout(time.Second),
	)
	greeted := make(chan struct{})
	router.AddConsumerHandler("greet", "greetings", subscriber, func(msg *message.Message) error {
		at, _ := kafka.PositionOf(msg.Context())
		fmt.Printf("hello %s, from %s/%d at %d, for %s\n", msg.Payload, at.Topic, at.Partition, at.Offset, kafka.CorrelationIDOf(msg.Context()))
		close(greeted)
		return nil
	})

	msg := message.NewMessage(watermill.NewUUID(), message.Payload("world"))
	msg.Metadata.Set(kafka.MetadataCorrelationID, "request-1")
	msg.Metadata.Set(kafka.MetadataPartitionKey, "customer-1")
	if err := publisher.Publish("greetings", msg); err != nil {
		panic(err)
	}

	ended := make(chan error)
	go func() { ended <- router.Run(context.Background()) }()
	<-greeted
	fmt.Println(router.Close(), <-ended)
	// Output:
	// hello world, from greetings/0 at 0, for request-1
	// <nil> <nil>
}

package kafka_test

import (
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	"github.com/opstream/opstream/consumers/kafka"
)

// Watermill's suite leaves out tests by feature, so it runs once for each promise. What runs where:
//
//	                                    groups   one partition   no group   restart
//	TestNoAck, TestPublishSubscribeInOrder          x
//	TestConsumerGroups                   x          x
//	TestNewSubscriberReceivesOldMessages                            x
//	TestReconnect                                                             x
//	all others                           x          x               x
//
// ExactlyOnceDelivery is in none of them: doc.go says why. Restart is in reconnect_test.go.
func TestPubSubGroups(t *testing.T) {
	suite(t, tests.Features{ConsumerGroups: true, Persistent: true}, variant{partitions: 4, grouped: true})
}

func TestPubSubOnePartition(t *testing.T) {
	suite(t, tests.Features{ConsumerGroups: true, Persistent: true, GuaranteedOrder: true, ForceShort: true}, variant{partitions: 1, grouped: true})
}

func TestPubSubOnePartitionSingleSubscriber(t *testing.T) {
	onBoth(t, testPubSubOnePartitionSingleSubscriber)
}

func testPubSubOnePartitionSingleSubscriber(t *testing.T, seeds []string) {
	features := tests.Features{ConsumerGroups: true, Persistent: true, GuaranteedOrder: true, GuaranteedOrderWithSingleSubscriber: true}
	v := variant{partitions: 1, grouped: true}
	tests.TestPublishSubscribeInOrder(t, tests.TestContext{TestID: tests.NewTestID(), Features: features}, v.constructor(seeds))
}

func TestPubSubWithoutGroup(t *testing.T) {
	suite(t, tests.Features{Persistent: true, NewSubscriberReceivesOldMessages: true, ForceShort: true}, variant{partitions: 4})
}

type variant struct {
	partitions int32
	grouped    bool
}

func suite(t *testing.T, features tests.Features, v variant) {
	t.Helper()
	onBoth(t, func(t *testing.T, seeds []string) {
		tests.TestPubSub(t, features, v.constructor(seeds), func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
			return v.pubSub(t, seeds, group)
		})
	})
}

// constructor gives every test a group of its own: members of one group disturb each other even if they read other topics.
func (v variant) constructor(seeds []string) tests.PubSubConstructor {
	run := watermill.NewShortUUID() // a real broker remembers the groups of the last run
	return func(t *testing.T) (message.Publisher, message.Subscriber) {
		if !v.grouped {
			return v.pubSub(t, seeds, "")
		}
		return v.pubSub(t, seeds, "group-"+run+"-"+strings.ReplaceAll(t.Name(), "/", "-"))
	}
}

func (v variant) pubSub(t *testing.T, seeds []string, group string) (message.Publisher, message.Subscriber) {
	return publisher(t, seeds), subscriber(t, kafka.SubscriberConfig{
		Seeds:        seeds,
		Group:        group,
		Partitions:   v.partitions,
		DrainTimeout: time.Second,
	})
}

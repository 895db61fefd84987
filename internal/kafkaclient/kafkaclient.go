// Package kafkaclient makes Kafka clients that can be closed whatever their brokers do.
//
// To close a client of franz-go takes answers: a member of a group tells its coordinator that it leaves, and a consumer gives back its
// fetch sessions; both wait behind whatever else is under way on the connection, also behind a connection that is being made. A
// broker that takes connections and answers nothing holds that up for as long as it likes. What ends all waits of a client at once is
// the end of its context ([kgo.WithContext]), which is what a Client here has of its own.
package kafkaclient

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Client is a client of franz-go whose Close ends.
type Client struct {
	*kgo.Client
	abandon context.CancelFunc
}

// CloseLimit is how long [Client.Close] waits for brokers: for what is nice to tell them, and is not needed.
const CloseLimit = time.Second

// New is kgo.NewClient. The context of the client is its own.
func New(opts ...kgo.Opt) (*Client, error) {
	// detached: it lives until Close
	return Within(context.Background(), opts...)
}

// Within is New for a client that is of no use when ctx has ended: then all that it waits for ends. To give ctx to its requests is not
// enough, since one that waits for a connection to be made does not look at it.
func Within(ctx context.Context, opts ...kgo.Opt) (*Client, error) {
	ctx, abandon := context.WithCancel(ctx)
	client, err := kgo.NewClient(append(opts[:len(opts):len(opts)], kgo.WithContext(ctx))...)
	if err != nil {
		abandon()
		return nil, err
	}
	return &Client{client, abandon}, nil
}

// Abandon ends all that the client waits for. Nothing can be asked of it any more; it must still be closed.
func (c *Client) Abandon() { c.abandon() }

// Close is kgo's, within little more than CloseLimit. A member that wants its group to know that it leaves calls LeaveGroupContext before,
// with a limit of its own.
func (c *Client) Close() {
	timer := time.AfterFunc(CloseLimit, c.abandon)
	c.Client.Close()
	timer.Stop()
	c.abandon()
}

// CloseAllowingRebalance is Close for a member that blocks rebalances while it works on what it has polled.
func (c *Client) CloseAllowingRebalance() {
	c.AllowRebalance()
	c.Close()
}

// pace is the least time between two polls that bring nothing but errors.
const pace = 100 * time.Millisecond

// Pace waits for a moment after a poll that has brought nothing but errors, or until ctx ends. A client keeps asking for what it may
// not read, at the pace of the broker's answers, and hands on every refusal: who only polls again is busy with nothing else.
func Pace(ctx context.Context, fetches kgo.Fetches) {
	if fetches.NumRecords() > 0 || len(fetches.Errors()) == 0 {
		return
	}
	timer := time.NewTimer(pace)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// Explain adds to an error of the brokers that lasts what is behind it and what to do, where Kafka's own words do not say so.
func Explain(err error) error {
	switch {
	case errors.Is(err, kerr.UnknownTopicID): // a client keeps to the topic that it has met, whatever has that name now
		return fmt.Errorf("if this lasts, the topic was deleted and made anew: start this process again: %w", err)
	case errors.Is(err, kerr.MessageTooLarge):
		return fmt.Errorf("the topic takes less than it should, see max.message.bytes in opstream topics plan: %w", err)
	case errors.Is(err, kerr.InvalidRecord): // which a compacted topic says to records without a key
		return fmt.Errorf("see cleanup.policy in opstream topics plan at once: a topic that is compacted loses what the service needs: %w", err)
	}
	return err
}

package worker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A worker that greets. The part of the scheduler is played by hand: it reads the worker's heartbeat, puts one item into
// its inbox, and reads the report.
func ExampleNew() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var topics schemas.Topics
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, topics.Inboxes(), topics.Sessions(), topics.Reports()))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cluster.Close()

	greet := func(_ context.Context, op *worker.Operation) (any, error) {
		var in struct {
			Name string `json:"name"`
		}
		if err := op.Decode(&in); err != nil {
			return nil, err // final: bad data gets no better
		}
		if in.Name == "" {
			return nil, worker.Suspend(worker.WithCode(errors.New("no name"), "no_name", 0, "Give the contact a name, then resume."))
		}
		return map[string]string{"greeting": "Hello, " + in.Name + "!", "key": op.OperationKey()}, nil
	}
	w, err := worker.New(worker.Config{
		Brokers:    cluster.ListenAddrs(),
		Handlers:   map[string]worker.Handler{"greet": worker.HandlerFunc(greet)},
		Slots:      8,
		TimeLimits: map[string]time.Duration{"greet": 30 * time.Second},
		Logger:     slog.New(slog.DiscardHandler),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()

	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.ConsumeTopics(topics.Sessions(), topics.Reports()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	for reported := false; !reported; {
		client.PollFetches(ctx).EachRecord(func(rec *kgo.Record) {
			switch rec.Topic {
			case topics.Sessions():
				hb, _ := schemas.DecodeHeartbeat(rec)
				if hb.Sequence > 1 {
					return
				}
				q := &operation.Request{ID: "42", Organization: "acme", Type: "greet", Data: []byte(`{"name":"Ada"}`)}
				q.Raw = schemas.AppendRequest(nil, q)
				item := schemas.EncodeItem(topics, &schemas.Item{Session: hb.Session, Place: 1, Low: 1, Org: "acme", ID: "42", Attempt: 1, Request: q})
				client.Produce(ctx, item, nil)
			case topics.Reports():
				c, _ := schemas.DecodeReport(rec)
				fmt.Println(c.Kind, string(c.Result))
				reported = true
			}
		})
	}
	cancel()
	fmt.Println(<-done)
	// Output:
	// succeed {"greeting":"Hello, Ada!","key":"acme/42"}
	// <nil>
}

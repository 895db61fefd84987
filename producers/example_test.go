package producers_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/schemas"
)

func Example() {
	// A Kafka in memory, in place of the real one.
	kafka, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, schemas.Topics{}.Requests()))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer kafka.Close()

	client, err := producers.New(producers.Config{Brokers: kafka.ListenAddrs(), Source: "/crm/core"})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	request := &producers.Request{
		ID:              "case-4711-resolved", // of the CRM's event, so that a second try is the same request
		Organization:    "acme",
		Type:            "workflow",
		DependencyToken: "case-4711", // one after another for this case
		Data:            map[string]string{"case": "4711"},
	}
	if err := client.Request(ctx, request); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("requested")

	if err := client.Cancel(ctx, request.Target(), producers.By{Who: "ann", Reason: "the case was reopened"}); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("asked to cancel")

	err = client.Request(ctx, &producers.Request{Organization: "acme", Type: "workflow"})
	fmt.Println(errors.Is(err, producers.ErrRetry), err)

	if err := client.Close(ctx); err != nil {
		fmt.Println(err)
	}
	// Output:
	// requested
	// asked to cancel
	// false required: id: expected an id from the caller, because it is what makes sending the request twice harmless; take one that is the same at the next try
}

package producers_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/schemas"
)

const partitions = 4

func start(t testing.TB, b *kafkatest.Broker) {
	b.Create(t, b.Topics().Specs(partitions, 1)...)
}

func client(t testing.TB, cfg producers.Config) *producers.Client {
	t.Helper()
	if cfg.Source == "" {
		cfg.Source = "/crm/test"
	}
	c, err := producers.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// read returns the first n records of the topic requests, partition by partition in order.
func read(t testing.TB, b *kafkatest.Broker, n int) []*kgo.Record {
	t.Helper()
	ctx := within(t, 10*time.Second)
	consumer := kafkatest.Client(t, b.Seeds, kgo.ConsumeTopics(b.Topics().Requests()))
	var records []*kgo.Record
	for len(records) < n {
		fetches := consumer.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("expected %d records, but got %d: %v", n, len(records), err)
		}
		records = append(records, fetches.Records()...)
	}
	return records
}

func TestRequestArrivesAsItWasMeant(t *testing.T) { kafkatest.Each(t, testRequestArrivesAsItWasMeant) }

func testRequestArrivesAsItWasMeant(t *testing.T, b *kafkatest.Broker) {
	start(t, b)
	c := client(t, producers.Config{Brokers: b.Seeds, Topics: b.Topics(), Source: "/crm/core"})
	until := time.Date(2030, 1, 31, 8, 0, 0, 0, time.UTC)
	request := &producers.Request{
		ID: "r-1", Organization: "acme", Type: "bulk-delete", Name: "old leads", DependencyToken: "leads",
		OnUpstreamFailure: "block", Priority: new(int8(7)), PostponeUntil: until, TimeLimit: 90 * time.Second,
		Retry: producers.DefaultRetry(), Context: &producers.Context{CorrelationID: "c-1", Depth: 2},
		Data: map[string]any{"query": "old"},
	}
	if err := c.Request(within(t, 10*time.Second), request); err != nil {
		t.Fatal(err)
	}
	rec := read(t, b, 1)[0]
	if want := schemas.PartitionFor([]byte("acme/leads"), partitions); string(rec.Key) != "acme/leads" || rec.Partition != want {
		t.Errorf("expected key acme/leads on partition %d, but got %s on %d", want, rec.Key, rec.Partition)
	}
	for _, h := range rec.Headers {
		if h.Key == schemas.HeaderSource && string(h.Value) != "/crm/core" {
			t.Errorf("expected source /crm/core, but got %s", h.Value)
		}
	}
	cmd, err := schemas.DecodeCommand(rec)
	if err != nil {
		t.Fatal(err)
	}
	q := cmd.Request
	if cmd.Kind != operation.Submit || q.ID != "r-1" || q.Organization != "acme" || q.Type != "bulk-delete" || q.Name != "old leads" ||
		q.DependencyToken != "leads" || q.OnUpstreamFailure != operation.UpstreamBlock || q.Priority != 7 ||
		!q.PostponeUntil.Go().Equal(until) || q.TimeLimit != 90*time.Second || q.Retry.MaxAttempts != 5 ||
		q.Context.CorrelationID != "c-1" || string(q.Data) != `{"query":"old"}` {
		t.Errorf("the request came out differently: %+v", q)
	}
}

func TestCommandsGoWhereTheirOperationIs(t *testing.T) {
	kafkatest.Each(t, testCommandsGoWhereTheirOperationIs)
}

func testCommandsGoWhereTheirOperationIs(t *testing.T, b *kafkatest.Broker) {
	start(t, b)
	c := client(t, producers.Config{Brokers: b.Seeds, Topics: b.Topics()})
	ctx := within(t, 10*time.Second)
	target := (&producers.Request{ID: "r-1", Organization: "acme", DependencyToken: "leads"}).Target()
	by := producers.By{Who: "ann", Reason: "cleaning up", ID: "c-1"}
	until := time.Date(2030, 1, 31, 8, 0, 0, 0, time.UTC)
	for _, give := range []func() error{
		func() error { return c.Cancel(ctx, target, by) },
		func() error { return c.Pause(ctx, target, by) },
		func() error { return c.Resume(ctx, target, by) },
		func() error { return c.Postpone(ctx, target, until, by) },
		func() error { return c.Retry(ctx, target, json.RawMessage(`{"n":1}`), by) },
		func() error { return c.Delete(ctx, target, producers.By{}) },
	} {
		if err := give(); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, rec := range read(t, b, 6) {
		if want := schemas.PartitionFor([]byte("acme/leads"), partitions); rec.Partition != want {
			t.Errorf("expected partition %d, but got %d", want, rec.Partition)
		}
		cmd, err := schemas.DecodeCommand(rec)
		if err != nil {
			t.Fatal(err)
		}
		if cmd.Org != "acme" || cmd.ID != "r-1" {
			t.Errorf("expected a command for acme r-1, but got %s %s", cmd.Org, cmd.ID)
		}
		if cmd.Kind == operation.Delete {
			if cmd.CommandID == "" || cmd.CommandID == "c-1" {
				t.Errorf("expected an id of its own for a command without one, but got %q", cmd.CommandID)
			}
			cmd.CommandID = "?"
		}
		got = append(got, fmt.Sprintf("%s %s %s %q %d %s", cmd.Kind, cmd.CommandID, cmd.By.Who, cmd.By.Reason, cmd.Until, cmd.Data))
	}
	want := []string{
		`cancel c-1 ann "cleaning up" 0 `, `pause c-1 ann "cleaning up" 0 `, `resume c-1 ann "cleaning up" 0 `,
		`postpone c-1 ann "cleaning up" 1896076800000000 `, `retry c-1 ann "cleaning up" 0 {"n":1}`, `delete ?  "" 0 `,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("expected\n%s\nbut got\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
}

// A topic that is kept for a week must not lose a request today because its caller's clock is a month behind. The broker in
// memory takes a record's own date whatever the topic says, and keeps everything.
func TestHowLongARequestIsKeptIsNotItsCallersToSay(t *testing.T) {
	b := kafkatest.OnReal(t, kafkatest.Real(t))
	start(t, b)
	began := time.Now()
	foreign := kafkatest.Client(t, b.Seeds)
	if err := foreign.ProduceSync(within(t, 10*time.Second), &kgo.Record{
		Topic: b.Topics().Requests(), Key: []byte("acme/op"), Value: []byte("{}"), Timestamp: began.AddDate(0, -1, 0),
	}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if at := read(t, b, 1)[0].Timestamp; at.Before(began.Add(-time.Hour)) {
		t.Errorf("expected the broker to date the request when it got it, which is what retention counts from, but it is dated %s", at)
	}
}

// The largest request that is taken arrives, whatever brokers and clients have for limits by default.
func TestTheLargestRequestArrives(t *testing.T) { kafkatest.Each(t, testTheLargestRequestArrives) }

func testTheLargestRequestArrives(t *testing.T, b *kafkatest.Broker) {
	start(t, b)
	c := client(t, producers.Config{Brokers: b.Seeds, Topics: b.Topics()})
	noise := make([]byte, schemas.MaxRequestBytes)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	text := base64.StdEncoding.EncodeToString(noise)[:schemas.MaxRequestBytes-1000] // no compression makes it small
	if err := c.Request(within(t, 30*time.Second), &producers.Request{ID: "large", Organization: "acme", Type: "import", Data: text}); err != nil {
		t.Fatal(err)
	}
	cmd, err := schemas.DecodeCommand(read(t, b, 1)[0])
	if err != nil || len(cmd.Request.Data) != len(text)+2 {
		t.Errorf("expected a request with %d bytes of data, but got %v", len(text)+2, err)
	}
}

// A bulk keeps the order of each key and reports every fault with its place.
func TestRequestAll(t *testing.T) { kafkatest.Each(t, testRequestAll) }

func testRequestAll(t *testing.T, b *kafkatest.Broker) {
	start(t, b)
	c := client(t, producers.Config{Brokers: b.Seeds, Topics: b.Topics(), BufferedMax: 100})
	requests := make([]*producers.Request, 3000)
	for i := range requests {
		requests[i] = &producers.Request{ID: fmt.Sprintf("r-%04d", i), Organization: "acme", Type: "import", DependencyToken: fmt.Sprint(i % 10)}
	}
	requests[17].Organization = ""
	requests[2500].Data = json.RawMessage(`{}},"priority":9`)
	err := c.RequestAll(within(t, 30*time.Second), requests)
	var faults []string
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			item, fault := new(producers.ItemError), new(producers.Error)
			if !errors.As(err, &item) || !errors.As(err, &fault) || !errors.Is(err, producers.ErrGiveUp) || errors.Is(err, producers.ErrRetry) {
				t.Fatalf("expected an item's error that says to give up, but got %v", err)
			}
			faults = append(faults, fmt.Sprintf("%d %s %s %s", item.Index, item.ID, fault.Code, fault.Field))
		}
	}
	if want := "17 r-0017 required organization|2500 r-2500 malformed_json data"; strings.Join(faults, "|") != want {
		t.Errorf("expected the faults %s, but got %s", want, strings.Join(faults, "|"))
	}
	last := make(map[string]string)
	for _, rec := range read(t, b, len(requests)-2) {
		cmd, err := schemas.DecodeCommand(rec)
		if err != nil {
			t.Fatal(err)
		}
		if before := last[cmd.Request.DependencyToken]; before >= string(cmd.ID) {
			t.Fatalf("expected the order of the calls, but %s came before %s", before, cmd.ID)
		}
		last[cmd.Request.DependencyToken] = string(cmd.ID)
	}
}

func TestFaultsAreNamedBeforeAnythingIsSent(t *testing.T) {
	// Nobody listens there: whatever passed would be unknown, not named.
	c := client(t, producers.Config{Brokers: []string{"127.0.0.1:1"}})
	ctx := within(t, 10*time.Second)
	good := producers.Request{ID: "r", Organization: "acme", Type: "import"}
	with := func(change func(*producers.Request)) error {
		r := good
		change(&r)
		return c.Request(ctx, &r)
	}
	target := good.Target()
	for name, give := range map[string]func() error{
		"required id":                     func() error { return with(func(r *producers.Request) { r.ID = "" }) },
		"required organization":           func() error { return with(func(r *producers.Request) { r.Organization = "" }) },
		"invalid_name type":               func() error { return with(func(r *producers.Request) { r.Type = "Bulk Delete" }) },
		"unknown_value onUpstreamFailure": func() error { return with(func(r *producers.Request) { r.OnUpstreamFailure = "ignore" }) },
		"out_of_range priority":           func() error { return with(func(r *producers.Request) { r.Priority = new(int8(10)) }) },
		"malformed_json data":             func() error { return with(func(r *producers.Request) { r.Data = func() {} }) },
		"out_of_range retry.maxAttempts":  func() error { return with(func(r *producers.Request) { r.Retry = new(producers.RetryPolicy) }) },
		"too_large ": func() error {
			return with(func(r *producers.Request) { r.Data = strings.Repeat("x", schemas.MaxRequestBytes) })
		},
		"required until": func() error { return c.Postpone(ctx, target, time.Time{}, producers.By{}) },
		"too_long by.reason": func() error {
			return c.Cancel(ctx, target, producers.By{Reason: strings.Repeat("x", schemas.MaxReason+1)})
		},
	} {
		err := give()
		fault, ok := errors.AsType[*producers.Error](err)
		if !ok || string(fault.Code)+" "+fault.Field != name || !errors.Is(err, producers.ErrGiveUp) {
			t.Errorf("expected %s, but got %v", name, err)
		}
	}
}

func TestTimeEndsWhileTheBrokerIsSilent(t *testing.T) {
	b := kafkatest.Memory(t)
	start(t, b)
	cluster := b.Fake
	arrived, release := make(chan struct{}), make(chan struct{})
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		close(arrived)
		cluster.SleepControl(func() { <-release })
		return nil, nil, false
	})
	c := client(t, producers.Config{Brokers: b.Seeds, Topics: b.Topics(), BufferedMax: 1})
	ctx, cancel := context.WithCancel(t.Context())
	settled := make(chan error, 1)
	go func() {
		settled <- c.Request(ctx, &producers.Request{ID: "r-1", Organization: "acme", Type: "import"})
	}()
	<-arrived

	// There is room for one record only, so this one is not sent at all.
	full, stop := context.WithCancel(t.Context())
	stop()
	err := c.Request(full, &producers.Request{ID: "r-2", Organization: "acme", Type: "import"})
	if !errors.Is(err, producers.ErrRetry) || errors.Is(err, producers.ErrUnknown) {
		t.Errorf("expected an error that says to retry and that nothing was sent, but got %v", err)
	}

	cancel()
	if err := <-settled; !errors.Is(err, producers.ErrUnknown) || !errors.Is(err, producers.ErrRetry) || !errors.Is(err, context.Canceled) {
		t.Errorf("expected an error that says that the outcome is unknown, but got %v", err)
	}
	close(release)
	if rec := read(t, b, 1)[0]; string(rec.Key) != "acme/r-1" {
		t.Errorf("expected the record to arrive nevertheless, but got %s", rec.Key)
	}
}

func TestErrorsOfTheBroker(t *testing.T) {
	for _, test := range []struct {
		code    *kerr.Error
		lost    bool // the broker's answer, when it was asked first
		retry   bool
		unknown bool
	}{
		{kerr.MessageTooLarge, false, false, false},
		{kerr.TopicAuthorizationFailed, false, false, false},
		{kerr.InvalidRecord, false, false, false},
		{kerr.UnknownServerError, false, true, true},
		// The broker may have taken it when it was asked first.
		{kerr.TopicAuthorizationFailed, true, true, true},
		{kerr.MessageTooLarge, true, true, true},
	} {
		t.Run(fmt.Sprintf("%s, lost %t", test.code.Message, test.lost), func(t *testing.T) {
			b := kafkatest.Memory(t)
			start(t, b)
			cluster := b.Fake
			lost := test.lost
			cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
				cluster.KeepControl()
				if lost {
					lost = false
					return nil, errors.New("the connection is cut"), true
				}
				produce := req.(*kmsg.ProduceRequest)
				resp := produce.ResponseKind().(*kmsg.ProduceResponse)
				for _, t := range produce.Topics {
					topic := kmsg.NewProduceResponseTopic()
					topic.Topic, topic.TopicID = t.Topic, t.TopicID
					for _, p := range t.Partitions {
						partition := kmsg.NewProduceResponseTopicPartition()
						partition.Partition, partition.ErrorCode = p.Partition, test.code.Code
						topic.Partitions = append(topic.Partitions, partition)
					}
					resp.Topics = append(resp.Topics, topic)
				}
				return resp, nil, true
			})
			c := client(t, producers.Config{Brokers: b.Seeds, Topics: b.Topics()})
			err := c.Request(within(t, 20*time.Second), &producers.Request{ID: "r-1", Organization: "acme", Type: "import"})
			if err == nil || errors.Is(err, producers.ErrRetry) != test.retry || errors.Is(err, producers.ErrGiveUp) == test.retry ||
				errors.Is(err, producers.ErrUnknown) != test.unknown || !errors.Is(err, test.code) {
				t.Errorf("expected retry %t, unknown %t, but got %v", test.retry, test.unknown, err)
			}
		})
	}
}

func TestCloseSettlesWhatIsUnderWay(t *testing.T) { kafkatest.Each(t, testCloseSettlesWhatIsUnderWay) }

func testCloseSettlesWhatIsUnderWay(t *testing.T, b *kafkatest.Broker) {
	start(t, b)
	c := client(t, producers.Config{Brokers: b.Seeds, Topics: b.Topics()})
	var mu sync.Mutex
	safe := 0
	for i := range 500 {
		c.RequestAsync(t.Context(), &producers.Request{ID: fmt.Sprint("r-", i), Organization: "acme", Type: "import"}, func(err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			safe++
		})
	}
	if err := c.Close(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if safe != 500 {
		t.Errorf("expected 500 records to be safe after Close, but got %d", safe)
	}
	err := c.Request(t.Context(), &producers.Request{ID: "late", Organization: "acme", Type: "import"})
	if fault, ok := errors.AsType[*producers.Error](err); !ok || fault.Code != producers.CodeClosed {
		t.Errorf("expected a closed client to say so, but got %v", err)
	}
}

func TestConfigNamesAllFaults(t *testing.T) {
	_, err := producers.New(producers.Config{DeliveryTimeout: time.Millisecond})
	for _, field := range []string{"Brokers", "Source", "DeliveryTimeout"} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("expected the error to name %s, but got %v", field, err)
		}
	}
}

func BenchmarkRequestAsync(b *testing.B) {
	memory := kafkatest.Memory(b)
	start(b, memory)
	c := client(b, producers.Config{Brokers: memory.Seeds, Topics: memory.Topics()})
	data := json.RawMessage(`{"text":"` + strings.Repeat("x", 240) + `"}`)
	var left sync.WaitGroup
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		left.Add(1)
		c.RequestAsync(b.Context(), &producers.Request{ID: fmt.Sprint(i), Organization: "acme", Type: "import", Data: data}, func(err error) {
			if err != nil {
				b.Error(err)
			}
			left.Done()
		})
	}
	left.Wait()
}

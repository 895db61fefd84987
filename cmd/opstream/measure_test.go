package main

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/schemas"
)

// TestMeasureRecovery prints how long the service takes after deaths of its parts, with its default settings. It only measures, and
// takes minutes: set OPSTREAM_MEASURE=1 to have it.
func TestMeasureRecovery(t *testing.T) {
	if os.Getenv("OPSTREAM_MEASURE") == "" {
		t.Skip("it measures and judges nothing; set OPSTREAM_MEASURE=1 to have its numbers")
	}
	for _, live := range []int{0, 1000, 10_000, 100_000, 1_000_000} {
		t.Run(fmt.Sprintf("dev with %d live operations", live), func(t *testing.T) { measureDev(t, live, 0) })
	}
	for _, events := range []int{1_000_000, 10_000_000} {
		t.Run(fmt.Sprintf("dev after %d events", events), func(t *testing.T) { measureDev(t, 0, events) })
	}
	for _, live := range []int{0, 100_000} {
		t.Run(fmt.Sprintf("scheduler killed with %d live operations", live), func(t *testing.T) { measureScheduler(t, live) })
	}
	for _, lease := range []string{"3s", "15s"} {
		t.Run("worker killed, lease "+lease, func(t *testing.T) { measureWorker(t, lease) })
	}
}

// ends tells of operations that end in the journal from now on, as soon as that can be read.
func (in *installation) ends(ctx context.Context) <-chan operation.ID {
	ended := make(chan operation.ID, 100_000)
	in.t.Helper()
	client := in.reader()
	go func() {
		defer client.Close()
		for ctx.Err() == nil {
			client.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
				if e, err := schemas.DecodeEvent(r); err == nil && e.Kind == operation.Succeeded {
					ended <- e.ID
				}
			})
		}
	}()
	return ended
}

// stream asks for short operations, one every few milliseconds, each in another partition key.
func (in *installation) stream(ctx context.Context, prefix string) {
	for i := 0; ctx.Err() == nil; i++ {
		in.request(&producers.Request{ID: fmt.Sprintf("%s-%d", prefix, i), Organization: "o", Type: "noop"})
		<-after(5 * time.Millisecond)
	}
}

func (in *installation) waiting(n int) {
	for i := range n {
		in.request(&producers.Request{ID: fmt.Sprint("live-", i), Organization: "o", Type: "noop", PostponeUntil: time.Now().Add(time.Hour), Data: map[string]any{"result": "some bytes that an operation might carry with it"}})
	}
	in.requests.Wait()
	eventually(in.t, 10*time.Minute, func() (bool, string) {
		counts, err := in.api.Counts(in.t.Context(), "", api.Call{})
		if err != nil {
			return false, err.Error()
		}
		for _, c := range counts.ByStatus {
			if c.Status == operation.StatusWaiting.String() && c.Count == int64(n) {
				return true, ""
			}
		}
		return n == 0, fmt.Sprintf("%+v", counts.ByStatus)
	})
}

// history has as many operations requested and done as make so many events: four each.
func (in *installation) history(events int) {
	const atOnce = 10_000
	ended := in.ends(in.t.Context())
	for done := 0; done < events/4; done += atOnce {
		for i := range atOnce {
			in.request(&producers.Request{ID: fmt.Sprintf("h-%d", done+i), Organization: "o", Type: "noop"})
		}
		for range atOnce {
			<-ended
		}
	}
}

func measureDev(t *testing.T, live, events int) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	in := devInstallation(t, "--lease", "15s", "--slots", "1024")
	in.waiting(live)
	in.history(events)
	<-after(7 * time.Second) // a checkpoint or two
	ended := in.ends(ctx)
	go in.stream(ctx, "s")
	for range 100 {
		<-ended
	}
	d := in.parts[0]
	for range 3 {
		d.kill()
		at := time.Now()
		drain(ended)
		d.launch()
		<-d.ready
		ready := time.Since(at)
		<-ended
		t.Logf("%d live operations, %d events of history: started after %s, first operation done %s after the kill", live, events, ready.Round(time.Millisecond), time.Since(at).Round(time.Millisecond))
		for range 100 {
			<-ended
		}
	}
}

func drain(c <-chan operation.ID) {
	for {
		select {
		case <-c:
		default:
			return
		}
	}
}

func measureScheduler(t *testing.T, live int) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	in := splitInstallation(t, "--lease", "15s")
	in.waiting(live)
	<-after(8 * time.Second) // both schedulers have their part
	ended := in.ends(ctx)
	go in.stream(ctx, "s")
	for range 200 {
		<-ended
	}
	part := func(id operation.ID) int32 {
		return schemas.PartitionFor([]byte(operation.Key("o", "", "", id)), devPartitions)
	}
	for _, name := range []string{"scheduler-1", "scheduler-2"} {
		d := in.part(name)
		d.kill()
		at := time.Now()
		drain(ended)
		last := map[int32]time.Duration{}
		gap := map[int32]time.Duration{}
		for time.Since(at) < 15*time.Second {
			p := part(<-ended)
			now := time.Since(at)
			gap[p] = max(gap[p], now-last[p])
			last[p] = now
		}
		t.Logf("%s killed: longest silence by partition %v", name, gap)
		d.launch()
		d.up()
		<-after(8 * time.Second)
	}
}

func measureWorker(t *testing.T, lease string) {
	in := splitInstallation(t, "--lease", lease)
	other := daemonOf(t, "worker-2", "serve", "--roles", "worker", "--brokers", in.broker, "--lease", lease)
	other.launch()
	other.up()
	const n = 40
	for i := range n {
		in.request(&producers.Request{ID: fmt.Sprint("long-", i), Organization: "o", Type: "noop", Data: map[string]any{"sleepMs": 60_000}})
	}
	in.requests.Wait()
	in.running(n)
	in.part("worker").kill()
	at := time.Now()
	eventually(t, 60*time.Second, func() (bool, string) {
		counts, err := in.api.Counts(t.Context(), "", api.Call{})
		if err != nil {
			return false, err.Error()
		}
		for _, c := range counts.ByStatus {
			if c.Status == operation.StatusRunning.String() && c.Count < n {
				return true, ""
			}
		}
		return false, fmt.Sprintf("%+v", counts.ByStatus)
	})
	lost := time.Since(at)
	in.running(n)
	t.Logf("lease %s: lost after %s, all run elsewhere after %s (default retry: 1 s after the loss)", lease, lost.Round(10*time.Millisecond), time.Since(at).Round(10*time.Millisecond))
}

package worker

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// feederEnv makes this test binary the other side of the benchmark: broker and scheduler, with that many items out at once.
const feederEnv = "OPSTREAM_WORKER_BENCHMARK_WINDOW"

func TestMain(m *testing.M) {
	if window := os.Getenv(feederEnv); window != "" {
		if err := feed(window); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// feed gives one session an item for each report, until its standard input ends.
func feed(value string) error {
	window, err := strconv.Atoi(value)
	if err != nil {
		return err
	}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		return err
	}
	defer cluster.Close()
	var topics schemas.Topics
	for name, n := range map[string]int32{topics.Inboxes(): 1, topics.Sessions(): 1, topics.Reports(): journalPartitions} {
		if err := cluster.CreateTopic(name, n, nil); err != nil {
			return err
		}
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0),
		kgo.DisableClientMetrics(), kgo.ConsumeTopics(topics.Sessions(), topics.Reports()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends with the parent
		cancel()
	}()
	fmt.Println(cluster.ListenAddrs()[0])

	hb, err := schemas.DecodeHeartbeat(client.PollFetches(ctx).Records()[0])
	if err != nil {
		return err
	}
	q := &operation.Request{ID: "0123456789abcdef0123456789abcdef", Organization: "acme", Type: "test", Priority: operation.PriorityDefault, Data: fmt.Appendf(nil, `{"text":"%0240d"}`, 1)}
	q.Raw = schemas.AppendRequest(nil, q)
	place := operation.Place(0)
	give := func() {
		place += 4
		rec := schemas.EncodeItem(topics, &schemas.Item{
			Session: hb.Session, Partition: int32(place/4) % journalPartitions, Place: place, Low: max(place-4*operation.Place(window), 1),
			Org: q.Organization, ID: q.ID, Attempt: 1, Request: q,
		})
		rec.Partition = hb.Inbox
		client.Produce(ctx, rec, nil)
	}
	for range window {
		give()
	}
	for ctx.Err() == nil {
		client.PollFetches(ctx).EachRecord(func(rec *kgo.Record) {
			if rec.Topic == topics.Reports() {
				give()
			}
		})
	}
	client.Close()
	return nil
}

// BenchmarkWorker is the worker alone, between an item in its inbox and the report on the log: broker and feeder are
// another process, so cpu-µs/op is the worker's own.
func BenchmarkWorker(b *testing.B) {
	for _, window := range []int{1, 32, 96} {
		b.Run(fmt.Sprint("window=", window), func(b *testing.B) { benchmarkWorker(b, window) })
	}
}

func benchmarkWorker(b *testing.B, window int) {
	feeder := exec.Command(os.Args[0])
	feeder.Env = append(os.Environ(), feederEnv+"="+strconv.Itoa(window))
	feeder.Stderr = os.Stderr
	stdin, err := feeder.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := feeder.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := feeder.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		stdin.Close()
		if err := feeder.Wait(); err != nil {
			b.Error(err)
		}
	}()
	seed, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}

	var ran, target atomic.Int64
	target.Store(1000)
	reached := make(chan struct{}, 1)
	w, err := New(Config{
		Brokers: []string{strings.TrimSpace(seed)}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), StopGrace: time.Second,
		Handlers: handlers(func(context.Context, *Operation) (any, error) {
			if ran.Add(1) == target.Load() {
				reached <- struct{}{}
			}
			return nil, nil
		}),
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	<-reached // warm

	b.ReportAllocs()
	b.ResetTimer()
	from, cpu, began := ran.Load(), cpuTime(b), time.Now()
	target.Store(from + int64(b.N) + 1000)
	<-reached
	n := float64(ran.Load() - from)
	b.ReportMetric(n/time.Since(began).Seconds(), "items/s")
	b.ReportMetric(float64(cpuTime(b)-cpu)/float64(time.Microsecond)/n, "cpu-µs/op")
	b.StopTimer()
	if n := w.Counters().Returned.Load(); n > 0 {
		b.Errorf("expected nothing to be given back, but %d were", n)
	}
	stop()
	if err := <-done; err != nil {
		b.Error(err)
	}
}

// cpuTime is what this process has used.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

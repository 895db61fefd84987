package answers

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/kafkaclient"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/schemas"
)

// The scheduler and the broker run in the same process, so this is the whole round trip on their processors, too.
func BenchmarkDo(b *testing.B) {
	for _, concurrency := range []int{1, 256} {
		b.Run(fmt.Sprint("concurrency=", concurrency), func(b *testing.B) {
			w := newWorld(b, kafkatest.Memory(b))
			w.run()
			c, _ := w.open(Config{})
			var n atomic.Int64
			b.ReportAllocs()
			b.SetParallelism(max(1, concurrency/2)) // times GOMAXPROCS
			if concurrency == 1 {
				for b.Loop() {
					cmd, key := submit(fmt.Sprint("op-", n.Add(1)))
					if _, err := c.Do(b.Context(), cmd, key); err != nil {
						b.Fatal(err)
					}
				}
				return
			}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					cmd, key := submit(fmt.Sprint("op-", n.Add(1)))
					if _, err := c.Do(b.Context(), cmd, key); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func BenchmarkBegin(b *testing.B) {
	w := newWorld(b, kafkatest.Memory(b))
	w.run()
	c, _ := w.open(Config{})
	n := 0
	done := make(chan func() error, 4096)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for wait := range done {
			if err := wait(); err != nil {
				b.Error(err)
			}
		}
	}()
	b.ReportAllocs()
	for b.Loop() {
		n++
		cmd, key := submit(fmt.Sprint("op-", n))
		wait := c.Begin(b.Context(), cmd, key)
		done <- func() error {
			_, err := wait()
			return err
		}
	}
	close(done)
	<-finished
}

// history makes n records as they come for operations: with 256 bytes of data in every fourth.
func history(n int) []*kgo.Record {
	var chain schemas.Chain
	raw := []byte(`{"id":"op-1","organization":"acme","type":"import","data":"` + strings.Repeat("x", 256) + `"}`)
	records := make([]*kgo.Record, n)
	for i := range records {
		e := operation.Event{Org: "acme", ID: operation.ID(fmt.Sprint("op-", i/4)), At: operation.TimeOf(time.Unix(1_700_000_000, 0)), Cause: operation.Cause{Topic: "requests", Offset: int64(i / 4)}}
		switch i % 4 {
		case 0:
			e.Kind, e.Request = operation.Requested, &operation.Request{Raw: raw}
		case 1:
			e.Kind, e.Attempt, e.Session = operation.Dispatched, 1, "session-1"
		case 2:
			e.Kind, e.Attempt, e.Session, e.StartedAt = operation.Started, 1, "session-1", e.At
		case 3:
			e.Kind, e.Attempt, e.Session, e.Result = operation.Succeeded, 1, "session-1", []byte(`{"ok":true}`)
		}
		records[i] = schemas.EncodeEvent(&e, []byte("acme/op"), 0)
		chain.Seal(records[i])
		records[i].Offset = int64(i)
	}
	return records
}

// BenchmarkTake is what a record costs in this package: when nobody waits, when somebody waits for an answer, and when
// somebody listens to everything.
func BenchmarkTake(b *testing.B) {
	records := history(10_000)
	for _, how := range []string{"idle", "asked", "watched", "subscribed"} {
		b.Run(how, func(b *testing.B) {
			c := &Client{}
			switch how {
			case "watched":
				c.Watch("acme", "op")
			case "subscribed":
				c.Subscribe(func([]Entry) {})
			}
			i := len(records)
			var p *partition
			b.ReportAllocs()
			for b.Loop() {
				if i >= len(records) {
					i = 0
					p = lonely()
					p.follower = follower{known: true, settled: settledAfter}
					if how == "asked" {
						p.waiting = []*call{{offset: 1 << 40}}
					}
				}
				// A record at a time would hide nothing, but fetches bring about a hundred.
				n := min(100, len(records)-i)
				if err := c.take(p, records[i:i+n]); err != nil {
					b.Fatal(err)
				}
				i += n
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/record")
		})
	}
}

// BenchmarkTail is the same with the Kafka client, which fetches and decodes the batches.
func BenchmarkTail(b *testing.B) {
	w := newWorld(b, kafkatest.Memory(b))
	records := history(100_000)
	for _, rec := range records {
		rec.Topic, rec.Partition = w.topics.Journal(), 0
	}
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		reader, err := kafkaclient.New(kgo.SeedBrokers(w.seeds...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{w.topics.Journal(): {0: kgo.NewOffset().At(0)}}))
		if err != nil {
			b.Fatal(err)
		}
		if records != nil {
			if err := w.client.ProduceSync(b.Context(), records...).FirstErr(); err != nil {
				b.Fatal(err)
			}
			records = nil
		}
		p := lonely()
		p.follower = follower{known: true, settled: settledAfter}
		c := &Client{reader: reader}
		b.StartTimer()
		for left := 100_000; left > 0; {
			reader.PollFetches(b.Context()).EachPartition(func(f kgo.FetchTopicPartition) {
				left -= len(f.Records)
				if err := c.take(p, f.Records); err != nil {
					b.Fatal(err)
				}
			})
		}
		b.StopTimer()
		reader.Close()
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100_000, "ns/record")
}

package projector_test

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/projections/projector"
	"github.com/opstream/opstream/projections/sqlite"
	"github.com/opstream/opstream/schemas"
)

// BenchmarkCatchUp projects a journal from a broker in memory into a file: fetching, the chain, decoding, folding, writing, and
// the broker's share. Run it with -benchtime 100000x; one operation has four events and about 400 bytes of request.
func BenchmarkCatchUp(b *testing.B) {
	topics := schemas.Topics{}
	const partitions = 12
	seeds := kafkatest.Cluster(b, kafkatest.Topic{Name: topics.Journal(), Partitions: partitions})
	client := kafkatest.Client(b, seeds, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MaxBufferedRecords(100_000))
	var chains [partitions]schemas.Chain
	at := operation.Time(1_800_000_000_000_000)
	for i := range b.N {
		n := int32(i % partitions)
		id := operation.ID(fmt.Sprintf("%08x-4000-8000-%012x", uint32(i)*0x9e3779b9, i))
		q := &operation.Request{ID: id, Organization: fmt.Sprint("contoso-", i%50), Type: "workflow", Name: "Send the newsletter", Priority: 4, Data: fmt.Appendf(nil, `{"text":"%0256d"}`, i)}
		q.Raw = schemas.AppendRequest(nil, q)
		e := operation.Event{Org: q.Organization, ID: id, Cause: operation.Cause{Topic: "requests", Offset: int64(i)}}
		for _, kind := range []operation.EventKind{operation.Requested, operation.Dispatched, operation.Started, operation.Succeeded} {
			at++
			e := e
			e.Kind, e.At = kind, at
			if kind == operation.Requested {
				e.Request = q
			} else {
				e.Attempt, e.Session = 1, "7d0d6a52-0f4e-4f0e-9f0e-4f0e9f0e4f0e"
			}
			if kind == operation.Started {
				e.StartedAt = at
			}
			rec := schemas.EncodeEvent(&e, []byte(q.Key()), n)
			rec.Topic, rec.Partition = topics.Journal(), n
			chains[n].Seal(rec)
			client.Produce(b.Context(), rec, func(_ *kgo.Record, err error) {
				if err != nil {
					b.Error(err)
				}
			})
		}
	}
	if err := client.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	store, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "tables.db"), sqlite.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	p, err := projector.New(projector.Config{Store: store, Client: []kgo.Opt{kgo.SeedBrokers(seeds...)}})
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	start, before := time.Now(), used(b)
	done := make(chan error, 1)
	go func() { done <- p.Run(b.Context()) }()
	for n, chain := range chains {
		if chain.Next == 0 {
			continue
		}
		if err := p.WaitFor(b.Context(), int32(n), operation.Place(chain.Next-1)); err != nil {
			b.Fatal(err)
		}
	}
	cpu := used(b) - before
	b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-µs/op")
	b.ReportMetric(4*float64(b.N)/cpu.Seconds(), "events/cpu-s")
	b.ReportMetric(4*float64(b.N)/time.Since(start).Seconds(), "events/s")
}

// used is the processor time of this process.
func used(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

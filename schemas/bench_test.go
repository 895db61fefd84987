package schemas

import (
	"strings"
	"testing"

	"github.com/opstream/opstream/domain/operation"
)

// benchRequest is what the speed budgets are measured with: 256 bytes of payload.
func benchRequest(b testing.TB) *operation.Request {
	return mustRequest(b, `{"id":"0192f3a4-5b6c-7d8e-9f00-112233445566","organization":"contoso","type":"bulk-email","dependencyToken":"account/7","data":{"subject":"`+strings.Repeat("x", 200)+`","ids":[1,2,3,4,5,6,7,8,9,10]}}`)
}

func benchEvents(b testing.TB) map[string]*operation.Event {
	q := benchRequest(b)
	base := operation.Event{Org: "contoso", ID: q.ID, At: now, Cause: operation.Cause{Topic: TopicRequests, Offset: 1_234_567}}
	requested, dispatched, succeeded := base, base, base
	requested.Kind, requested.Request = operation.Requested, q
	dispatched.Kind, dispatched.Attempt, dispatched.Session = operation.Dispatched, 1, "0192f3a4-5b6c-7d8e-9f00-aabbccddeeff"
	succeeded.Kind, succeeded.Attempt, succeeded.Session = operation.Succeeded, 1, dispatched.Session
	succeeded.Result = []byte(`{"sent":10}`)
	return map[string]*operation.Event{"requested": &requested, "dispatched": &dispatched, "succeeded": &succeeded}
}

func BenchmarkParseRequest(b *testing.B) {
	raw := benchRequest(b).Raw
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseRequest(raw, ""); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadRequest(b *testing.B) {
	raw := benchRequest(b).Raw
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ReadRequest(raw); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendRequest(b *testing.B) {
	q := benchRequest(b)
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendRequest(buf[:0], q)
	}
}

func BenchmarkDecodeCommand(b *testing.B) {
	rec := EncodeRequest(topics, benchRequest(b))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeCommand(rec); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeEvent(b *testing.B) {
	key := []byte("contoso/account/7")
	for name, e := range benchEvents(b) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				EncodeEvent(e, key, 3)
			}
		})
	}
}

func BenchmarkDecodeEvent(b *testing.B) {
	for name, e := range benchEvents(b) {
		rec := EncodeEvent(e, []byte("contoso/account/7"), 3)
		new(Chain).Seal(rec)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := DecodeEvent(rec); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSeal(b *testing.B) {
	rec := EncodeEvent(benchEvents(b)["requested"], []byte("contoso/account/7"), 3)
	rec.Headers = rec.Headers[: len(rec.Headers) : len(rec.Headers)+4]
	headers := rec.Headers
	chain := Chain{Next: 1_000_000}
	b.ReportAllocs()
	for b.Loop() {
		rec.Headers = headers
		chain.Seal(rec)
	}
}

func BenchmarkCheck(b *testing.B) {
	for name, e := range benchEvents(b) {
		rec := EncodeEvent(e, []byte("contoso/account/7"), 3)
		new(Chain).Seal(rec)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var chain Chain
				if v, err := chain.Check(rec); v != Valid {
					b.Fatal(err)
				}
			}
		})
	}
}

func benchItem(b testing.TB) *Item {
	q := benchRequest(b)
	return &Item{Session: "0192f3a4-5b6c-7d8e-9f00-aabbccddeeff", Partition: 3, Place: 1_234_567, Low: 1_234_000, Org: "contoso", ID: q.ID, Attempt: 1, Request: q, SentAt: now}
}

func BenchmarkEncodeItem(b *testing.B) {
	it := benchItem(b)
	b.ReportAllocs()
	for b.Loop() {
		EncodeItem(topics, it)
	}
}

func BenchmarkDecodeItem(b *testing.B) {
	rec := EncodeItem(topics, benchItem(b))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := DecodeInbox(rec); err != nil {
			b.Fatal(err)
		}
	}
}

func benchReport() *operation.Command {
	return &operation.Command{Kind: operation.Succeed, Org: "contoso", ID: "0192f3a4-5b6c-7d8e-9f00-112233445566", Attempt: 1, Session: "0192f3a4-5b6c-7d8e-9f00-aabbccddeeff", StartedAt: now, Result: []byte(`{"sent":10}`)}
}

func BenchmarkEncodeReport(b *testing.B) {
	c, key := benchReport(), []byte("contoso/account/7")
	b.ReportAllocs()
	for b.Loop() {
		EncodeReport(topics, c, key)
	}
}

func BenchmarkDecodeReport(b *testing.B) {
	rec := EncodeReport(topics, benchReport(), []byte("contoso/account/7"))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeReport(rec); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPartitionFor(b *testing.B) {
	key := []byte("contoso/account/7")
	for b.Loop() {
		PartitionFor(key, 12)
	}
}

func BenchmarkState(b *testing.B) {
	s := fullState(b)
	rec := EncodeCheckpoint(topics, 1, &Checkpoint{State: s})
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			EncodeCheckpoint(topics, 1, &Checkpoint{State: s})
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := DecodeCheckpoint(rec); err != nil {
				b.Fatal(err)
			}
		}
	})
}

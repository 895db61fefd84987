package webhook

import (
	"context"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"
)

// BenchmarkHandle is a whole call to a server in the same process, so its time is the server's as well.
func BenchmarkHandle(b *testing.B) {
	s := serve(b, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"ok":true}`)
	})
	cfg := open()
	cfg.Secrets = func(context.Context, string, string) ([][]byte, error) { return [][]byte{rawKey}, nil }
	h := newHandler(b, cfg)
	common := []any{"url", s.URL, "payload", map[string]string{"account": "A-17"}}
	for _, c := range []struct {
		name string
		more []any
	}{{"plain", nil}, {"signed", []any{"secretName", "hooks"}}} {
		op := opOf(b, slices.Concat(common, c.more)...)
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			start := time.Now()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := h.Handle(b.Context(), op); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "calls/s")
		})
	}
}

// BenchmarkSender is the handler alone: the answer is made up.
func BenchmarkSender(b *testing.B) {
	cfg := open()
	cfg.Secrets = func(context.Context, string, string) ([][]byte, error) { return [][]byte{rawKey}, nil }
	h := newHandler(b, cfg)
	op := opOf(b, "url", "http://127.0.0.1/hook", "payload", map[string]string{"account": "A-17"}, "secretName", "hooks", "headers", map[string]string{"X-Team": "sales"})
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		var d data
		if err := op.Decode(&d); err != nil {
			b.Fatal(err)
		}
		u, err := h.cfg.check(&d)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := h.request(ctx, op, &d, u); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	now := time.Unix(1764000000, 0)
	body := []byte(`{"account":"A-17"}`)
	header := http.Header{HeaderID: {"contoso/op-1"}, HeaderTimestamp: {"1764000000"}, HeaderSignature: {Sign(rawKey, "contoso/op-1", now, body)}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Verify(header, body, now, 0, rawKey); err != nil {
			b.Fatal(err)
		}
	}
}

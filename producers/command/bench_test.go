package command_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/producers/command"
)

// quick answers at once, so that what is measured is the border itself.
type quick struct{}

func (quick) Do(context.Context, *operation.Command, string) (command.Answer, error) {
	return command.Answer{Partition: 1, Place: 2, Status: operation.StatusReady, Event: operation.Requested}, nil
}

func (q quick) Begin(ctx context.Context, c *operation.Command, key string) func() (command.Answer, error) {
	return func() (command.Answer, error) { return q.Do(ctx, c, key) }
}

func BenchmarkBatch(b *testing.B) {
	server := httptest.NewServer(api.Handler(slog.New(slog.DiscardHandler), command.Routes(command.Config{Journal: quick{}})...))
	defer server.Close()
	var body strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&body, `{"id":"op-%d","organization":"acme","type":"bulk-delete","data":{"text":"%s"}}`+"\n", i, strings.Repeat("x", 256))
	}
	client := &api.Client{Base: server.URL}
	for b.Loop() {
		end, err := client.Batch(b.Context(), io.Reader(strings.NewReader(body.String())), func(api.BatchLine) error { return nil })
		if err != nil || end.Accepted != 10_000 {
			b.Fatalf("expected 10000 accepted, but got %+v, %v", end, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/10_000, "ns/line")
}

func BenchmarkSubmit(b *testing.B) {
	h := api.Handler(slog.New(slog.DiscardHandler), command.Routes(command.Config{Journal: quick{}})...)
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequestWithContext(b.Context(), "POST", "/v1/operations", strings.NewReader(small))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != 202 {
			b.Fatal(w.Body)
		}
	}
}

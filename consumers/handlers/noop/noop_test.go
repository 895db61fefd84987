package noop

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/retry"
)

var _ worker.Handler = Handler{}

// outcome says in a few words what the worker would make of an answer.
func outcome(result any, err error) string {
	if err == nil {
		b, err := json.Marshal(result)
		if err != nil {
			return "unmarshalable"
		}
		return "ok " + string(b)
	}
	class, code := retry.Unknown, ""
	var e *worker.Error
	for at := err; errors.As(at, &e); at = e.Err {
		if class == retry.Unknown {
			class = e.Class
		}
		if code == "" {
			code = e.Code
		}
	}
	return class.String() + " " + code + ": " + err.Error()
}

func TestWhatTheDataAsksFor(t *testing.T) {
	for _, c := range []struct {
		data     string
		failures uint32
		want     string
	}{
		{``, 0, `ok null`},
		{`{}`, 0, `ok null`},
		{`{"result":{"a":[1]}}`, 0, `ok {"a":[1]}`},
		{`{"result":null}`, 0, `ok null`},
		{`{"fail":"broken"}`, 0, `retry noop_failed: broken`},
		{`{"fail":"broken"}`, 100, `retry noop_failed: broken`},
		{`{"fail":""}`, 0, `retry noop_failed: ` + defaultMessage},
		{`{"fail":"broken","class":"fail"}`, 0, `fail noop_failed: broken`},
		{`{"fail":"broken","class":"suspend"}`, 0, `suspend noop_failed: broken`},
		{`{"fail":"broken","class":"retry"}`, 0, `retry noop_failed: broken`},
		{`{"failTimes":2}`, 1, `retry noop_failed: ` + defaultMessage},
		{`{"failTimes":2,"result":7}`, 2, `ok 7`},
		{`{"failTimes":0}`, 0, `ok null`},
		{`{"panic":true,"failTimes":1}`, 1, `ok null`},
		{`{"sleepMs":-1}`, 0, `fail invalid_data: `},
		{`{"sleepMs":86400001}`, 0, `fail invalid_data: `},
		{`{"sleepMs":9223372036854775807}`, 0, `fail invalid_data: `},
		{`{"fail":"x","class":"explode"}`, 0, `fail invalid_data: `},
		{`{"class":"fail"}`, 0, `fail invalid_data: `},
		{`{"class":"fail","panic":true}`, 0, `fail invalid_data: `},
		{`{"failTimes":-1}`, 0, `fail invalid_data: `},
		{`{"sleep":1}`, 0, `fail invalid_data: `},
		{`{} {}`, 0, `fail invalid_data: `},
		{`[]`, 0, `fail invalid_data: `},
	} {
		op := &worker.Operation{ID: "op-1", Failures: c.failures, Data: json.RawMessage(c.data)}
		got := outcome(Handler{}.Handle(t.Context(), op))
		if got != c.want && !(strings.HasSuffix(c.want, ": ") && strings.HasPrefix(got, c.want)) {
			t.Errorf("%s after %d failures:\n got %s\nwant %s", c.data, c.failures, got, c.want)
		}
	}
}

// Whoever tries the service out has real data, and no handlers yet.
func TestStandsInForAnotherHandler(t *testing.T) {
	for _, c := range []struct{ data, want string }{
		{``, `ok null`},
		{`{"to":"all"}`, `ok null`},
		{`[1]`, `ok null`},
		{`"text"`, `ok null`},
		{`{"class":"gold","sleepMs":-1}`, `ok null`},
		{`{"result":7}`, `ok 7`},
		{`{"fail":"broken"}`, `retry noop_failed: broken`},
	} {
		op := &worker.Operation{ID: "op-1", Data: json.RawMessage(c.data)}
		if got := outcome(Handler{StandIn: true}.Handle(t.Context(), op)); got != c.want {
			t.Errorf("%s: expected %s, but got %s", c.data, c.want, got)
		}
	}
}

func TestPanics(t *testing.T) {
	defer func() {
		if got := recover(); got != "as asked" {
			t.Errorf("expected the panic that was asked for, but got %v", got)
		}
	}()
	result, err := Handler{}.Handle(t.Context(), &worker.Operation{Data: json.RawMessage(`{"panic":true,"fail":"as asked"}`)})
	t.Errorf("expected a panic, but got %v, %v", result, err)
}

func TestWaitsForAsLongAsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		got := outcome(Handler{}.Handle(t.Context(), &worker.Operation{Data: json.RawMessage(`{"sleepMs":1500,"result":1}`)}))
		if waited := time.Since(start); waited != 1500*time.Millisecond || got != "ok 1" {
			t.Errorf("expected ok 1 after 1.5s, but got %s after %s", got, waited)
		}
	})
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	for _, cause := range []error{worker.ErrCancelRequested, worker.ErrPauseRequested, worker.ErrTimeLimit, worker.ErrLeaseLost, worker.ErrStopping} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			start := time.Now()
			time.AfterFunc(time.Second, func() { cancel(cause) })
			_, err := Handler{}.Handle(ctx, &worker.Operation{Data: json.RawMessage(`{"sleepMs":60000}`)})
			if waited := time.Since(start); waited != time.Second {
				t.Errorf("%v: expected to be waited for 1s, but it was %s", cause, waited)
			}
			var yield *worker.YieldError
			if pause := cause == worker.ErrPauseRequested; errors.As(err, &yield) != pause || !pause && !errors.Is(err, cause) {
				t.Errorf("%v: got %v", cause, err)
			}
		})
	}
}

func TestNothingCostsNothing(t *testing.T) {
	op := &worker.Operation{ID: "op-1"}
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() { _, _ = Handler{}.Handle(ctx, op) }); n != 0 {
		t.Errorf("expected no allocation without data, but there are %v", n)
	}
}

func BenchmarkNoData(b *testing.B) {
	op, ctx := &worker.Operation{ID: "op-1"}, b.Context()
	b.ReportAllocs()
	for b.Loop() {
		_, _ = Handler{}.Handle(ctx, op)
	}
}

func BenchmarkResult(b *testing.B) {
	op, ctx := &worker.Operation{ID: "op-1", Data: json.RawMessage(`{"result":{"rows":3}}`)}, b.Context()
	b.ReportAllocs()
	for b.Loop() {
		_, _ = Handler{}.Handle(ctx, op)
	}
}

package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/opstream/opstream/consumers/kafka"
	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestSuccess(t *testing.T) {
	onBoth(t, func(t *testing.T, r *rig) {
		w, stop := r.start(Config{Pool: "p", Version: "v1", Handlers: handlers(func(_ context.Context, op *Operation) (any, error) {
			var in struct{ N int }
			if err := op.Decode(&in); err != nil {
				return nil, err
			}
			return map[string]any{"n": in.N + 1, "key": op.IdempotencyKey(), "failures": op.Failures, "checkpoint": op.Checkpoint}, nil
		})})
		defer stop()
		hb := r.beat()
		if hb.Pool != "p" || len(hb.Types) != 1 || hb.Types[0] != "test" || hb.Slots != 64 || hb.Queue != 32 || hb.Lease != 15*time.Second ||
			hb.State != schemas.SessionRunning || hb.Version != "v1" || hb.Sequence != 1 {
			t.Errorf("unexpected heartbeat %+v", hb)
		}
		r.give(hb, r.work(hb, "a", 7, func(it *schemas.Item) {
			it.Attempt, it.Failures, it.Carry = 3, 2, []byte(`{"row":5}`)
			it.Request.DependencyToken = "tok"
		}))
		got := r.expect(`succeed a.3 result={"checkpoint":{"row":5},"failures":2,"key":"acme/a/3","n":2}`)[0]
		if got.partition != 3 || got.key != "acme/tok" || got.StartedAt == 0 || got.Session != hb.Session {
			t.Errorf("expected the report on partition 3 with the operation's key and its start, but got %+v", got)
		}
		r.silence(time.Minute)
		if n := w.Counters().Succeeded.Load(); n != 1 {
			t.Errorf("expected 1 success counted, but got %d", n)
		}
	})
}

// The start of what runs longer than 50 ms is reported ahead, that of the others with the end.
func TestStartIsAnnounced(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		_, stop := r.start(Config{Handlers: handlers(func(_ context.Context, op *Operation) (any, error) {
			pass(map[operation.ID]time.Duration{"short": 40 * time.Millisecond, "long": time.Second}[op.ID])
			return nil, nil
		})})
		defer stop()
		hb := r.beat()
		began := time.Since(r.begin)
		r.give(hb, r.work(hb, "long", 1), r.work(hb, "short", 2))
		got := r.expect("succeed short.1", "start long.1", "succeed long.1")
		if d := got[1].at - began; d < 50*time.Millisecond || d > 60*time.Millisecond {
			t.Errorf("expected the start to be reported after 50 ms, but it was after %s", d)
		}
		if got[1].StartedAt != got[2].StartedAt {
			t.Errorf("expected both reports to tell one start, but got %v and %v", got[1].StartedAt, got[2].StartedAt)
		}
	})
}

func TestOutcomes(t *testing.T) {
	oops := errors.New("oops")
	until := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	cases := []struct {
		name   string
		result any
		err    error
		want   string
	}{
		{"nothing", nil, nil, "succeed"},
		{"raw", raw(`[1, 2]`), nil, `succeed result=[1,2]`},
		{"plain", nil, oops, "fail failure=failed class=retry"},
		{"retry", nil, Retry(oops), "fail failure=failed class=retry"},
		{"final", nil, Final(oops), "fail failure=failed class=fail"},
		{"suspend", nil, Suspend(oops), "fail failure=failed class=suspend"},
		{"code", nil, WithCode(oops, "no_address", 0, "Add an address."), "fail failure=no_address class=retry"},
		{"number", nil, WithCode(oops, "loop", retry.CodeInfiniteLoop, ""), "fail failure=loop class="},
		{"final-outside", nil, Final(fmt.Errorf("while sending: %w", WithCode(oops, "x", 0, ""))), "fail failure=x class=fail"},
		{"final-inside", nil, WithCode(fmt.Errorf("while sending: %w", Final(oops)), "x", 0, ""), "fail failure=x class=fail"},
		{"outside-wins", nil, Suspend(Final(oops)), "fail failure=failed class=suspend"},
		{"yield-until", nil, YieldUntil(until, map[string]int{"row": 3}), `yield checkpoint={"row":3} until=2030-01-02T03:04:05Z`},
		{"yield-for", nil, YieldFor("approved", nil), "yield event=approved"},
		{"yield-never", nil, YieldUntil(time.Date(99999, 1, 1, 0, 0, 0, 0, time.UTC), nil), "yield until=9999-12-31T23:59:59Z"},
		{"canceled", nil, Canceled(nil), "stop"},
		{"canceled-why", nil, Canceled(oops), "stop failure=canceled class=retry"},
		{"no-json", func() {}, nil, "fail failure=invalid_result class=fail"},
		{"bad-raw", raw(`{`), nil, "fail failure=invalid_result class=fail"},
		{"twice-raw", raw(`{"a":1,"a":2}`), nil, "fail failure=invalid_result class=fail"},
		{"half-a-pair-raw", raw(`"\ud800"`), nil, "fail failure=invalid_result class=fail"},
		{"deep-raw", raw(strings.Repeat("[", schemas.MaxDepth+1) + strings.Repeat("]", schemas.MaxDepth+1)), nil, "fail failure=invalid_result class=fail"},
		{"deepest-raw", raw(strings.Repeat("[", schemas.MaxDepth) + strings.Repeat("]", schemas.MaxDepth)), nil, "succeed result=" + strings.Repeat("[", schemas.MaxDepth) + strings.Repeat("]", schemas.MaxDepth)},
		{"yield-twice-raw", nil, YieldFor("", raw(`{"a":1,"a":2}`)), "fail failure=invalid_result class=fail"},
		{"yield-for-anything", nil, YieldFor("a\nb", nil), "fail failure=invalid_result class=fail"},
		{"yield-for-long", nil, YieldFor(strings.Repeat("x", 10_000), nil), "fail failure=invalid_result class=fail"},
		{"large", strings.Repeat("x", schemas.MaxResultBytes), nil, "fail failure=result_too_large class=fail"},
		{"yield-no-json", nil, YieldFor("", func() {}), "fail failure=invalid_result class=fail"},
		{"yield-large", nil, YieldFor("", strings.Repeat("x", schemas.MaxCheckpointBytes)), "fail failure=result_too_large class=fail"},
	}
	onBoth(t, func(t *testing.T, r *rig) {
		_, stop := r.start(Config{Handlers: handlers(func(_ context.Context, op *Operation) (any, error) {
			for _, c := range cases {
				if c.name == string(op.ID) {
					return c.result, c.err
				}
			}
			return nil, nil
		})})
		defer stop()
		hb := r.beat()
		for i, c := range cases {
			r.give(hb, r.work(hb, c.name, operation.Place(i+1)))
			kind, rest, _ := strings.Cut(c.want, " ")
			want := kind + " " + c.name + ".1"
			if rest != "" {
				want += " " + rest
			}
			r.expect(want)
		}
	})
}

func TestPanicIsAFailure(t *testing.T) {
	onBoth(t, func(t *testing.T, r *rig) {
		_, stop := r.start(Config{Slots: 1, Handlers: handlers(func(_ context.Context, op *Operation) (any, error) {
			switch op.ID {
			case "panic":
				panic("boom")
			case "exit":
				runtime.Goexit()
			}
			return nil, nil
		})})
		defer stop()
		hb := r.beat()
		r.give(hb, r.work(hb, "panic", 1))
		got := r.expect("fail panic.1 failure=panic class=retry")[0]
		if m := got.Failure.Message; !strings.Contains(m, "boom") || !strings.Contains(m, "worker_test.go") || len(m) > maxMessage {
			t.Errorf("expected the message to tell the panic and the stack in at most %d bytes, but got %d: %s", maxMessage, len(m), m)
		}
		r.give(hb, r.work(hb, "exit", 2))
		r.expect("fail exit.1 failure=panic class=retry")
		r.give(hb, r.work(hb, "after", 3))
		r.expect("succeed after.1")
	})
}

func TestDuplicates(t *testing.T) {
	onBoth(t, func(t *testing.T, r *rig) {
		release := make(chan struct{})
		var ran atomic.Int64
		w, stop := r.start(Config{Handlers: handlers(func(context.Context, *Operation) (any, error) {
			ran.Add(1)
			<-release
			return "done", nil
		})})
		defer stop()
		hb := r.beat()
		a := r.work(hb, "a", 5)
		r.give(hb, a)
		r.expect("start a.1")
		r.give(hb, a)
		r.expect("start a.1") // it runs: so that the scheduler hears something
		close(release)
		r.expect(`succeed a.1 result="done"`)
		r.give(hb, a, a)
		r.expect(`succeed a.1 result="done"`, `succeed a.1 result="done"`)
		// A later item of the same partition raises the mark: the old one is refused, and nothing is reported.
		r.give(hb, r.work(hb, "b", 9, func(it *schemas.Item) { it.Low = 9 }), a)
		r.expect(`succeed b.1 result="done"`)
		r.silence(10 * time.Second)
		if n, c := ran.Load(), w.Counters(); n != 2 || c.Refused.Load() != 1 || c.Repeated.Load() != 3 {
			t.Errorf("expected 2 runs, 1 refused, 3 repeated, but got %d, %d, %d", n, c.Refused.Load(), c.Repeated.Load())
		}
		// Another partition has its own mark.
		r.give(hb, r.work(hb, "c", 2))
		r.expect(`succeed c.1 result="done"`)
	})
}

// A journal that was made anew begins with places that a living session takes for long ended. Its work is refused, and somebody must hear why.
func TestWhatIsRefusedIsTold(t *testing.T) {
	onBoth(t, func(t *testing.T, r *rig) {
		var log bytes.Buffer
		_, stop := r.start(Config{Logger: slog.New(slog.NewTextHandler(&log, nil)), Handlers: handlers(func(context.Context, *Operation) (any, error) { return nil, nil })})
		hb := r.beat()
		r.give(hb, r.work(hb, "old", 400, func(it *schemas.Item) { it.Low = 400 }))
		r.expect("succeed old.1")
		r.give(hb, r.work(hb, "new", 4), r.work(hb, "last", 404))
		r.expect("succeed last.1")
		stop()
		if !strings.Contains(log.String(), "start this process again") || !strings.Contains(log.String(), "operation_id=new") {
			t.Errorf("expected to hear what was refused and what to do, but got %s", &log)
		}
	})
}

// While a partition takes no reports, schedulers ask again and again for what it lacks, and the client keeps one of each.
func TestReportsOnTheirWayAreNotRepeated(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		w, stop := r.start(Config{Handlers: handlers(func(context.Context, *Operation) (any, error) { return nil, nil })})
		defer stop()
		hb := r.beat()
		fault := r.hold(r.topics.Reports())
		it := r.work(hb, "a", 4)
		r.give(hb, it)
		const times = 20
		for range times {
			pass(2 * time.Second)
			r.give(hb, it)
			r.halt(hb, it, false)
		}
		pass(time.Second)
		if n := w.Counters().Repeated.Load(); n != 2*times {
			t.Fatalf("expected to be asked %d times again, but it was %d", 2*times, n)
		}
		fault.Remove()
		r.expect("succeed a.1")
		r.silence(10 * time.Second)
		r.give(hb, it)
		r.expect("succeed a.1") // it may be asked for when it was there, too
	})
}

// A report that the log has lost is asked for, and when the worker does not know it any more either, the attempt is to be made again: it must
// not be open for ever.
func TestEndThatNobodyKnowsAnyMore(t *testing.T) {
	onBoth(t, func(t *testing.T, r *rig) {
		_, stop := r.start(Config{Slots: 100, Handlers: handlers(func(context.Context, *Operation) (any, error) { return nil, nil })})
		defer stop()
		hb := r.beat()
		first := r.work(hb, "first", 4)
		r.give(hb, first)
		r.expect("succeed first.1")
		for next := 0; next < maxAnswers; {
			var items []*schemas.Item
			for range 64 {
				next++
				items = append(items, r.work(hb, "other", operation.Place(4+next)))
			}
			r.give(hb, items...)
			for range items {
				r.report()
			}
		}
		for {
			r.give(hb, first)
			select {
			case got := <-r.reports:
				if got.String() != "return first.1" {
					t.Errorf("expected the attempt to be given back, but got %q", got)
				}
				return
			case <-time.After(time.Second): // the acknowledgement of the last report was not there yet
			}
			if time.Since(r.begin) > 2*time.Minute {
				t.Fatal("expected an answer for an attempt that has ended, but there is none")
			}
		}
	})
}

func TestOthersInboxIsNotOurs(t *testing.T) {
	onBoth(t, func(t *testing.T, r *rig) {
		_, stop := r.start(Config{Handlers: handlers(func(context.Context, *Operation) (any, error) { return nil, nil })})
		defer stop()
		hb := r.beat()
		r.give(hb, r.work(hb, "other", 1, func(it *schemas.Item) { it.Session = "somebody-else" }), r.work(hb, "mine", 1))
		r.expect("succeed mine.1")
		r.silence(time.Minute)
	})
}

// untilEnd is a handler that runs until its context ends, and then returns what f says.
func untilEnd(f func(op *Operation, cause error) (any, error)) HandlerFunc {
	return func(ctx context.Context, op *Operation) (any, error) {
		<-ctx.Done()
		return f(op, context.Cause(ctx))
	}
}

func TestCancelAndPause(t *testing.T) {
	onBoth(t, func(t *testing.T, r *rig) {
		var cause atomic.Value
		_, stop := r.start(Config{Handlers: handlers(untilEnd(func(op *Operation, err error) (any, error) {
			cause.Store(err)
			switch op.ID {
			case "wins":
				return "anyway", nil
			case "yields":
				return nil, YieldFor("", raw(`{"row":9}`))
			case "final":
				return nil, Final(err)
			case "says-why":
				return nil, Canceled(WithCode(errors.New("rolled back"), "rolled_back", 0, ""))
			}
			return nil, err
		}))})
		defer stop()
		hb := r.beat()
		place := operation.Place(0)
		for _, c := range []struct {
			id    string
			pause bool
			want  string
		}{
			{"c", false, "stop c.1"},
			{"wins", false, `succeed wins.1 result="anyway"`},
			{"yields", false, `stop yields.1 checkpoint={"row":9}`},
			{"final", false, "stop final.1"},
			{"says-why", false, "stop says-why.1 failure=rolled_back class=retry"},
			{"p", true, "yield p.1"},
			{"wins", true, `succeed wins.1 result="anyway"`},
			{"yields", true, `yield yields.1 checkpoint={"row":9}`},
			{"final", true, "yield final.1"},
		} {
			place++
			it := r.work(hb, c.id, place)
			r.give(hb, it)
			r.expect("start " + c.id + ".1")
			r.halt(hb, it, c.pause)
			r.expect(c.want)
			want := ErrCancelRequested
			if c.pause {
				want = ErrPauseRequested
			}
			if got := cause.Load(); got != want {
				t.Errorf("expected the cause %v, but got %v", want, got)
			}
		}
	})
}

// A cancel that comes before its item keeps the item from starting, however late it is.
func TestCancelBeforeTheItem(t *testing.T) {
	onBoth(t, func(t *testing.T, r *rig) {
		_, stop := r.start(Config{Handlers: handlers(func(_ context.Context, op *Operation) (any, error) {
			t.Errorf("expected %s not to run", op.ID)
			return nil, nil
		})})
		defer stop()
		hb := r.beat()
		a, b := r.work(hb, "a", 1), r.work(hb, "b", 2)
		r.halt(hb, a, false)
		r.expect("stop a.1")
		r.give(hb, a)
		r.expect("stop a.1") // the answer again, not a start
		r.halt(hb, b, true)
		r.expect("return b.1") // what is given back while it is pausing is paused
		r.give(hb, b)
		r.expect("return b.1")
	})
}

func TestQueue(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		release := make(chan struct{})
		w, stop := r.start(Config{Slots: 1, Queue: 2, Handlers: handlers(func(_ context.Context, op *Operation) (any, error) {
			if op.ID == "long" {
				<-release
			}
			return nil, nil
		})})
		defer stop()
		hb := r.beat()
		if hb.Slots != 1 || hb.Queue != 2 {
			t.Errorf("expected 1 slot and a queue of 2, but got %d and %d", hb.Slots, hb.Queue)
		}
		r.give(hb, r.work(hb, "first", 1)) // the client's first report waits for the topic's metadata
		r.expect("succeed first.1")
		began := time.Since(r.begin)
		// 1 runs, 5 (= 2*2+1) wait, one is too many.
		items := []*schemas.Item{r.work(hb, "long", 5)}
		for i := range 6 {
			items = append(items, r.work(hb, fmt.Sprint("q", i), operation.Place(10+4*i)))
		}
		r.give(hb, items...)
		if got := r.report(); got.String() != "return q5.1" || got.at-began > time.Millisecond {
			t.Errorf("expected the one too many back at once, but got %s after %s", got, got.at-began)
		}
		r.halt(hb, items[4], false) // q3, canceled in the queue
		r.halt(hb, items[5], true)  // q4, paused there
		r.expect("stop q3.1", "return q4.1", "start long.1")
		if n := w.Counters().Queued.Load(); n != 3 {
			t.Errorf("expected 3 in the queue, but got %d", n)
		}
		for i, got := range r.expect("return q0.1", "return q1.1", "return q2.1") {
			if d := got.at - began; d < 250*time.Millisecond || d > 260*time.Millisecond {
				t.Errorf("expected q%d back after 250 ms, but it was after %s", i, d)
			}
		}
		// What waits for less gets the slot.
		r.give(hb, r.work(hb, "next", 53))
		pass(100 * time.Millisecond)
		close(release)
		r.expect("succeed long.1", "succeed next.1")
		if n := w.Counters().Returned.Load(); n != 4 {
			t.Errorf("expected 4 returned, but got %d", n)
		}
	})
}

func TestTimeLimit(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		_, stop := r.start(Config{
			TimeLimit: time.Minute, TimeLimits: map[string]time.Duration{"test": 2 * time.Second},
			Handlers: map[string]Handler{"test": untilEnd(func(_ *Operation, cause error) (any, error) { return nil, cause }), "other": untilEnd(func(_ *Operation, cause error) (any, error) { return nil, Final(cause) })},
		})
		defer stop()
		hb := r.beat()
		for i, c := range []struct {
			kind  string
			limit time.Duration
			after time.Duration
		}{{"test", 0, 2 * time.Second}, {"other", 0, time.Minute}, {"test", 10 * time.Millisecond, 10 * time.Millisecond}, {"test", 3 * time.Minute, 3 * time.Minute}} {
			id := fmt.Sprint("t", i)
			began := time.Since(r.begin)
			r.give(hb, r.work(hb, id, operation.Place(i+1), func(it *schemas.Item) { it.Request.Type, it.Request.TimeLimit = c.kind, c.limit }))
			if c.after > announceAfter {
				r.expect("start " + id + ".1")
			}
			select {
			case got := <-r.reports:
				if got.String() != "fail "+id+".1 failure=time_limit class=retry" {
					t.Errorf("expected a failure by the time limit, but got %s", got)
				}
				if d := got.at - began; d < c.after || d > c.after+20*time.Millisecond {
					t.Errorf("expected the limit after %s, but it was after %s", c.after, d)
				}
			case <-time.After(5 * time.Minute):
				t.Fatalf("expected an end of %s", id)
			}
		}
	})
}

func TestTimeLimitIsTheDeadline(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		_, stop := r.start(Config{TimeLimit: 7 * time.Second, Handlers: handlers(func(ctx context.Context, _ *Operation) (any, error) {
			d, ok := ctx.Deadline()
			child, cancel := context.WithTimeout(ctx, time.Hour)
			defer cancel()
			<-child.Done() // a child hears of the end, and its cause
			return fmt.Sprint(time.Until(d), ok, context.Cause(child) == ErrTimeLimit), nil
		})})
		defer stop()
		hb := r.beat()
		r.give(hb, r.work(hb, "a", 1))
		r.expect("start a.1", `succeed a.1 result="0s true true"`)
	})
}

// A handler that ignores its context is given up after a grace; it holds its slot until it returns.
func TestStuckHandler(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		release := make(chan struct{})
		w, stop := r.start(Config{Slots: 2, TimeLimit: time.Second, ReturnGrace: 3 * time.Second, Handlers: handlers(func(ctx context.Context, op *Operation) (any, error) {
			if op.ID == "stuck" {
				<-release
				if err := op.Progress(ctx, "late"); err == nil {
					t.Error("expected progress to be refused after the end, but it was taken")
				}
			}
			return nil, nil
		})})
		defer stop()
		hb := r.beat()
		began := time.Since(r.begin)
		stuck := r.work(hb, "stuck", 1)
		r.give(hb, stuck)
		r.expect("start stuck.1")
		got := r.expect("fail stuck.1 failure=time_limit class=retry")[0]
		if d := got.at - began; d < 4*time.Second || d > 4*time.Second+20*time.Millisecond {
			t.Errorf("expected it to be given up after 4 s, but it was after %s", d)
		}
		c := w.Counters()
		if c.Stuck.Load() != 1 || c.Running.Load() != 1 || c.Failed.Load() != 1 {
			t.Errorf("expected 1 stuck, running, failed, but got %d, %d, %d", c.Stuck.Load(), c.Running.Load(), c.Failed.Load())
		}
		r.beatWhere("with one slot less", func(b beat) bool { return b.Slots == 1 })
		r.give(hb, stuck) // a second copy is answered with the end
		r.expect("fail stuck.1 failure=time_limit class=retry")
		close(release)
		r.silence(10 * time.Second)
		if c.Stuck.Load() != 0 || c.Running.Load() != 0 {
			t.Errorf("expected none stuck or running, but got %d, %d", c.Stuck.Load(), c.Running.Load())
		}
		r.beatWhere("with both slots", func(b beat) bool { return b.Slots == 2 })
	})
}

// A worker with nothing but stuck handlers says that it takes nothing.
func TestAllStuckIsDraining(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		release := make(chan struct{})
		_, stop := r.start(Config{Slots: 1, TimeLimit: time.Second, ReturnGrace: time.Second, Handlers: handlers(func(context.Context, *Operation) (any, error) {
			<-release
			return nil, nil
		})})
		defer stop()
		hb := r.beat()
		r.give(hb, r.work(hb, "stuck", 1))
		n := 0
		r.beatWhere("that drains", func(b beat) bool { n++; return b.State == schemas.SessionDraining && b.Slots == 0 })
		if n > 5 {
			t.Errorf("expected about one heartbeat a second until then, but got %d", n)
		}
		close(release)
		r.beatWhere("that runs", func(b beat) bool { return b.State == schemas.SessionRunning && b.Slots == 1 })
	})
}

func TestProgressAndCheckpoint(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		_, stop := r.start(Config{Handlers: handlers(func(ctx context.Context, op *Operation) (any, error) {
			for i := range 100 {
				if err := op.Progress(ctx, i); err != nil {
					t.Error(err)
				}
				pass(7 * time.Millisecond)
			}
			if err := op.SaveCheckpoint(ctx, map[string]int{"row": 100}); err != nil {
				t.Error(err)
			}
			if err := op.Progress(ctx, "nearly"); err != nil {
				t.Error(err)
			}
			if err := op.Progress(ctx, strings.Repeat("x", schemas.MaxProgressBytes)); err == nil {
				t.Error("expected progress that is too large to be refused")
			}
			if err := op.SaveCheckpoint(ctx, nil); err == nil {
				t.Error("expected an empty checkpoint to be refused")
			}
			return nil, nil
		})})
		defer stop()
		hb := r.beat()
		r.give(hb, r.work(hb, "a", 1))
		got := r.expect("progress a.1 progress=0", "progress a.1 progress=28", "progress a.1 progress=57", "progress a.1 progress=85", `progress a.1 progress=99 checkpoint={"row":100}`, `progress a.1 progress="nearly"`, "succeed a.1")
		for i := 2; i < 4; i++ { // the first one waited for the topic's metadata
			if d := got[i].at - got[i-1].at; d < progressEvery {
				t.Errorf("expected reports of progress at least %s apart, but got %s", progressEvery, d)
			}
		}
	})
}

// A checkpoint is durable when SaveCheckpoint returns, and not before.
func TestSaveCheckpointWaits(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		saved := make(chan time.Duration, 2)
		_, stop := r.start(Config{Handlers: handlers(func(ctx context.Context, op *Operation) (any, error) {
			if err := op.SaveCheckpoint(ctx, 1); err != nil {
				t.Error(err)
			}
			saved <- time.Since(r.begin)
			<-ctx.Done()
			// Asked to cancel, it can still save.
			if err := op.SaveCheckpoint(ctx, 2); err != nil {
				t.Error(err)
			}
			short, cancel := context.WithCancel(context.Background())
			cancel()
			if err := op.SaveCheckpoint(short, 3); !errors.Is(err, context.Canceled) {
				t.Errorf("expected the wait to end with the caller's context, but got %v", err)
			}
			return nil, context.Cause(ctx)
		})})
		defer stop()
		hb := r.beat()
		fault := r.hold(r.topics.Reports())
		it := r.work(hb, "a", 1)
		r.give(hb, it)
		pass(3 * time.Second)
		select {
		case at := <-saved:
			t.Errorf("expected SaveCheckpoint to wait for the log, but it returned at %s", at)
		default:
		}
		fault.Remove()
		got := r.expect("progress a.1 checkpoint=1")
		if at := <-saved; at < 3*time.Second {
			t.Errorf("expected it to be saved when the log was back, but it was at %s (reported at %s)", at, got[0].at)
		}
		r.halt(hb, it, false)
		r.expect("progress a.1 checkpoint=2")
		r.report() // 3: on its way, waited for or not
		r.expect("stop a.1")
	})
}

// hold makes the broker refuse, for now, what is produced to a topic.
func (r *rig) hold(topic string) *kfake.FaultHandle {
	return r.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: topic, Err: kerr.NotLeaderForPartition, Count: -1})
}

func TestReportsAreSentUntilTheyAreWritten(t *testing.T) {
	for _, err := range []*kerr.Error{kerr.NotLeaderForPartition, kerr.UnknownServerError, kerr.PolicyViolation} {
		t.Run(err.Message, func(t *testing.T) {
			inRig(t, func(t *testing.T, r *rig) {
				_, stop := r.start(Config{Handlers: handlers(func(context.Context, *Operation) (any, error) { return nil, nil })})
				defer stop()
				hb := r.beat()
				fault := r.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: r.topics.Reports(), Err: err, Count: -1})
				for i := range 20 {
					r.give(hb, r.work(hb, fmt.Sprint("o", i), operation.Place(i+1)))
				}
				pass(5 * time.Second)
				fault.Remove()
				seen := map[operation.ID]bool{}
				for len(seen) < 20 {
					got := r.report()
					seen[got.ID] = true
				}
			})
		})
	}
}

// TestEndsThatAreTooLarge: whichever end it is, the attempt must not stay open for ever.
func TestEndsThatAreTooLarge(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		_, stop := r.start(Config{Handlers: handlers(untilEnd(func(op *Operation, err error) (any, error) {
			if op.ID == "succeeds" {
				return "much", nil
			}
			return nil, YieldFor("", raw(`{"row":9}`))
		}))})
		defer stop()
		hb := r.beat()
		for i, c := range []struct {
			id    string
			pause bool
			want  string
		}{
			{"succeeds", false, "fail succeeds.1 failure=result_too_large class=fail"},
			{"yields", true, "fail yields.1 failure=result_too_large class=fail"},
			{"stops", false, "stop stops.1"},
		} {
			it := r.work(hb, c.id, operation.Place(i+1))
			r.give(hb, it)
			r.expect("start " + c.id + ".1")
			r.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: r.topics.Reports(), Err: kerr.MessageTooLarge, Count: 1})
			r.halt(hb, it, c.pause)
			r.expect(c.want)
		}
	})
}

func TestLeaseLost(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		causes := make(chan error, 10)
		w, stop := r.start(Config{Lease: 3 * time.Second, Handlers: handlers(func(ctx context.Context, op *Operation) (any, error) {
			if op.ID == "free" {
				return nil, nil
			}
			<-ctx.Done()
			causes <- context.Cause(ctx)
			if err := op.SaveCheckpoint(ctx, 1); !errors.Is(err, ErrLeaseLost) {
				t.Errorf("expected a checkpoint to be refused after the lease was lost, but got %v", err)
			}
			return "late", nil
		})})
		defer stop()
		hb := r.beat()
		r.give(hb, r.work(hb, "a", 1))
		r.expect("start a.1")
		fault := r.hold(r.topics.Sessions())
		held := time.Since(r.begin)
		if cause := <-causes; cause != ErrLeaseLost {
			t.Errorf("expected the cause %v, but got %v", ErrLeaseLost, cause)
		}
		if d := time.Since(r.begin) - held; d > 3*time.Second {
			t.Errorf("expected the worker to stop at most 3 s after the last heartbeat, but it was %s", d)
		}
		fault.Remove()
		again := r.beatWhere("of a new session", func(b beat) bool { return b.Session != hb.Session })
		r.give(hb, r.work(hb, "a", 5)) // to the old session: nobody is there
		r.give(again, r.work(again, "free", 9))
		r.expect("succeed free.1") // and nothing of a
		r.silence(10 * time.Second)
		c := w.Counters()
		if c.LeasesLost.Load() < 1 || c.Sessions.Load() < 2 || c.Running.Load() != 0 {
			t.Errorf("expected a lost lease, a second session and nothing running, but got %d, %d, %d", c.LeasesLost.Load(), c.Sessions.Load(), c.Running.Load())
		}
	})
}

// The worker counts its lease from before it sent a heartbeat, so it stops before the scheduler, which counts from when
// it read it, could give its attempts away.
func TestWorkerStopsFirst(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		const lease = 3 * time.Second
		ended := make(chan time.Duration, 1)
		w, stop := r.start(Config{Lease: lease, Handlers: handlers(func(ctx context.Context, _ *Operation) (any, error) {
			<-ctx.Done()
			ended <- time.Since(r.begin)
			return nil, nil
		})})
		defer stop()
		hb := r.beat()
		r.give(hb, r.work(hb, "a", 1))
		r.expect("start a.1")
		// One heartbeat is written, and read, but its first answers get lost; it is acknowledged long after it was sent.
		// What follows is not written.
		var tries atomic.Int64
		produce := []kmsg.Key{kmsg.Produce}
		lost := r.cluster.Fault(kfake.Fault{
			Keys: produce, Topic: r.topics.Sessions(), Err: kerr.NotEnoughReplicasAfterAppend, Count: -1,
			When: func(kmsg.Request) bool { return tries.Add(1) <= 3 },
		})
		defer lost.Remove()
		held := r.cluster.Fault(kfake.Fault{
			Keys: produce, Topic: r.topics.Sessions(), Err: kerr.NotLeaderForPartition, Count: -1,
			When: func(kmsg.Request) bool { return tries.Load() > 4 },
		})
		defer held.Remove()
		written := w.Counters().Heartbeats.Load()
		last := hb
		at := <-ended
		for len(r.beats) > 0 {
			if b := r.beat(); b.Session == hb.Session {
				last = b
			}
		}
		if n := w.Counters().Heartbeats.Load() - written; n != 1 || last.Sequence == hb.Sequence {
			t.Errorf("expected one heartbeat, read and later acknowledged, but %d were, the last one read being %d", n, last.Sequence)
		}
		if at > last.at+lease {
			t.Errorf("expected the handler to end before the scheduler gives up at %s, but it ended at %s", last.at+lease, at)
		}
	})
}

// A handler that ignores the loss of its lease holds a slot of the sessions that follow.
func TestDetachedHandler(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		release := make(chan struct{})
		w, stop := r.start(Config{Slots: 2, Lease: 3 * time.Second, ReturnGrace: 2 * time.Second, Handlers: handlers(func(ctx context.Context, op *Operation) (any, error) {
			switch op.ID {
			case "deaf":
				<-release
			case "long":
				<-ctx.Done()
			}
			return nil, nil
		})})
		defer stop()
		hb := r.beat()
		r.give(hb, r.work(hb, "deaf", 1))
		r.expect("start deaf.1")
		fault := r.hold(r.topics.Sessions())
		pass(4 * time.Second)
		fault.Remove()
		again := r.beatWhere("of a new session", func(b beat) bool { return b.Session != hb.Session })
		if again.Slots != 1 || w.Counters().Stuck.Load() != 1 {
			t.Errorf("expected one slot less and one stuck, but got %d slots, %d stuck", again.Slots, w.Counters().Stuck.Load())
		}
		r.give(again, r.work(again, "long", 1))
		r.expect("start long.1")
		r.give(again, r.work(again, "waits", 5)) // for the one slot, and gets the one that comes free
		pass(100 * time.Millisecond)
		if n := w.Counters().Queued.Load(); n != 1 {
			t.Errorf("expected 1 to wait, but got %d", n)
		}
		close(release)
		r.expect("succeed waits.1")
		r.halt(again, r.work(again, "long", 1), false)
		r.expect("succeed long.1")
		r.beatWhere("with both slots", func(b beat) bool { return b.Slots == 2 })
		r.silence(5 * time.Second)
		if c := w.Counters(); c.Stuck.Load() != 0 || c.Running.Load() != 0 {
			t.Errorf("expected none stuck or running, but got %d, %d", c.Stuck.Load(), c.Running.Load())
		}
	})
}

func TestStop(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		w, stop := r.start(Config{Slots: 2, Queue: 4, StopGrace: 4 * time.Second, Patience: time.Minute, Handlers: handlers(func(ctx context.Context, op *Operation) (any, error) {
			if op.ID == "quick" {
				pass(2 * time.Second)
				return nil, nil
			}
			<-ctx.Done()
			return nil, context.Cause(ctx)
		})})
		hb := r.beat()
		r.give(hb, r.work(hb, "quick", 1), r.work(hb, "slow", 5), r.work(hb, "waits", 9))
		r.expect("start quick.1", "start slow.1")
		took := stop()
		if took < 4*time.Second || took > 5*time.Second {
			t.Errorf("expected the stop to take the grace of 4 s and not much more, but it took %s", took)
		}
		got := r.expect("return waits.1", "succeed quick.1", "return slow.1")
		draining := r.beatWhere("that drains", func(b beat) bool { return b.State == schemas.SessionDraining })
		if d := draining.at - got[0].at; d > 10*time.Millisecond {
			t.Errorf("expected to drain at once, but it was %s after what waits was given back", d)
		}
		end := r.beatWhere("of the end", func(b beat) bool { return b.State == schemas.SessionEnded })
		if end.at < got[2].at || end.Session != hb.Session {
			t.Errorf("expected the end of session %s after the last report at %s, but got that of %s at %s", hb.Session, got[2].at, end.Session, end.at)
		}
		select {
		case b := <-r.beats:
			t.Errorf("expected no heartbeat after the last, but got %+v", b)
		case <-time.After(time.Minute):
		}
		if c := w.Counters(); c.Returned.Load() != 2 || c.Succeeded.Load() != 1 || c.Running.Load() != 0 {
			t.Errorf("expected 2 returned, 1 succeeded, 0 running, but got %d, %d, %d", c.Returned.Load(), c.Succeeded.Load(), c.Running.Load())
		}
	})
}

// An idle worker that is told to stop stays for what schedulers had sent before they heard of it, and gives that back.
func TestStopWaitsForWhatIsUnderWay(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		_, stop := r.start(Config{Slots: 2, Handlers: handlers(func(context.Context, *Operation) (any, error) { return nil, nil })})
		hb := r.beat()
		stopped := make(chan time.Duration)
		go func() { stopped <- stop() }()
		r.beatWhere("that drains", func(b beat) bool { return b.State == schemas.SessionDraining })
		pass(linger / 2)
		r.give(hb, r.work(hb, "late", 1))
		got := r.expect("return late.1")
		end := r.beatWhere("of the end", func(b beat) bool { return b.State == schemas.SessionEnded })
		if end.at < got[0].at {
			t.Errorf("expected the goodbye after the item was given back at %s, but it came at %s", got[0].at, end.at)
		}
		if took := <-stopped; took < linger || took > 2*linger {
			t.Errorf("expected the stop to take the %s that it lingers and not much more, but it took %s", linger, took)
		}
	})
}

// What comes while the worker stops is given back; the worker leaves though a handler does not return.
func TestStopWithADeafHandler(t *testing.T) {
	// In real time: Watermill's router holds a mutex while it closes, and virtual time stands still meanwhile.
	t.Run("memory", func(t *testing.T) { testStopWithADeafHandler(t, newRig(t, nil)) })
	t.Run("kafka", func(t *testing.T) { onReal(t, testStopWithADeafHandler) })
}

func testStopWithADeafHandler(t *testing.T, r *rig) {
	release := make(chan struct{})
	returned := make(chan struct{})
	_, stop := r.start(Config{StopGrace: 300 * time.Millisecond, ReturnGrace: 100 * time.Millisecond, Handlers: handlers(func(context.Context, *Operation) (any, error) {
		<-release
		close(returned)
		return nil, nil
	})})
	hb := r.beat()
	r.give(hb, r.work(hb, "deaf", 1))
	r.expect("start deaf.1")
	stopped := make(chan time.Duration)
	go func() { stopped <- stop() }()
	r.beatWhere("that drains", func(b beat) bool { return b.State == schemas.SessionDraining })
	r.give(hb, r.work(hb, "late", 2))
	r.expect("return late.1")
	if took := <-stopped; took < 400*time.Millisecond || took > 5*time.Second {
		t.Errorf("expected the stop to take 400 ms and not much more, but it took %s", took)
	}
	r.beatWhere("of the end", func(b beat) bool { return b.State == schemas.SessionEnded })
	close(release)
	<-returned
	r.silence(200 * time.Millisecond) // it is not given back: it may still have run
}

func TestStopWithoutABroker(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		_, stop := r.start(Config{Handlers: handlers(func(context.Context, *Operation) (any, error) { return nil, nil })})
		hb := r.beat()
		defer r.hold(r.topics.Reports()).Remove()
		defer r.hold(r.topics.Sessions()).Remove()
		r.give(hb, r.work(hb, "a", 1))
		if took := stop(); took > 11*time.Second {
			t.Errorf("expected to leave within twice FlushLimit, but it took %s", took)
		}
	})
}

// An item that is sent the moment the first heartbeat is read is not lost.
func TestFirstItem(t *testing.T) {
	onBoth(t, func(t *testing.T, r *rig) {
		for i := range 20 {
			_, stop := r.start(Config{Handlers: handlers(func(context.Context, *Operation) (any, error) { return nil, nil })})
			hb := r.beatWhere("of a new session", func(b beat) bool { return b.Sequence == 1 })
			r.give(hb, r.work(hb, fmt.Sprint("o", i), 1))
			r.expect(fmt.Sprintf("succeed o%d.1", i))
			stop()
		}
	})
}

func TestHeartbeatsAreRegular(t *testing.T) {
	inRig(t, func(t *testing.T, r *rig) {
		for lease, every := range map[time.Duration]time.Duration{15 * time.Second: time.Second, 3 * time.Second: 600 * time.Millisecond} {
			_, stop := r.start(Config{Lease: lease, Handlers: handlers(func(context.Context, *Operation) (any, error) { return nil, nil })})
			// The very first one waits for the topic's metadata.
			first := r.beatWhere("of a new session", func(b beat) bool { return b.Sequence == 2 })
			for n := int64(3); n < 20; n++ {
				b := r.beat()
				if d := b.at - first.at - every*time.Duration(n-2); b.Sequence != n || d < -5*time.Millisecond || d > 50*time.Millisecond {
					t.Errorf("lease %s: expected heartbeat %d every %s, but number %d was %s off", lease, n, every, b.Sequence, d)
				}
			}
			stop()
		}
	})
}

func TestMiddleware(t *testing.T) {
	onBoth(t, func(t *testing.T, r *rig) {
		var calls atomic.Int64
		var seen atomic.Value
		note := func(next message.HandlerFunc) message.HandlerFunc {
			return func(msg *message.Message) ([]*message.Message, error) {
				seen.Store(fmt.Sprint(msg.UUID, msg.Metadata, string(msg.Payload), kafka.CorrelationIDOf(msg.Context())))
				return next(msg)
			}
		}
		_, stop := r.start(Config{
			Middleware: []message.HandlerMiddleware{note, middleware.Retry{MaxRetries: 2, InitialInterval: time.Millisecond}.Middleware, middleware.Recoverer},
			Handlers: handlers(func(ctx context.Context, op *Operation) (any, error) {
				if n := calls.Add(1); n < 3 {
					panic(n)
				}
				return kafka.CorrelationIDOf(ctx), nil
			}),
		})
		defer stop()
		hb := r.beat()
		r.give(hb, r.work(hb, "a", 1, func(it *schemas.Item) { it.Request.Context = &operation.Context{CorrelationID: "corr"} }))
		r.expect(`succeed a.1 result="corr"`)
		want := `acme/a/1map[attempt:1 correlation_id:corr operation_id:a organization:acme]{"n":1}corr`
		if got := seen.Load(); got != want {
			t.Errorf("expected the middleware to see %s, but got %s", want, got)
		}
		r.give(hb, r.work(hb, "b", 2))
		r.expect(`succeed b.1 result="b"`)
	})
}

func TestConfig(t *testing.T) {
	_, err := New(Config{Slots: -1, Lease: -1, Handlers: map[string]Handler{"": nil}, TimeLimits: map[string]time.Duration{"x": 0}})
	for _, want := range []string{"Brokers", "type", "nil", "Slots", "Lease", "time limit of type x"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("expected an error that names %q, but got %v", want, err)
		}
	}
}

// A worker whose heartbeats schedulers pass over would wait for work for ever.
func TestHeartbeatsThatSchedulersPassOver(t *testing.T) {
	handler := HandlerFunc(func(context.Context, *Operation) (any, error) { return nil, nil })
	many := map[string]Handler{}
	for i := range 10_001 {
		many[fmt.Sprintf("type-%d", i)] = handler
	}
	for want, cfg := range map[string]Config{
		"1h0m0s": {Lease: 2 * time.Hour},
		"types":  {Handlers: many},
	} {
		cfg.Brokers = []string{"localhost:1"}
		if cfg.Handlers == nil {
			cfg.Handlers = map[string]Handler{"test": handler}
		}
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("expected an error that names %q, but got %v", want, err)
		}
	}
}

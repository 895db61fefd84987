package simulation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/schemas"
)

// behaviour is what a handler does in one attempt.
type behaviour uint8

const (
	succeeds behaviour = iota
	works              // for a while, and heeds its context
	fails
	failsForGood
	suspends
	hangs // heeds nothing for long
	panics
	yieldsUntil
	yieldsForEvent
	saves         // a checkpoint, then works
	obeysLate     // waits for the end of its context, and then says something else
	cancelsItself // wants the operation canceled
)

var behaviourNames = [...]string{
	"succeeds", "works", "fails", "fails for good", "suspends", "hangs", "panics", "yields until", "yields for an event", "saves", "obeys late", "cancels itself",
}

// behave decides by the seed what an attempt does. Later attempts behave better, so that everything ends.
func (p *Plan) behave(org string, id operation.ID, attempt operation.Attempt) (behaviour, time.Duration, int) {
	r := chance(p.Seed, fmt.Sprintf("%s/%s/%d", org, id, attempt))
	span := between(r, time.Millisecond, pick(r, 30*time.Millisecond, 300*time.Millisecond, 4*time.Second))
	die := r.IntN(100)
	if attempt > 6 {
		return succeeds, span, die
	}
	switch {
	case die < 35:
		return succeeds, span, die
	case die < 55:
		return works, span, die
	case die < 65:
		return fails, span, die
	case die < 69:
		return failsForGood, span, die
	case die < 72:
		return suspends, span, die
	case die < 76:
		return hangs, 3 * span, die
	case die < 79:
		return panics, span, die
	case die < 84:
		return yieldsUntil, span, die
	case die < 86:
		return yieldsForEvent, span, die
	case die < 92:
		return saves, span, die
	case die < 98:
		return obeysLate, span, die
	default:
		return cancelsItself, span, die
	}
}

var errNotYet = errors.New("not yet")

// handler makes the handler that one worker process runs.
func (w *world) handler(h *host, clock *clock) worker.Handler {
	return worker.HandlerFunc(func(ctx context.Context, op *worker.Operation) (result any, err error) {
		run := &handlerRun{
			partition: schemas.PartitionFor([]byte(op.Request.Key()), w.plan.Partitions), org: op.Organization, id: op.ID, attempt: op.Attempt,
			host: h, ended: -1, interrupted: -1, data: compact(op.Data),
		}
		kind, span, die := w.plan.behave(op.Organization, op.ID, op.Attempt)
		if w.quiet.Load() {
			kind, span = succeeds, time.Millisecond
		}
		h.mu.Lock()
		dead := h.dead
		h.mu.Unlock()
		if dead {
			return nil, errNotYet // the process is gone; these are instructions that it never came to
		}
		w.history.mu.Lock()
		run.began = w.history.now()
		w.history.runs = append(w.history.runs, run)
		w.history.mu.Unlock()
		w.history.note(h.name, "handler begins %s/%s attempt %d: %s", op.Organization, op.ID, op.Attempt, behaviourNames[kind])
		stop := context.AfterFunc(ctx, func() { w.interrupted(run, context.Cause(ctx)) })
		defer func() {
			p := recover()
			stop()
			if ctx.Err() != nil {
				w.interrupted(run, context.Cause(ctx))
			}
			w.ended(run, err, p)
			if p != nil {
				// invariant: it is the handler's own, and the worker's to deal with
				panic(p)
			}
		}()
		return w.act(ctx, h, clock, op, kind, span, die)
	})
}

func (w *world) interrupted(run *handlerRun, cause error) {
	w.history.mu.Lock()
	first := run.interrupted < 0 && run.ended < 0
	if first {
		run.interrupted, run.cause = w.history.now(), cause
	}
	w.history.mu.Unlock()
	if first {
		w.history.note(run.host.name, "handler of %s/%s attempt %d is interrupted: %v", run.org, run.id, run.attempt, cause)
	}
}

func (w *world) ended(run *handlerRun, err error, p any) {
	w.history.mu.Lock()
	fresh := run.ended < 0
	if fresh {
		run.ended = w.history.now()
	}
	w.history.mu.Unlock()
	if fresh {
		w.history.note(run.host.name, "handler ends %s/%s attempt %d: %v %v", run.org, run.id, run.attempt, err, p)
	}
}

// fallen ends the handlers of a process that is gone.
func (w *world) fallen(h *host) {
	w.history.mu.Lock()
	defer w.history.mu.Unlock()
	now := w.history.now()
	for _, run := range w.history.runs {
		if run.host == h && run.ended < 0 {
			run.ended = now
		}
	}
}

// sleep passes time for a handler; it is false when its context has ended, or its process.
func sleep(ctx context.Context, h *host, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
	case <-h.gone:
	}
	return false
}

// stubborn passes time whatever becomes of the context. Only of a process that ends it lets go in time: a handler that runs while
// the router closes would block goroutines on a mutex, and with that the clock of the bubble.
func stubborn(ctx context.Context, h *host, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return
	case <-h.gone:
		return
	case <-h.stopping:
	}
	select {
	case <-timer.C:
		return
	case <-h.gone:
		return
	case <-ctx.Done():
	}
	if errors.Is(context.Cause(ctx), worker.ErrStopping) {
		sleep(context.WithoutCancel(ctx), h, min(d, returnGrace-time.Millisecond))
	}
}

func (w *world) act(ctx context.Context, h *host, clock *clock, op *worker.Operation, kind behaviour, span time.Duration, die int) (any, error) {
	result := map[string]any{"attempt": op.Attempt}
	switch kind {
	case works:
		if !sleep(ctx, h, span) {
			return nil, context.Cause(ctx)
		}
	case fails:
		sleep(ctx, h, span)
		return nil, worker.WithCode(errNotYet, "not_yet", 0, "")
	case failsForGood:
		return nil, worker.Final(errNotYet)
	case suspends:
		return nil, worker.Suspend(errNotYet)
	case hangs:
		stubborn(ctx, h, span)
	case panics:
		sleep(ctx, h, span)
		// invariant: that is what is tried
		panic("the handler panics")
	case yieldsUntil:
		return nil, worker.YieldUntil(clock.now().Add(span), map[string]any{"yielded": op.Attempt})
	case yieldsForEvent:
		return nil, worker.YieldFor("something", nil)
	case saves:
		for i := range 3 {
			if err := op.SaveCheckpoint(ctx, map[string]any{"at": i}); err != nil {
				return nil, err
			}
			_ = op.Progress(ctx, map[string]any{"percent": 30 * i}) // the next call says the same
			if !sleep(ctx, h, span/3) {
				return nil, context.Cause(ctx)
			}
		}
	case obeysLate:
		if sleep(ctx, h, span+2*time.Second) {
			break
		}
		stubborn(ctx, h, span/4)
		switch die % 4 {
		case 0:
			return result, nil
		case 1:
			return nil, worker.YieldFor("", map[string]any{"late": true})
		case 2:
			return nil, worker.Canceled(errNotYet)
		}
		return nil, context.Cause(ctx)
	case cancelsItself:
		return nil, worker.Canceled(errNotYet)
	case succeeds:
		if span < 100*time.Millisecond {
			sleep(ctx, h, span)
		}
	}
	return result, nil
}

// returnGrace is how long a handler may take to return when its time is up, before it is given up.
const returnGrace = time.Second

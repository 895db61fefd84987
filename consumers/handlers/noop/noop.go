package noop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/retry"
)

// Code is the code of the failures that were asked for.
const Code = "noop_failed"

const (
	maxSleep       = 24 * time.Hour
	defaultMessage = "the operation asked to fail"
)

// Handler does what the operation's data asks for, and nothing without data.
type Handler struct {
	// StandIn is for types whose own handler is not there. Their data is meant for that one: where it is none that this package
	// knows, the operation succeeds. Refused, it would make every operation of the type fail. Default: false.
	StandIn bool
}

type data struct {
	SleepMs   int64           `json:"sleepMs"`
	Fail      *string         `json:"fail"`
	FailTimes *uint32         `json:"failTimes"`
	Class     string          `json:"class"`
	Panic     bool            `json:"panic"`
	Result    json.RawMessage `json:"result"`
}

// Handle waits, then panics, fails or succeeds.
func (h Handler) Handle(ctx context.Context, op *worker.Operation) (any, error) {
	if len(op.Data) == 0 {
		return nil, nil
	}
	// A call of its own, so that what it decodes into costs nothing where there is nothing to decode.
	return h.handle(ctx, op)
}

func (h Handler) handle(ctx context.Context, op *worker.Operation) (any, error) {
	d, class, err := read(op)
	if err != nil {
		if h.StandIn {
			return nil, nil
		}
		return nil, err
	}
	if err := wait(ctx, time.Duration(d.SleepMs)*time.Millisecond); err != nil {
		return nil, err
	}
	if d.wantsFailure() && (d.FailTimes == nil || op.Failures < *d.FailTimes) {
		message := defaultMessage
		if d.Fail != nil && *d.Fail != "" {
			message = *d.Fail
		}
		if d.Panic {
			// invariant: the operation asked for a panic, in order to show how one is reported
			panic(message)
		}
		err := worker.WithCode(errors.New(message), Code, 0, "")
		switch class {
		case retry.Fail:
			return nil, worker.Final(err)
		case retry.Suspend:
			return nil, worker.Suspend(err)
		default:
			return nil, worker.Retry(err)
		}
	}
	if d.Result == nil {
		return nil, nil
	}
	return d.Result, nil
}

func read(op *worker.Operation) (data, retry.Class, error) {
	var d data
	if err := op.Decode(&d); err != nil {
		return d, 0, err
	}
	class, err := d.check()
	if err != nil {
		return d, 0, worker.Final(worker.WithCode(err, worker.CodeInvalidData, 0, ""))
	}
	return d, class, nil
}

func (d *data) wantsFailure() bool { return d.Fail != nil || d.FailTimes != nil || d.Panic }

func (d *data) check() (retry.Class, error) {
	if d.SleepMs < 0 || d.SleepMs > maxSleep.Milliseconds() {
		return 0, fmt.Errorf("expected sleepMs from 0 to %d, but it is %d", maxSleep.Milliseconds(), d.SleepMs)
	}
	class, ok := retry.ParseClass(d.Class)
	if !ok {
		return 0, fmt.Errorf("expected the class fail, retry or suspend, but it is %.40q", d.Class)
	}
	if d.Class != "" && (!d.wantsFailure() || d.Panic) {
		return 0, errors.New("expected fail or failTimes beside class, and no panic, because class says what a failure means")
	}
	return class, nil
}

// wait returns early, with the answer for the worker, when the context ends.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
	}
	cause := context.Cause(ctx)
	if errors.Is(cause, worker.ErrPauseRequested) {
		return worker.YieldFor("", nil)
	}
	return fmt.Errorf("noop: the wait of %s was cut short: %w", d, cause)
}

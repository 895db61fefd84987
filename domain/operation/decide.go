package operation

import (
	"bytes"
	"fmt"

	"github.com/opstream/opstream/domain/optype"
	"github.com/opstream/opstream/domain/retry"
)

// Decide answers c, given at now, to the operation s: it appends the events that follow to out, or returns a rejection.
// Neither means that there is nothing to do, c being a repetition. It changes nothing.
//
// Of the events for one command only Started may come before another one. That makes any prefix legal: the command is
// decided again after a crash, and Started is then already there.
func Decide(out []Event, s *State, c *Command, now Time) ([]Event, *Rejection) {
	e := Event{Org: c.Org, ID: c.ID, At: now, Cause: c.Cause, CommandID: c.CommandID, By: c.By}
	switch {
	case c.Kind == Submit:
		return submit(out, s, c, e)
	case s.Status == StatusAbsent:
		return out, reject(NotFound)
	case s.Status == StatusDeleted:
		if c.Kind == Delete {
			return out, nil
		}
		return out, reject(WasDeleted)
	case c.Kind.Report():
		return report(out, s, c, e)
	}
	switch c.Kind {
	case Cancel, Pause, Resume:
		chained := c.Kind == Cancel && c.Upstream != ""
		if t, ok := optype.ByName(s.Request.Type); ok && t.Restricted && !chained {
			return out, reject(PlatformJob)
		}
	}
	switch c.Kind {
	case Cancel:
		return cancel(out, s, c, e)
	case Pause:
		return pause(out, s, e)
	case Resume:
		return resume(out, s, c, e)
	case Postpone:
		return postpone(out, s, c, e, now)
	case Retry:
		return retryByHand(out, s, c, e)
	case Delete:
		if !s.Status.Terminal() {
			return out, reject(NotCompleted)
		}
		e.Kind = Deleted
		return append(out, e), nil
	case Dispatch:
		if s.Status != StatusReady {
			return out, reject(NotReady)
		}
		e.Kind, e.Attempt, e.Session = Dispatched, s.Attempt+1, c.Session
		return append(out, e), nil
	case Release:
		if s.Holds&HoldDependency == 0 {
			return out, nil
		}
		e.Kind, e.Upstream = Released, c.Upstream
		return append(out, e), nil
	case Block:
		if s.Holds&HoldDependency == 0 || s.BlockedBy == c.Upstream && s.Blocked == (c.Failure != nil) {
			return out, nil
		}
		e.Kind, e.Upstream = Blocked, c.Upstream
		if c.Failure != nil {
			e.Code = UpstreamFailed
		}
		return append(out, e), nil
	case Due:
		if s.Holds&(HoldPostponed|HoldRetry) == 0 || s.Status != StatusWaiting || s.Until > now {
			return out, nil
		}
		e.Kind = BecameDue
		return append(out, e), nil
	case LoseLease:
		return loseLease(out, s, c, e)
	}
	// invariant: every command is in the table, and the matrix test walks all of them.
	panic(fmt.Sprintf("expected a command of the table, but got %d", c.Kind))
}

func submit(out []Event, s *State, c *Command, e Event) ([]Event, *Rejection) {
	if s.Status != StatusAbsent {
		if s.Request != nil && !bytes.Equal(s.Request.Raw, c.Request.Raw) {
			return out, reject(KeyReused)
		}
		return out, nil
	}
	e.Kind, e.Request = Requested, c.Request
	if c.Upstream != "" {
		e.Holds |= HoldDependency
		e.Upstream = c.Upstream
	}
	if c.Request.PostponeUntil > e.At {
		e.Holds |= HoldPostponed
		e.Until = c.Request.PostponeUntil
	}
	return append(out, e), nil
}

// report decides what a worker says of its attempt.
func report(out []Event, s *State, c *Command, e Event) ([]Event, *Rejection) {
	if c.Kind == Start && c.Attempt <= s.StartedAttempt {
		return out, nil // known, so perhaps read before: Started alone does not count as read, see package partition
	}
	if s.Attempt != c.Attempt || s.Session != c.Session {
		return out, reject(StaleAttempt)
	}
	if !s.Status.Locked() {
		if s.Failure != nil && s.Failure.Code == codeLeaseLost {
			return out, reject(LeaseLost)
		}
		return out, nil // the attempt has ended, and this is an echo of its end or of what came before
	}
	e.Attempt, e.Session = c.Attempt, c.Session
	if c.StartedAt != 0 && s.StartedAttempt != c.Attempt {
		started := e
		started.Kind, started.StartedAt = Started, c.StartedAt
		out = append(out, started)
	}
	e.Carry = c.Carry
	switch c.Kind {
	case Start:
		return out, nil
	case Progress:
		e.Kind, e.Progress = Progressed, c.Progress
		return append(out, e), nil
	case Succeed: // wins over a cancel or pause that it did not hear in time
		e.Kind, e.Result = Succeeded, c.Result
		return append(out, e), nil
	case Fail:
		return append(out, failed(s, c, e, AttemptFailed)), nil
	}
	switch s.Status {
	case StatusCanceling:
		e.Kind, e.Failure = Canceled, c.Failure
	case StatusPausing:
		e = paused(s, e)
		if c.Kind == Yield && c.Event != "" {
			e.Holds |= HoldEvent
			e.Event = c.Event
		}
	default:
		switch {
		case c.Kind == Stop:
			e.Kind, e.Failure = Canceled, c.Failure
		case c.Kind == Yield:
			e.Kind, e.Event = Yielded, c.Event
			if c.Event != "" {
				e.Holds |= HoldEvent
			}
			if c.Until > e.At {
				e.Holds |= HoldPostponed
				e.Until = c.Until
			}
		default:
			e.Kind = Returned
		}
	}
	return append(out, e), nil
}

const codeLeaseLost = "lease_lost"

// paused is the end of an attempt that was asked to pause, perhaps in order to be postponed.
func paused(s *State, e Event) Event {
	e.Kind, e.Holds = Paused, HoldPaused
	if s.Until != 0 {
		e.Holds, e.Until = HoldPostponed, s.Until
	}
	return e
}

// failed decides what follows a failed or lost attempt: again is the event for a further attempt.
func failed(s *State, c *Command, e Event, again EventKind) Event {
	e.Failure = c.Failure
	if s.Status == StatusCanceling {
		e.Kind = Canceled
		return e
	}
	var f Failure
	if c.Failure != nil {
		f = *c.Failure
	}
	f.Class = retry.ClassOf(f.Class, f.ErrorCode)
	e.Failure = &f
	switch f.Class {
	case retry.Suspend:
		e.Kind, e.Holds = again, HoldPaused
		return e
	case retry.Again:
		policy := c.Policy
		if s.Request.Retry != nil {
			policy = s.Request.Retry
		}
		if policy == nil {
			policy = &retry.Default
		}
		wait, more := policy.Next(int(s.Failures)+1, retry.Seed(string(s.ID), uint32(s.Attempt)))
		until := e.At.Add(wait)
		if !more || policy.GiveUpAfter > 0 && until > s.Since.Add(policy.GiveUpAfter) {
			break
		}
		e.Kind, e.Holds, e.Until = again, HoldRetry, until
		if s.Status == StatusPausing {
			e.Until = 0 // the pause takes the place of the back-off
			p := paused(s, e)
			e.Holds, e.Until = p.Holds, p.Until
		}
		return e
	}
	e.Kind = Failed
	return e
}

func loseLease(out []Event, s *State, c *Command, e Event) ([]Event, *Rejection) {
	if !s.Open(c.Attempt, c.Session) {
		return out, nil
	}
	e.Attempt, e.Session = c.Attempt, c.Session
	lost := *c
	lost.Failure = &Failure{Code: codeLeaseLost, Message: "nothing was heard of session " + string(c.Session) + " for longer than its lease", Class: retry.Again}
	return append(out, failed(s, &lost, e, LeaseWasLost)), nil
}

func cancel(out []Event, s *State, c *Command, e Event) ([]Event, *Rejection) {
	switch {
	case s.Status == StatusCanceling || s.Status == StatusCanceled:
		return out, nil
	case s.Status.Terminal():
		return out, reject(AlreadyDone)
	case s.Status.Locked():
		e.Kind, e.Attempt, e.Session = CancelRequested, s.Attempt, s.Session
	default:
		e.Kind, e.Upstream = Canceled, c.Upstream
	}
	return append(out, e), nil
}

func pause(out []Event, s *State, e Event) ([]Event, *Rejection) {
	switch {
	case s.Status == StatusPausing && s.Until == 0 || s.Holds&HoldPaused != 0 && s.Status == StatusWaiting:
		return out, nil
	case s.Status == StatusCanceling:
		return out, reject(IsCanceling)
	case s.Status.Terminal():
		return out, reject(AlreadyDone)
	case s.Status.Locked():
		e.Kind, e.Attempt, e.Session = PauseRequested, s.Attempt, s.Session
	default:
		e.Kind, e.Holds, e.Until, e.Event = Paused, s.Holds|HoldPaused, s.Until, s.WaitsFor
	}
	return append(out, e), nil
}

func resume(out []Event, s *State, c *Command, e Event) ([]Event, *Rejection) {
	// A person's word lifts every hold but the order of the chain. Of that only a block is for people to lift, and not
	// even a block while an earlier member of the chain is live: two of one token would run at once.
	ordered := s.Holds&HoldDependency != 0 && (!s.Blocked || c.Upstream != "")
	switch {
	case s.Status.Terminal():
		return out, reject(AlreadyDone)
	case s.Status != StatusWaiting:
		return out, reject(NotSuspended)
	case s.Holds == HoldDependency && ordered:
		return out, reject(WaitsForUpstream)
	}
	e.Kind = Resumed
	if ordered {
		e.Holds = HoldDependency
	}
	return append(out, e), nil
}

func postpone(out []Event, s *State, c *Command, e Event, now Time) ([]Event, *Rejection) {
	switch {
	case s.Status.Terminal():
		return out, reject(AlreadyDone)
	case s.Status == StatusCanceling:
		return out, reject(IsCanceling)
	case c.Until <= now:
		return out, reject(InvalidTime)
	case s.Until == c.Until && (s.Status == StatusPausing || s.Holds&HoldPostponed != 0):
		return out, nil
	}
	e.Until = c.Until
	if s.Status.Locked() {
		e.Kind, e.Attempt, e.Session = PauseRequested, s.Attempt, s.Session
	} else {
		e.Kind, e.Holds = Postponed, s.Holds&^HoldRetry|HoldPostponed
	}
	return append(out, e), nil
}

func retryByHand(out []Event, s *State, c *Command, e Event) ([]Event, *Rejection) {
	if s.Status != StatusFailed {
		return out, reject(NotFailed)
	}
	e.Kind, e.Request = Retried, c.Request
	if c.Upstream != "" {
		e.Holds, e.Upstream = HoldDependency, c.Upstream
	}
	return append(out, e), nil
}

package query

import (
	"fmt"
	"strings"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
)

// Why says in a sentence why an operation does not run, or what it is doing short of running; it is empty when its status
// says all. Everything in it is in the journal.
func Why(s *operation.State) string {
	switch s.Status {
	case operation.StatusReady:
		return fmt.Sprintf("no worker has room for type %s", s.Request.Type)
	case operation.StatusDispatched:
		return fmt.Sprintf("attempt %d was handed to session %s, which has not said that it began", s.Attempt, s.Session)
	case operation.StatusPausing:
		if s.Until != 0 {
			return "was asked to pause" + by(s.By) + " and to go on at " + at(s.Until) + "; its handler has not come to a safe point"
		}
		return "was asked to pause" + by(s.By) + "; its handler has not come to a safe point"
	case operation.StatusCanceling:
		return "was asked to cancel" + by(s.By) + "; its handler has not come to a safe point"
	case operation.StatusWaiting:
	default:
		return ""
	}
	// The strongest hold first, as State.Wait has it; lifting that one leaves the others.
	var parts []string
	if s.Holds&operation.HoldPaused != 0 {
		parts = append(parts, pausedWhy(s))
	}
	if s.Holds&operation.HoldDependency != 0 {
		if s.Blocked {
			parts = append(parts, fmt.Sprintf("operation %s of the same dependency token did not succeed; waits for somebody to resume or cancel this one", s.BlockedBy))
		} else {
			parts = append(parts, fmt.Sprintf("waits for operation %s of the same dependency token", s.BlockedBy))
		}
	}
	if s.Holds&operation.HoldEvent != 0 {
		parts = append(parts, fmt.Sprintf("waits for the event %s", s.WaitsFor))
	}
	if s.Holds&operation.HoldPostponed != 0 {
		parts = append(parts, "waits until "+at(s.Until))
	}
	if s.Holds&operation.HoldRetry != 0 {
		parts = append(parts, "will be retried at "+at(s.Until)+" after: "+message(s.Failure))
	}
	return strings.Join(parts, "; also ")
}

// pausedWhy tells a person's pause from an attempt that failed in a way that only a person can mend. The state keeps the
// last command and the last failure, but not which of them came last: when there are both, both are told.
func pausedWhy(s *operation.State) string {
	failed := s.Failure != nil && s.Failure.Class == retry.Suspend
	switch {
	case !failed:
		return "paused" + by(s.By)
	case s.By == operation.By{}:
		return "waits for somebody to mend why it failed, and to resume it: " + message(s.Failure)
	default:
		return "paused; the last command came" + by(s.By) + ", the last attempt failed: " + message(s.Failure)
	}
}

func by(b operation.By) string {
	text := ""
	if b.Who != "" {
		text = " by " + b.Who
	}
	if b.Reason != "" {
		text += " because " + b.Reason
	}
	return text
}

func at(t operation.Time) string { return t.Go().Format(time.RFC3339) }

// messageMax bounds how much of a failure's message a sentence repeats; the whole is in the field failure.
const messageMax = 200

func message(f *operation.Failure) string {
	if f == nil {
		return "an attempt that failed"
	}
	text := f.Message
	if f.FriendlyMessage != "" {
		text = f.FriendlyMessage
	}
	if text == "" {
		text = f.Code
	}
	// A panic's message has its stack behind it, which is for the handler's team and no part of a sentence.
	text, _, more := strings.Cut(text, "\n")
	if more {
		text += "…"
	}
	if len(text) > messageMax {
		text = strings.ToValidUTF8(text[:messageMax], "") + "…"
	}
	return text
}

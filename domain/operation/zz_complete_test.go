package operation_test

import (
	"fmt"
	"testing"

	"github.com/opstream/opstream/domain/operation"
)

// TestComplete walks all events and codes after the other tests have met them: each event that changes an operation was
// decided and has a case in Apply, each code has a sentence and was given.
func TestComplete(t *testing.T) {
	full := !t.Failed() && len(seen.kinds) > 5 // not when it runs alone
	for kind := operation.EventKind(0); kind.Changes(); kind++ {
		if full && !seen.kinds[kind] {
			t.Errorf("no test decides %s", kind)
		}
		if !changes(kind) {
			t.Errorf("Apply has no case for %s", kind)
		}
	}
	for kind := operation.Deleted + 1; int(kind) < operation.EventKinds; kind++ {
		if changes(kind) {
			t.Errorf("expected %s to change no operation, but it does", kind)
		}
	}
	// Package partition gives Forgotten and Overloaded. Nobody gives NotLocked at present: a report that finds no open attempt is an echo.
	byOthers := map[operation.RejectionCode]bool{operation.Forgotten: true, operation.Overloaded: true, operation.NotLocked: true}
	for code, reason := range operation.Reasons {
		if reason == "" {
			t.Errorf("code %s has no sentence", code)
		}
		if full && !seen.codes[code] && !byOthers[code] {
			t.Errorf("no test is refused with %s", code)
		}
	}
	for code := range seen.codes {
		if operation.Reasons[code] == "" {
			t.Errorf("code %s has no sentence", code)
		}
	}
}

// changes says whether Apply does more to some row than to note when and where the event happened.
func changes(kind operation.EventKind) bool {
	_, states := rows()
	for _, s := range states {
		e := operation.Event{
			Kind: kind, Org: "contoso", ID: "op", At: t0 + 5, Attempt: 9, Session: "w9", StartedAt: t0 + 1, Upstream: "x", Code: "code",
			Holds: operation.HoldPaused, Until: later, Progress: []byte("1"), Carry: []byte("2"), Result: []byte("3"),
			Request: &operation.Request{}, Failure: &operation.Failure{Code: "f"},
		}
		before := s
		s.Apply(&e, 99)
		s.ModifiedAt, s.LastPlace = before.ModifiedAt, before.LastPlace
		if fmt.Sprintf("%+v", s) != fmt.Sprintf("%+v", before) {
			return true
		}
	}
	return false
}

package schemas

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
)

func nested(levels int) string {
	return strings.Repeat("[", levels) + strings.Repeat("]", levels)
}

// What is accepted at the deepest that may be is readable wherever it is kept.
func TestTheDeepestThatIsAcceptedStaysReadable(t *testing.T) {
	request := func(levels int) string {
		return `{"id":"a","organization":"o","type":"noop","data":` + nested(levels) + `}`
	}
	if _, err := ParseRequest([]byte(request(MaxDepth)), ""); err == nil {
		t.Errorf("expected a request of %d levels to be refused, but it was accepted", MaxDepth+1)
	}
	q, err := ParseRequest([]byte(request(MaxDepth-1)), "")
	if err != nil {
		t.Fatal(err)
	}
	value := []byte(nested(MaxDepth))
	if err := CheckJSON(value, 1000); err != nil {
		t.Fatal(err)
	}
	if err := CheckJSON([]byte(nested(MaxDepth+1)), 1000); err == nil {
		t.Errorf("expected a value of %d levels to be refused, but it was accepted", MaxDepth+1)
	}

	sealed := func(e operation.Event) *kgo.Record {
		e.Org, e.ID, e.At = "o", "a", 1
		rec := EncodeEvent(&e, []byte("o/a"), 0)
		new(Chain).Seal(rec)
		return rec
	}
	for _, e := range []operation.Event{
		{Kind: operation.Requested, Request: q, CommandID: "a"},
		{Kind: operation.Retried, Request: q, CommandID: "a"},
		{Kind: operation.Succeeded, Attempt: 1, Session: "s", Result: value},
		{Kind: operation.Yielded, Attempt: 1, Session: "s", Carry: value},
		{Kind: operation.Progressed, Attempt: 1, Session: "s", Carry: value, Progress: value},
	} {
		if _, err := DecodeEvent(sealed(e)); err != nil {
			t.Errorf("%s: expected the journal to stay readable, but: %v", e.Kind, err)
		}
	}
	for _, c := range []operation.Command{
		{Kind: operation.Succeed, Result: value}, {Kind: operation.Progress, Carry: value, Progress: value}, {Kind: operation.Yield, Carry: value},
	} {
		c.Org, c.ID, c.Attempt, c.Session = "o", "a", 1, "s"
		if _, err := DecodeReport(EncodeReport(Topics{}, &c, []byte("o/a"))); err != nil {
			t.Errorf("%s: expected the report to be readable, but: %v", c.Kind, err)
		}
	}
	if _, _, err := DecodeInbox(EncodeItem(Topics{}, &Item{Session: "s", Org: "o", ID: "a", Attempt: 1, Request: q, Carry: value})); err != nil {
		t.Errorf("expected the work item to be readable, but: %v", err)
	}
	s := &operation.State{Org: "o", ID: "a", Status: operation.StatusReady, Request: q, Carry: value, Progress: value}
	if _, err := ParseState(AppendState(nil, s)); err != nil {
		t.Errorf("expected the state to be readable, but: %v", err)
	}
	if _, err := DecodeCheckpoint(EncodeCheckpoint(Topics{}, 0, &Checkpoint{State: s})); err != nil {
		t.Errorf("expected the checkpoint to be readable, but: %v", err)
	}
}

func TestARequestThatGrowsBeyondTheLimitIsRefused(t *testing.T) {
	body := `{"organization":"o","type":"noop","retry":{},"data":"%s"}`
	body = fmt.Sprintf(body, strings.Repeat("x", MaxRequestBytes-len(body)+2))
	if len(body) != MaxRequestBytes {
		t.Fatalf("expected the test to send %d bytes, but it sends %d", MaxRequestBytes, len(body))
	}
	_, err := ParseRequest([]byte(body), "an-id")
	if refusal, ok := errors.AsType[*Refusal](err); !ok || refusal.Code != TooLarge || refusal.Org != "o" || refusal.ID != "an-id" {
		t.Errorf("expected it to be refused as too large, but got %v", err)
	}
}

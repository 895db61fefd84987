package api_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/schemas"
)

func TestTheTableOfProblemsIsComplete(t *testing.T) {
	for code, reason := range operation.Reasons {
		if !strings.Contains(reason, "; ") {
			t.Errorf("%s: expected what is wrong, a semicolon, and what to do, but got %q", code, reason)
		}
		k, ok := api.KindOf(api.Code(code))
		if !ok || k.Title == "" {
			t.Errorf("expected a line with a title for the rejection %s, but got %+v", code, k)
		}
	}
	for code := range schemas.Reasons {
		if _, ok := api.KindOf(api.Code(code)); !ok {
			t.Errorf("expected a line for the refusal %s", code)
		}
	}
	seen := map[api.Code]bool{}
	for _, k := range api.Kinds() {
		if seen[k.Code] {
			t.Errorf("%s: expected one line, but there are more", k.Code)
		}
		seen[k.Code] = true
		if k.Status < 400 || k.Status > 599 || k.Title == "" || k.Next == "" {
			t.Errorf("%s: expected status, title and what to do next, but got %+v", k.Code, k)
		}
		if (k.Status >= 500 || k.Status == 429) != (k.Fault == api.FaultService) {
			t.Errorf("%s: expected status %d to go with the fault of the service, or not, but the fault is %s", k.Code, k.Status, k.Fault)
		}
	}
}

// Two packages have this code: a past time that is postponed to, and a text that is no time at all.
func TestTheAdviceForAnInvalidTimeHoldsForBoth(t *testing.T) {
	k, _ := api.KindOf(api.Code(schemas.InvalidTime))
	if !strings.Contains(k.Next, "RFC 3339") || !strings.Contains(k.Next, "resume") {
		t.Errorf("expected advice about the form of the time, and about one that is past, but got %q", k.Next)
	}
}

func TestAnUnknownCodeIsShownAsARefusal(t *testing.T) {
	p := api.NewProblem("of_a_later_version", "no")
	if p.Status != 409 || p.Code != "of_a_later_version" || p.Type != "/problems/of_a_later_version" {
		t.Errorf("expected a refusal under its own code, but got %+v", p)
	}
}

func TestTheTextOfAnInternalErrorStaysInside(t *testing.T) {
	p := api.ProblemOf(errors.New("password=hunter2"))
	if p.Code != api.Internal || strings.Contains(p.Detail, "hunter2") {
		t.Errorf("expected an internal problem without the error's text, but got %+v", p)
	}
	wrapped := api.ProblemOf(fmt.Errorf("x: %w", api.NewProblem(api.Overloaded, "full")))
	if wrapped.Code != api.Overloaded {
		t.Errorf("expected the wrapped problem, but got %+v", wrapped)
	}
}

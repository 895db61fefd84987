package worker

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
)

func TestDecodeIsStrict(t *testing.T) {
	for _, c := range []struct{ data, want string }{
		{`{"name":"a","n":1}`, ""},
		{` {"name":"a"} `, ""},
		{``, "the request has none"},
		{`{"name":"a","other":1}`, "unknown field"},
		{`{"name":1}`, "cannot unmarshal"},
		{`{"name":"a"} {}`, "more follows"},
		{`{"name":"a"`, "unexpected EOF"},
	} {
		var v struct {
			Name string `json:"name"`
			N    int    `json:"n"`
		}
		err := (&Operation{Data: json.RawMessage(c.data)}).Decode(&v)
		if c.want == "" {
			if err != nil || v.Name != "a" {
				t.Errorf("%q: expected to decode it, but got %+v, %v", c.data, v, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: expected an error with %q, but got %v", c.data, c.want, err)
			continue
		}
		if f := failureOf(err); f.Class != retry.Fail || f.Code != CodeInvalidData {
			t.Errorf("%q: expected a final failure with code %s, but got %+v", c.data, CodeInvalidData, f)
		}
	}
}

func TestKeys(t *testing.T) {
	seen := map[string]bool{}
	for _, o := range []Operation{
		{Organization: "a", ID: "b", Attempt: 1},
		{Organization: "a", ID: "b", Attempt: 2},
		{Organization: "a", ID: "b/1", Attempt: 2},
		{Organization: "a/b", ID: "1", Attempt: 2},
		{Organization: "a%2Fb", ID: "1", Attempt: 2},
	} {
		key := o.IdempotencyKey()
		if seen[key] {
			t.Errorf("expected one key for each attempt, but %q is there twice", key)
		}
		seen[key] = true
		if !strings.HasPrefix(key, o.OperationKey()+"/") {
			t.Errorf("expected %q to begin with the operation's key %q", key, o.OperationKey())
		}
	}
	if key := (&Operation{Organization: "acme", ID: "x", Attempt: 7}).IdempotencyKey(); key != "acme/x/7" {
		t.Errorf("expected acme/x/7, but got %s", key)
	}
}

type recorder []string

func (r *recorder) Progress(_ context.Context, v json.RawMessage) error {
	*r = append(*r, "progress "+string(v))
	return nil
}

func (r *recorder) SaveCheckpoint(_ context.Context, v json.RawMessage) error {
	*r = append(*r, "checkpoint "+string(v))
	return nil
}

// A handler can be tested without a worker.
func TestOperationWithoutAWorker(t *testing.T) {
	ctx := t.Context()
	var o Operation
	if err := errors.Join(o.Progress(ctx, 1), o.SaveCheckpoint(ctx, map[string]int{"row": 2})); err != nil {
		t.Error(err)
	}
	if string(o.Checkpoint) != `{"row":2}` {
		t.Errorf("expected the checkpoint to be remembered, but got %s", o.Checkpoint)
	}
	var r recorder
	o.Bind(&r)
	if err := errors.Join(o.Progress(ctx, 1), o.SaveCheckpoint(ctx, "two")); err != nil {
		t.Error(err)
	}
	if want := []string{"progress 1", `checkpoint "two"`}; !slices.Equal(r, want) {
		t.Errorf("expected %v, but got %v", want, r)
	}
	if o.Progress(ctx, func() {}) == nil || o.SaveCheckpoint(ctx, json.RawMessage(`{`)) == nil || o.SaveCheckpoint(ctx, nil) == nil {
		t.Error("expected what is not JSON to be refused")
	}
}

func TestNilStaysNil(t *testing.T) {
	if err := errors.Join(Final(nil), Suspend(nil), Retry(nil), WithCode(nil, "x", 1, "y")); err != nil {
		t.Errorf("expected no error of none, but got %v", err)
	}
	if Canceled(nil) == nil {
		t.Error("expected Canceled(nil) to be an error")
	}
}

func TestFailureOf(t *testing.T) {
	inner := errors.New("inner")
	f := failureOf(Suspend(WithCode(WithCode(inner, "in", 7, "in words"), "out", 0, "")))
	want := operation.Failure{Code: "out", ErrorCode: 7, Message: "inner", FriendlyMessage: "in words", Class: retry.Suspend}
	if *f != want {
		t.Errorf("expected %+v, but got %+v", want, *f)
	}
	if !errors.Is(Final(WithCode(inner, "x", 0, "")), inner) {
		t.Error("expected the error to be found inside")
	}
	long := failureOf(errors.New(strings.Repeat("ä", maxMessage)))
	if len(long.Message) > maxMessage || !strings.HasSuffix(long.Message, "ä … (cut)") {
		t.Errorf("expected a message cut between characters at %d bytes, but got %d ending in %q", maxMessage, len(long.Message), long.Message[len(long.Message)-20:])
	}
}

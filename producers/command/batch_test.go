package command_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/internal/api/apitest"
	"github.com/opstream/opstream/producers/command"
)

func batch(t *testing.T, h http.Handler, body string) []api.BatchLine {
	t.Helper()
	got := apitest.Do(t, h, "POST", "/v1/operations:batch", body, "Content-Type", "application/jsonl")
	if got.Status != 200 {
		t.Fatalf("expected 200, but got %d %s", got.Status, got.Body)
	}
	contract := apitest.Load(t, "command")
	var lines []api.BatchLine
	for line := range bytes.Lines(got.Body) {
		contract.Valid(t, "BatchLine", line)
		var l api.BatchLine
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, l)
	}
	return lines
}

func TestBatchAnswersLineByLine(t *testing.T) {
	s := newSetup(t)
	lines := batch(t, s.h, strings.Join([]string{
		small, "", `{"id":"op-2","organization":"acme","type":"Import"}`, "not json", small, "  \r",
		`{"organization":"acme","type":"import"}`, `{"id":"op-1","organization":"acme","type":"import"}`,
		`{"id":"long","organization":"acme","type":"import","name":"` + strings.Repeat("x", 3<<20) + `"}`,
		`{"id":"last","organization":"acme","type":"import"}`,
	}, "\n"))
	var got []string
	for _, l := range lines {
		switch {
		case l.End != nil:
			got = append(got, fmt.Sprintf("end %d %d %d", l.End.Lines, l.End.Accepted, l.End.Refused))
		case l.Accepted:
			got = append(got, fmt.Sprintf("%d %s %v", l.Line, l.ID, l.Unchanged))
		default:
			got = append(got, fmt.Sprintf("%d %s %s", l.Line, l.ID, l.Problem.Code))
		}
	}
	want := []string{
		"1 op-1 false", "3 op-2 invalid_name", "4  malformed_json", "5 op-1 true", "7  required", "8 op-1 key_reused",
		"9  too_large", "10 last false", "end 8 3 5",
	}
	if !slices.Equal(got, want) {
		t.Errorf("expected\n%s\nbut got\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
	end := lines[len(lines)-1].End
	after, err := api.ParsePositions(end.Position)
	if err != nil || len(after) == 0 {
		t.Errorf("expected positions to read after, but got %q", end.Position)
	}
}

func TestAnEmptyBatch(t *testing.T) {
	for _, body := range []string{"", "\n\n  \n"} {
		lines := batch(t, newSetup(t).h, body)
		if len(lines) != 1 || lines[0].End == nil || !lines[0].Accepted || lines[0].End.Lines != 0 {
			t.Errorf("%q: expected nothing but the end, but got %+v", body, lines)
		}
	}
}

// Requests of one dependency token come onto the log in the order of their lines, however many are under way.
func TestBatchKeepsTheOrderOfAKey(t *testing.T) {
	var body strings.Builder
	const chains, length = 7, 40
	for i := range length {
		for c := range chains {
			fmt.Fprintf(&body, `{"id":"%d-%d","organization":"acme","type":"import","dependencyToken":"t%d"}`+"\n", c, i, c)
		}
	}
	check := func(t *testing.T, order []operation.ID) {
		t.Helper()
		if len(order) != chains*length {
			t.Fatalf("expected %d submissions, but got %d", chains*length, len(order))
		}
		next := map[string]int{}
		for _, id := range order {
			chain, i, _ := strings.Cut(string(id), "-")
			if i != fmt.Sprint(next[chain]) {
				t.Fatalf("expected %d of chain %s, but got %s", next[chain], chain, i)
			}
			next[chain]++
		}
	}
	t.Run("one after another", func(t *testing.T) {
		s := newSetup(t)
		batch(t, s.h, body.String())
		check(t, s.journal.order)
	})
	t.Run("pipelined", func(t *testing.T) {
		j := &pipe{journal: newJournal()}
		batch(t, apitest.Load(t, "command").Handler(t, command.Routes(command.Config{Journal: j})), body.String())
		check(t, j.begun)
	})
}

// Different keys do not wait for one another, and no more are under way than may be.
func TestBatchIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		var mu sync.Mutex
		under := 0
		release := make(chan struct{})
		j.fail = func(context.Context, *operation.Command) error {
			mu.Lock()
			under++
			mu.Unlock()
			<-release
			return nil
		}
		h := apitest.Load(t, "command").Handler(t, command.Routes(command.Config{Journal: j, InFlight: 16}))
		var body strings.Builder
		for i := range 100 {
			fmt.Fprintf(&body, `{"id":"%d","organization":"acme","type":"import"}`+"\n", i)
		}
		done := make(chan []api.BatchLine)
		go func() { done <- batch(t, h, body.String()) }()
		synctest.Wait()
		mu.Lock()
		if under != 16 {
			t.Errorf("expected 16 under way, but there are %d", under)
		}
		mu.Unlock()
		close(release)
		if lines := <-done; lines[len(lines)-1].End.Accepted != 100 {
			t.Errorf("expected 100 accepted, but got %+v", lines[len(lines)-1].End)
		}
	})
}

// Large requests count by their size.
func TestBatchIsBoundedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		var mu sync.Mutex
		under := 0
		release := make(chan struct{})
		j.fail = func(context.Context, *operation.Command) error {
			mu.Lock()
			under++
			mu.Unlock()
			<-release
			return nil
		}
		h := apitest.Load(t, "command").Handler(t, command.Routes(command.Config{Journal: j}))
		var body strings.Builder
		for i := range 20 {
			fmt.Fprintf(&body, `{"id":"%d","organization":"acme","type":"import","data":"%s"}`+"\n", i, strings.Repeat("x", 1000<<10))
		}
		done := make(chan []api.BatchLine)
		go func() { done <- batch(t, h, body.String()) }()
		synctest.Wait()
		mu.Lock()
		if under < 1 || under > 8 {
			t.Errorf("expected at most 8 MiB under way, but there are %d requests of 1 MiB", under)
		}
		mu.Unlock()
		close(release)
		if lines := <-done; lines[len(lines)-1].End.Accepted != 20 {
			t.Errorf("expected 20 accepted, but got %+v", lines[len(lines)-1].End)
		}
	})
}

// A service that is overloaded in the middle of a batch reads on later, and refuses nothing.
func TestBatchWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		began := time.Now()
		asked := 0
		h := apitest.Load(t, "command").Handler(t, command.Routes(command.Config{Journal: j, Overload: func() (time.Duration, bool) {
			asked++
			return 2 * time.Second, asked > 2 && time.Since(began) < 5*time.Second
		}}))
		lines := batch(t, h, small+"\n"+`{"id":"op-2","organization":"acme","type":"import"}`)
		if end := lines[len(lines)-1].End; end == nil || end.Accepted != 2 || time.Since(began) != 5*time.Second {
			t.Errorf("expected both accepted after 5 s, but got %+v after %s", end, time.Since(began))
		}
	})
}

// What the log does not take is refused line by line, so that the caller can send those again.
func TestBatchGoesOnAfterAFailure(t *testing.T) {
	s := newSetup(t)
	s.journal.fail = func(_ context.Context, c *operation.Command) error {
		if c.ID == "op-2" {
			return command.ErrUnavailable
		}
		return nil
	}
	lines := batch(t, s.h, small+"\n"+`{"id":"op-2","organization":"acme","type":"import"}`+"\n"+`{"id":"op-3","organization":"acme","type":"import"}`)
	if len(lines) != 4 || !lines[0].Accepted || lines[1].Problem.Code != api.LogUnavailable || !lines[1].Problem.Retryable || !lines[2].Accepted {
		t.Errorf("expected the second to be refused, but got %+v", lines)
	}
}

// The answers come while the caller is still sending.
func TestBatchStreamsBothWays(t *testing.T) {
	s := newSetup(t)
	server := httptest.NewServer(s.h)
	defer server.Close()
	client := &api.Client{Base: server.URL}
	r, w := io.Pipe()
	sent := 1
	go fmt.Fprintln(w, small)
	end, err := client.Batch(t.Context(), r, func(l api.BatchLine) error {
		if !l.Accepted || l.Line != sent {
			return fmt.Errorf("expected line %d to be accepted, but got %+v", sent, l)
		}
		sent++
		if sent > 5 {
			return w.Close()
		}
		// Only now is the next one sent: the answer to the one before must have come.
		go fmt.Fprintf(w, `{"id":"op-%d","organization":"acme","type":"import"}`+"\n", sent)
		return nil
	})
	if err != nil || end.Accepted != 5 {
		t.Errorf("expected five accepted, but got %+v, %v", end, err)
	}
}

// A caller that stops in the middle of a line is told, in the stream, that the batch has no end.
func TestABatchThatBreaksOffHasNoEnd(t *testing.T) {
	s := newSetup(t)
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/v1/operations:batch", io.MultiReader(strings.NewReader(small+"\n{"), broken{}))
	r.Header.Set("Content-Type", "application/jsonl")
	w := httptest.NewRecorder()
	s.h.ServeHTTP(w, r)
	lines := strings.Split(strings.TrimSpace(w.Body.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], `"accepted":true`) || strings.Contains(lines[1], `"end"`) || !strings.Contains(lines[1], "problem") {
		t.Errorf("expected an answer and a problem without an end, but got %s", w.Body)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestClient(t *testing.T) {
	s := newSetup(t)
	server := httptest.NewServer(s.h)
	defer server.Close()
	client := &api.Client{Base: server.URL + "/"}
	ctx := t.Context()

	out, err := client.Submit(ctx, []byte(`{"id":"a/b ?","organization":"o/..","type":"import"}`), api.Call{})
	if err != nil || out.Status != "ready" {
		t.Fatalf("expected it to be accepted, but got %+v, %v", out, err)
	}
	out, err = client.Command(ctx, "pause", "o/..", "a/b ?", api.CommandBody{By: "ann", Reason: "lunch"}, nil, api.Call{Key: "k", Wait: time.Second, After: out.Position})
	if err != nil || out.Status != "waiting" || out.Operation == nil {
		t.Fatalf("expected the pause, but got %+v, %v", out, err)
	}
	if _, err = client.Command(ctx, "cancel", "o/..", "a/b ?", api.CommandBody{}, map[string][]string{"dependencyToken": {"wrong"}}, api.Call{}); !isCode(err, "not_found") {
		t.Errorf("expected not_found under a wrong token, but got %v", err)
	}
	if _, err = client.Command(ctx, "delete", "o/..", "a/b ?", api.CommandBody{}, nil, api.Call{}); !isCode(err, "not_completed") {
		t.Errorf("expected not_completed, but got %v", err)
	}
	if _, err = client.Command(ctx, "cancel", "o/..", "a/b ?", api.CommandBody{}, nil, api.Call{}); err != nil {
		t.Errorf("expected the cancel, but got %v", err)
	}
	if out, err = client.Command(ctx, "delete", "o/..", "a/b ?", api.CommandBody{By: "ann", Reason: "old"}, nil, api.Call{}); err != nil || out.Status != "deleted" {
		t.Errorf("expected the delete, but got %+v, %v", out, err)
	}
	s.overload = 9 * time.Second
	_, err = client.Submit(ctx, []byte(small), api.Call{})
	var p *api.Problem
	if !errors.As(err, &p) || p.Code != api.Overloaded || p.RetryAfter != 9*time.Second || p.Fault != api.FaultService {
		t.Errorf("expected overloaded with its time, but got %v", err)
	}

	stranger := httptest.NewServer(http.NotFoundHandler())
	defer stranger.Close()
	if _, err := (&api.Client{Base: stranger.URL}).Submit(ctx, nil, api.Call{}); err == nil || errors.As(err, &p) && p.Code != api.Overloaded {
		t.Errorf("expected an error about the address, but got %v", err)
	}
}

func isCode(err error, code api.Code) bool {
	var p *api.Problem
	return errors.As(err, &p) && p.Code == code
}

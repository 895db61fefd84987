package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/producers/command"
)

// result is what a command line led to.
type result struct {
	code     int
	out, err string
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\nstandard output:\n%s\nstandard error:\n%s", r.code, r.out, r.err)
}

// run runs one command line in this process.
func run(t testing.TB, stdin string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out, errOut bytes.Buffer
	code := execute(ctx, args, strings.NewReader(stdin), &out, &errOut)
	return result{code, out.String(), errOut.String()}
}

// expect fails unless the command ended with this code and its two outputs together hold all the texts.
func (r result) expect(t testing.TB, code int, texts ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("expected exit code %d, but got %s", code, r)
	}
	for _, text := range texts {
		if !strings.Contains(r.out+r.err, text) {
			t.Errorf("expected the text %q, but got %s", text, r)
		}
	}
}

// lines decodes JSON Lines.
func lines[T any](t testing.TB, text string) []T {
	t.Helper()
	var list []T
	for line := range strings.Lines(text) {
		var v T
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("expected a line of JSON, but got %q: %v", line, err)
		}
		list = append(list, v)
	}
	return list
}

// serve serves these routes as the service would, and returns their address.
func serve(t testing.TB, routes ...api.Route) string {
	t.Helper()
	server := httptest.NewServer(api.Handler(slog.New(slog.DiscardHandler), routes...))
	t.Cleanup(func() {
		server.CloseClientConnections() // streams do not end by themselves
		server.Close()
	})
	return server.URL
}

const onePath = "/v1/organizations/{organization}/operations/{id}"

func get(path string, query string, handle func(http.ResponseWriter, *http.Request) error) api.Route {
	return api.Route{Method: http.MethodGet, Path: path, Query: strings.Fields(query), Handle: handle}
}

// fakeLog accepts commands, but for those of operations that it was told to refuse.
type fakeLog struct {
	mu    sync.Mutex
	known map[operation.ID]bool
	seen  []*operation.Command
	codes map[operation.ID]operation.RejectionCode
	errs  map[operation.ID][]error // one for each time it is asked
}

func (l *fakeLog) Do(_ context.Context, c *operation.Command, _ string) (command.Answer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = append(l.seen, c)
	if errs := l.errs[c.ID]; len(errs) > 0 {
		l.errs[c.ID] = errs[1:]
		return command.Answer{}, errs[0]
	}
	if code, refused := l.codes[c.ID]; refused {
		return command.Answer{Rejection: &operation.Rejection{Code: code, Reason: operation.Reasons[code]}}, nil
	}
	a := command.Answer{Partition: 1, Place: operation.Place(len(l.seen)), Status: operation.StatusReady, Event: operation.Requested}
	if c.Kind == operation.Submit && l.known[c.ID] {
		a.Unchanged, a.Event = true, operation.Unchanged
	}
	if c.Kind == operation.Submit {
		if l.known == nil {
			l.known = map[operation.ID]bool{}
		}
		l.known[c.ID] = true
	}
	return a, nil
}

func request(id string) string {
	return fmt.Sprintf(`{"organization":"contoso","id":%q,"type":"bulk-email"}`, id)
}

func TestSubmitTellsOfEveryLine(t *testing.T) {
	journal := &fakeLog{known: map[operation.ID]bool{"old": true}, codes: map[operation.ID]operation.RejectionCode{"used": operation.KeyReused}}
	server := serve(t, command.Routes(command.Config{Journal: journal})...)
	file := strings.Join([]string{
		"\xef\xbb\xbf" + request("a"), // 1: a byte order mark
		"",                            // 2
		"no JSON",                     // 3
		request("b") + "\r",           // 4
		`{"organization":"contoso","id":"c","type":"bulk-email","data":"` + strings.Repeat("x", 3*api.BodyMax) + `"}`, // 5
		request("old"),  // 6
		request("used"), // 7
		`{"organization":"contoso","id":"d","type":"bulk-email","tpye":"x"}`, // 8
		request("e"), // 9: no line end
	}, "\n")
	path := filepath.Join(t.TempDir(), "requests.jsonl")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}

	r := run(t, "", "op", "submit", "--server", server, "--from", path)
	r.expect(t, exitRefused, "accepted 3, unchanged 1, refused 5 (9 lines", "key_reused", "malformed_json", "the line is empty", "too_large", "unknown_field", "tpye")
	if got := strings.Count(r.out, "\n"); got != 6 {
		t.Errorf("expected a header and a row for each of the 5 lines refused, but got %s", r)
	}

	r = run(t, file, "op", "submit", "--server", server, "--from", "-", "--output", "json")
	r.expect(t, exitRefused)
	if r.err != "" {
		t.Errorf("expected nothing on standard error for programs, but got %s", r)
	}
	type answer struct {
		api.BatchLine
		End *submitted `json:"end"`
	}
	refused := map[int]api.Code{}
	var end *submitted
	for _, a := range lines[answer](t, r.out) {
		switch {
		case a.End != nil:
			end = a.End
		case a.Problem != nil:
			refused[a.Line] = a.Problem.Code
		case !a.Unchanged:
			t.Errorf("expected line %d to be unchanged the second time, but got %+v", a.Line, a)
		}
	}
	want := map[int]api.Code{2: "malformed_json", 3: "malformed_json", 5: "too_large", 7: "key_reused", 8: "unknown_field"}
	if fmt.Sprint(refused) != fmt.Sprint(want) {
		t.Errorf("expected these lines to be refused: %v, but got %v", want, refused)
	}
	if end == nil || end.Lines != 9 || end.Accepted != 0 || end.Unchanged != 4 || end.Refused != 5 || end.Position == "" {
		t.Errorf("expected the numbers at the end, but got %+v", end)
	}

	run(t, request("a")+"\n", "op", "submit", "--server", server, "--from", "-").expect(t, exitOK, "accepted 0, unchanged 1, refused 0 (1 lines")
	r = run(t, file, "op", "submit", "--server", server, "--from", "-", "--start-line", "6")
	r.expect(t, exitRefused, "accepted 0, unchanged 2, refused 2 (4 lines", "\n7 ", "\n8 ")
	run(t, "", "op", "submit", "--server", server, "--from", "-").expect(t, exitOK, "accepted 0, unchanged 0, refused 0 (0 lines")
}

func TestSubmitSaysWhenItWasCutOff(t *testing.T) {
	server := serve(t, api.Route{Method: http.MethodPost, Path: "/v1/operations:batch", Body: true, Stream: true, Handle: func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Content-Type", "application/jsonl")
		fmt.Fprintln(w, `{"line":1,"accepted":true,"organization":"contoso","id":"a","status":"ready"}`)
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		panic(http.ErrAbortHandler)
	}})
	run(t, request("a")+"\n"+request("b")+"\n", "op", "submit", "--server", server, "--from", "-").
		expect(t, exitUnavailable, "accepted 1,", "repeat the command", "--start-line 2\n")
}

type failingReader struct{ io.Reader }

func (r failingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = errors.New("the disk is gone")
	}
	return n, err
}

func TestSubmitSaysWhenTheRequestsCannotBeRead(t *testing.T) {
	server := serve(t, command.Routes(command.Config{Journal: &fakeLog{}})...)
	var out, errOut bytes.Buffer
	code := execute(t.Context(), []string{"op", "submit", "--server", server, "--from", "-"}, failingReader{strings.NewReader(request("a") + "\n")}, &out, &errOut)
	result{code, out.String(), errOut.String()}.expect(t, exitFailed, "the disk is gone")
}

func TestSubmitIsRefusedWhileOverloaded(t *testing.T) {
	server := serve(t, command.Routes(command.Config{Journal: &fakeLog{}, Overload: func() (time.Duration, bool) { return 3 * time.Second, true }})...)
	run(t, request("a")+"\n", "op", "submit", "--server", server, "--from", "-").
		expect(t, exitUnavailable, "overloaded", "whose fault: the service's", "(in 3s)", "repeat the command")
}

func TestProblemsSayWhoseFaultAndWhatNext(t *testing.T) {
	for code, exit := range map[api.Code]int{
		"not_found": exitNotFound, "deleted": exitNotFound, "forgotten": exitNotFound,
		api.ReadSideBehind: exitUnavailable, api.Overloaded: exitUnavailable, api.OutcomeUnknown: exitUnavailable,
		api.InvalidParameter: exitRefused, "already_done": exitRefused, "lease_lost": exitRefused, "of_a_later_version": exitRefused,
		api.Internal: exitFailed,
	} {
		t.Run(string(code), func(t *testing.T) {
			problem := api.NewProblem(code, "a detail with \x1b[2J in it").At("a\nfield")
			server := serve(t, get(onePath, "after", func(http.ResponseWriter, *http.Request) error { return problem }))
			r := run(t, "", "op", "get", "one", "-O", "contoso", "--server", server)
			r.expect(t, exit, string(code)+`: a detail with \x1b[2J in it`, `field: a\nfield`, "whose fault: the "+map[api.Fault]string{
				api.FaultCaller: "request", api.FaultHandler: "handler", api.FaultService: "service",
			}[problem.Fault], "next: "+problem.Next)
			r = run(t, "", "op", "get", "one", "-O", "contoso", "--server", server, "-o", "json")
			r.expect(t, exit)
			if got := lines[struct{ Problem api.Problem }](t, r.err); len(got) != 1 || got[0].Problem.Code != code || got[0].Problem.Detail != problem.Detail {
				t.Errorf("expected the problem as JSON, but got %s", r)
			}
		})
	}
}

func TestNobodyAnswers(t *testing.T) {
	address := freePort(t)
	for _, args := range [][]string{
		{"op", "get", "one", "-O", "contoso"},
		{"op", "list"},
		{"op", "counts"},
		{"op", "cancel", "one", "-O", "contoso"},
		{"op", "submit", "--from", "-"},
		{"op", "wait"},
		{"op", "wait", "one", "-O", "contoso"},
	} {
		run(t, request("a"), append(args, "--server", address)...).expect(t, exitUnavailable, address, "opstream dev --data DIR")
	}
	t.Setenv("OPSTREAM_SERVER", address)
	run(t, "", "op", "counts").expect(t, exitUnavailable, address)

	stranger := httptest.NewServer(http.NotFoundHandler())
	defer stranger.Close()
	run(t, "", "op", "counts", "--server", stranger.URL).expect(t, exitFailed, "is it the right address?")
}

func TestWrongCommandLines(t *testing.T) {
	for _, line := range []string{
		"op frobnicate", "op get", "op get one", "op get one two -O o", "op list --limit 0", "op list --organization=", "op list --token=", "op list --correlation-id=", "op counts --organization=",
		"op wait --organization=", "op list --status=", "op list --wait=", "op list --type=",
		"op list --order random", "op list --output yaml", "op submit",
		"op submit --from /no/such/file", "op submit --from - --start-line 0", "op submit --from /", "op cancel", "op cancel one", "op cancel one two -O o --key k", "op cancel one -O o --wait 2h",
		"op postpone one -O o", "op postpone one -O o --until yesterday", "op postpone one -O o --until +never", "op postpone one -O o --until +-3h",
		"op retry one -O o --data /no/such/file", "op wait one", "op wait --timeout -1s", "op counts --server ftp://there", "op counts --server http://",
		"journal frobnicate", "journal tail --from 3", "journal tail --from end --since 3m", "journal tail --since soon", "journal tail --lines -1",
		"journal tail --organization=", "journal tail --id=", "journal export --organization=", "journal export --since=", "deadletter list --code=", "deadletter list --topic=", "deadletter list --since=",
		"verify", "verify --data a --database b", "verify --data /no/such/folder", "verify --database /", "verify --database postgres://there:port/db",
	} {
		run(t, "no JSON", strings.Fields(line)...).expect(t, exitUsage, "opstream: ")
	}
	run(t, "no JSON", "op", "retry", "one", "-O", "o", "--data", "-").expect(t, exitUsage, "expected JSON")
	run(t, "", "op").expect(t, exitOK, "Available Commands")
}

func TestEveryCommandHelps(t *testing.T) {
	for _, c := range all(newRoot()) {
		path := strings.Fields(c.CommandPath())[1:]
		if len(path) == 0 || !slices.Contains([]string{"op", "journal", "verify"}, path[0]) {
			continue
		}
		if c.Short == "" || !strings.Contains(c.Example, c.CommandPath()) {
			t.Errorf("expected %s to have a sentence and an example of itself, but got %q and %q", c.CommandPath(), c.Short, c.Example)
		}
		run(t, "", append(path, "--help")...).expect(t, exitOK, "Examples:")
	}
}

// hostile are names that would do something to a terminal.
var hostile = []string{"a\x1b[2J\x1b[Hb", "line\nbreak\rback\x07", "c1\u009b31m", "bidi\u202egpj.exe", "zero\u200bwidth\ufeff", "tag\U000e0041", "\xff\xfe", "日本 ok"}

// shows fails if a text would do more than be seen.
func shows(t testing.TB, text string) {
	t.Helper()
	for i, r := range text {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Errorf("expected nothing but visible characters, but got %q at byte %d of %q", r, i, text)
			return
		}
	}
}

func TestHostileNames(t *testing.T) {
	operations := make([]api.Operation, len(hostile))
	for i, name := range hostile {
		operations[i] = api.Operation{
			ID: name, Organization: name, Type: name, Name: name, Why: name, Session: name, BlockedBy: name, PartitionKey: name, CorrelationID: name,
			DependencyToken: name, By: &api.By{Who: name, Reason: name}, Failure: &api.Failure{Code: name, Message: name}, CreatedAt: time.Now(),
			Request: json.RawMessage("{\"data\":\"\u009b\u202e\x7f\"}"),
		}
	}
	server := serve(t,
		get("/v1/operations", "limit order", func(w http.ResponseWriter, _ *http.Request) error {
			return api.WriteJSON(w, http.StatusOK, api.List{Operations: operations})
		}),
		get(onePath, "after", func(w http.ResponseWriter, _ *http.Request) error {
			return api.WriteJSON(w, http.StatusOK, operations[0])
		}),
		get(onePath+"/history", "after", func(w http.ResponseWriter, _ *http.Request) error {
			return api.WriteJSON(w, http.StatusOK, api.History{Events: []api.HistoryEvent{{Event: hostile[0], Reason: hostile[1], Session: hostile[2], WaitsFor: hostile[3]}}})
		}),
		get("/v1/counts", "", func(w http.ResponseWriter, _ *http.Request) error {
			return api.WriteJSON(w, http.StatusOK, api.Counts{ByType: []api.TypeCount{{Type: hostile[0], Count: 1}}, ByWait: []api.WaitCount{{Wait: hostile[2], Count: 1}}})
		}),
		api.Route{Method: http.MethodPost, Path: onePath + "/cancel", Body: true, Handle: func(http.ResponseWriter, *http.Request) error {
			return api.NewProblem("already_done", "%s", hostile[0])
		}},
	)
	for _, args := range [][]string{{"op", "list"}, {"op", "get", hostile[0], "-O", hostile[1]}, {"op", "history", "x", "-O", "y"}, {"op", "counts"}, {"op", "cancel", hostile[0], "-O", "x"}} {
		for _, format := range []string{"table", "json"} {
			r := run(t, "", append(args, "--server", server, "--output", format)...)
			shows(t, r.out)
			shows(t, r.err)
			if r.out+r.err == "" {
				t.Errorf("expected %q to show something", args)
			}
		}
	}
	r := run(t, "", "op", "list", "--server", server)
	if got := strings.Count(r.out, "\n"); got != len(hostile)+1 {
		t.Errorf("expected one line for each operation, but got %s", r)
	}
	// Programs get the names as they are, but for what is no UTF-8.
	r = run(t, "", "op", "list", "--server", server, "-o", "json")
	for i, o := range lines[api.Operation](t, r.out) {
		if want := strings.ToValidUTF8(hostile[i], "\ufffd\ufffd"); o.ID != want {
			t.Errorf("expected the id %q, but got %q", want, o.ID)
		}
	}
	run(t, "", "op", "get", "x", "-O", "y", "--server", "http://127.0.0.1:1/"+"\x1b[2J").expect(t, exitUsage)
}

func TestListEndsAtTheLimit(t *testing.T) {
	const total = 2500
	created := time.Now().Add(-90 * time.Minute)
	var queries []url.Values
	server := serve(t, get("/v1/operations", "limit order cursor status organization token correlationId wait type", func(w http.ResponseWriter, r *http.Request) error {
		q := r.URL.Query()
		queries = append(queries, q)
		var from, limit int
		if _, err := fmt.Sscan(q.Get("limit"), &limit); err != nil {
			t.Error(err)
		}
		if q.Has("cursor") {
			if _, err := fmt.Sscan(q.Get("cursor"), &from); err != nil {
				t.Error(err)
			}
		}
		var page api.List
		for i := from; i < min(from+limit, total); i++ {
			page.Operations = append(page.Operations, api.Operation{ID: fmt.Sprintf("op-%d", i), CreatedAt: created, Standing: api.StandingOf(operation.StatusReady)})
		}
		if from+limit < total {
			page.Next = fmt.Sprint(from + limit)
		}
		return api.WriteJSON(w, http.StatusOK, page)
	}))
	for _, c := range []struct {
		args []string
		rows int
		more bool
	}{
		{[]string{"--limit", "10"}, 10, true},
		{nil, 100, true},
		{[]string{"--limit", "1000"}, 1000, true},
		{[]string{"--limit", "2500"}, 2500, false},
		{[]string{"--limit", "9999"}, 2500, false},
		{[]string{"--all"}, 2500, false},
	} {
		r := run(t, "", append([]string{"op", "list", "--server", server}, c.args...)...)
		r.expect(t, exitOK, "op-0 ", "1h")
		if got := strings.Count(r.out, "\n") - 1; got != c.rows {
			t.Errorf("expected %d rows for %q, but got %d", c.rows, c.args, got)
		}
		if more := strings.Contains(r.err, "--all"); more != c.more {
			t.Errorf("expected to be told of more with %q: %v, but got %q", c.args, c.more, r.err)
		}
	}
	queries = nil
	run(t, "", "op", "list", "--server", server, "-O", "o", "--status", "failed,canceled", "--wait", "paused", "--type", "a", "--type", "b", "--token", "t", "--correlation-id", "c", "--order", "oldest")
	want := "correlationId=c&limit=101&order=oldest&organization=o&status=failed%2Ccanceled&token=t&type=a%2Cb&wait=paused"
	if got := queries[0].Encode(); got != want {
		t.Errorf("expected the query %s, but got %s", want, got)
	}
}

func TestCommandsOnOperations(t *testing.T) {
	journal := &fakeLog{
		codes: map[operation.ID]operation.RejectionCode{"done": operation.AlreadyDone, "gone": operation.NotFound},
		errs:  map[operation.ID][]error{"lost": {command.ErrOutcomeUnknown}, "dead": {command.ErrOutcomeUnknown, command.ErrOutcomeUnknown}},
	}
	server := serve(t, command.Routes(command.Config{Journal: journal})...)
	args := func(more ...string) []string { return append(more, "-O", "contoso", "--server", server) }

	run(t, "", args("op", "cancel", "one", "two", "--by", "ada", "--reason", "enough")...).expect(t, exitOK, "one", "two", "ready", "1-2")
	for _, c := range journal.seen {
		if c.Kind != operation.Cancel || c.Org != "contoso" || (c.By != operation.By{Who: "ada", Reason: "enough"}) {
			t.Errorf("expected a cancel by ada, but got %+v", c)
		}
	}
	if journal.seen[0].CommandID == journal.seen[1].CommandID {
		t.Error("expected every command to have an id of its own")
	}

	// The others are told although one is refused; what weighs most is the exit code.
	journal.seen = nil
	run(t, "", args("op", "pause", "gone", "one")...).expect(t, exitNotFound, "opstream: gone: not_found", "one")
	run(t, "", args("op", "resume", "gone", "done", "one")...).expect(t, exitRefused, "opstream: done: already_done", "one")
	run(t, "", args("op", "delete", "done", "dead")...).expect(t, exitUnavailable, "outcome_unknown", "already_done")
	r := run(t, "", args("op", "cancel", "gone", "one", "-o", "json")...)
	r.expect(t, exitNotFound)
	if got := lines[refusedID](t, r.out); len(got) != 2 || got[0].ID != "gone" || got[0].Problem.Code != "not_found" || got[1].Problem != nil {
		t.Errorf("expected a problem and an outcome, but got %s", r)
	}

	// What was not heard is asked again, under the same id.
	journal.seen = nil
	run(t, "", args("op", "cancel", "lost")...).expect(t, exitOK, "lost")
	if len(journal.seen) != 2 || journal.seen[0].CommandID != journal.seen[1].CommandID {
		t.Errorf("expected the same command twice, but got %+v", journal.seen)
	}

	journal.seen = nil
	run(t, `{"to" : "all"}`, args("op", "retry", "one", "--data", "-", "--key", "k")...).expect(t, exitOK)
	if c := journal.seen[0]; string(c.Data) != `{"to":"all"}` || c.CommandID != "k" {
		t.Errorf("expected the data and the key, but got %+v", c)
	}
	journal.seen = nil
	before := time.Now()
	run(t, "", args("op", "postpone", "one", "--until", "+90m")...).expect(t, exitOK)
	run(t, "", args("op", "postpone", "one", "--until", "2030-01-31T08:00:00+02:00")...).expect(t, exitOK)
	if got := journal.seen[0].Until.Go().Sub(before); got < 90*time.Minute-time.Second || got > 91*time.Minute {
		t.Errorf("expected 90 minutes from now, but got %s", got)
	}
	if got := journal.seen[1].Until.Go(); !got.Equal(time.Date(2030, 1, 31, 6, 0, 0, 0, time.UTC)) {
		t.Errorf("expected the time, but got %s", got)
	}
}

// fakeTables shows operations that a test moves on, and tells listeners of it.
type fakeTables struct {
	mu        sync.Mutex
	status    map[string]operation.Status
	events    chan string // sent to the listener as they are
	listening chan struct{}
	asked     chan struct{} // holds a token once an operation was asked for
	refuse    int           // the first so many listeners
	gets      int
}

func newFakeTables() *fakeTables {
	return &fakeTables{status: map[string]operation.Status{}, events: make(chan string, 16), listening: make(chan struct{}, 16), asked: make(chan struct{}, 1)}
}

func (f *fakeTables) set(id string, s operation.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status[id] = s
}

func event(id string, s operation.Status) string {
	data, _ := json.Marshal(api.Change{Organization: "contoso", ID: id, Standing: api.StandingOf(s)})
	return "event: operation\nid: 1\ndata: " + string(data) + "\n\n"
}

func countsEvent(c api.Counts) string {
	data, _ := json.Marshal(c)
	return "event: counts\ndata: " + string(data) + "\n\n"
}

func (f *fakeTables) routes() []api.Route {
	stream := get("/v1/events", "organization id events", func(w http.ResponseWriter, r *http.Request) error {
		f.mu.Lock()
		refuse := f.refuse > 0
		f.refuse--
		f.mu.Unlock()
		if refuse {
			return api.NewProblem(api.TooManyListeners, "too many")
		}
		fmt.Fprint(w, "retry: 2000\n\n")
		if err := http.NewResponseController(w).Flush(); err != nil {
			return err
		}
		f.listening <- struct{}{}
		for {
			select {
			case e := <-f.events:
				if e == "cut" {
					return nil
				}
				fmt.Fprint(w, e)
				if err := http.NewResponseController(w).Flush(); err != nil {
					return err
				}
			case <-r.Context().Done():
				return nil
			}
		}
	})
	stream.Stream = true
	show := func(id string) (api.Operation, bool) {
		s, ok := f.status[id]
		o := api.Operation{Organization: "contoso", ID: id, Standing: api.StandingOf(s), CreatedAt: time.Now()}
		if s == operation.StatusFailed {
			o.Failure = &api.Failure{Code: "broken", Message: "it broke", Fault: api.FaultHandler}
		}
		return o, ok
	}
	return []api.Route{
		stream,
		get(onePath, "after", func(w http.ResponseWriter, r *http.Request) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.gets++
			defer poke(f.asked)
			o, ok := show(r.PathValue("id"))
			if !ok {
				return api.NewProblem("not_found", "there is none")
			}
			return api.WriteJSON(w, http.StatusOK, o)
		}),
		get("/v1/operations", "organization limit after", func(w http.ResponseWriter, _ *http.Request) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			var page api.List
			for id := range f.status {
				o, _ := show(id)
				page.Operations = append(page.Operations, o)
			}
			return api.WriteJSON(w, http.StatusOK, page)
		}),
		get("/v1/counts", "organization after", func(w http.ResponseWriter, _ *http.Request) error {
			return api.WriteJSON(w, http.StatusOK, api.Counts{})
		}),
	}
}

func TestWaitForOperations(t *testing.T) {
	t.Parallel()
	f := newFakeTables()
	server := serve(t, f.routes()...)
	wait := func(args ...string) result {
		return run(t, "", append([]string{"op", "wait", "-O", "contoso", "--server", server}, args...)...)
	}
	f.set("done", operation.StatusSucceeded)
	f.set("bad", operation.StatusFailed)
	f.set("off", operation.StatusCanceled)
	f.set("busy", operation.StatusRunning)
	wait("done").expect(t, exitOK, "done", "succeeded")
	wait("done", "bad").expect(t, exitFailed, "bad", "failed", "broken: it broke")
	wait("off").expect(t, exitFailed, "canceled")
	wait("none", "done").expect(t, exitNotFound, "not found")
	wait("none", "bad").expect(t, exitFailed)
	wait("busy", "--timeout", "50ms").expect(t, exitUnavailable, "1 of 1 have not ended, such as busy", "--timeout")
	r := wait("bad", "-o", "json")
	if got := lines[ended](t, r.out); len(got) != 1 || got[0].Status != "failed" || got[0].Failure.Code != "broken" || r.err != "" {
		t.Errorf("expected one object, but got %s", r)
	}
	// It is given up when it has heard of one of two, which takes as long as it takes.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, errOut := &watched{news: make(chan struct{}, 1)}, &watched{news: make(chan struct{}, 1)}
	code := make(chan int, 1)
	go func() {
		code <- execute(ctx, []string{"op", "wait", "-O", "contoso", "--server", server, "busy", "done"}, strings.NewReader(""), out, errOut)
	}()
	out.until(t, "succeeded")
	cancel()
	if got, said := <-code, errOut.String(); got != exitFailed || !strings.Contains(said, "1 of 2 have not ended, such as busy") {
		t.Errorf("expected to be told of the one that has not ended, but got exit code %d: %s", got, said)
	}
}

func TestWaitHearsOfTheEnd(t *testing.T) {
	t.Parallel()
	for name, tell := range map[string][]string{
		"event":    {event("other", operation.StatusFailed), event("busy", operation.StatusPausing), event("busy", operation.StatusSucceeded)},
		"reset":    {"event: reset\ndata: {}\n\n"},
		"cut off":  {"cut"},
		"overload": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeTables()
			f.set("busy", operation.StatusRunning)
			server := serve(t, f.routes()...)
			if tell == nil {
				f.refuse = 1
			}
			go func() {
				<-f.listening
				<-f.asked // so that it is not found by looking
				f.set("busy", operation.StatusSucceeded)
				for _, e := range tell {
					f.events <- e
				}
				if tell == nil {
					f.events <- event("busy", operation.StatusSucceeded)
				}
			}()
			// Long before it looks again by itself.
			run(t, "", "op", "wait", "busy", "-O", "contoso", "--server", server, "--timeout", (lookAgain/2).String()).expect(t, exitOK, "succeeded")
		})
	}
}

func TestWaitForManyLooksAtLists(t *testing.T) {
	t.Parallel()
	f := newFakeTables()
	args := []string{"op", "wait", "-O", "contoso"}
	for i := range 300 {
		id := fmt.Sprintf("op-%d", i)
		f.set(id, operation.StatusSucceeded)
		args = append(args, id)
	}
	r := run(t, "", append(args, "--server", serve(t, f.routes()...))...)
	r.expect(t, exitOK)
	if got := strings.Count(r.out, "succeeded"); got != 300 || f.gets != 0 {
		t.Errorf("expected 300 ends without asking for each, but got %d ends and %d questions", got, f.gets)
	}
}

func countsOf(statuses map[operation.Status]int64, waits map[operation.Wait]int64) api.Counts {
	var c api.Counts
	for s, n := range statuses {
		c.ByStatus = append(c.ByStatus, api.StatusCount{Standing: api.StandingOf(s), Count: n})
		c.Total += n
	}
	for w, n := range waits {
		c.ByWait = append(c.ByWait, api.WaitCount{Wait: w.String(), Count: n})
	}
	return c
}

func TestWaitUntilNothingIsLeft(t *testing.T) {
	t.Parallel()
	chained := countsOf(map[operation.Status]int64{operation.StatusWaiting: 2}, map[operation.Wait]int64{operation.WaitDependency: 2})
	for name, c := range map[string]struct {
		tell []api.Counts
		want string
	}{
		"at once": {[]api.Counts{countsOf(map[operation.Status]int64{operation.StatusSucceeded: 5}, nil)}, "nothing is left to do\n"},
		"later": {[]api.Counts{
			countsOf(map[operation.Status]int64{operation.StatusRunning: 1, operation.StatusReady: 3}, nil),
			countsOf(map[operation.Status]int64{operation.StatusPausing: 1}, nil),
			countsOf(map[operation.Status]int64{operation.StatusWaiting: 4, operation.StatusFailed: 1}, map[operation.Wait]int64{operation.WaitPaused: 4}),
		}, "4 wait"},
		// Between two operations of a token none is ready for a moment, and that is not the end.
		"chain": {[]api.Counts{
			chained,
			countsOf(map[operation.Status]int64{operation.StatusReady: 1, operation.StatusWaiting: 1}, map[operation.Wait]int64{operation.WaitDependency: 1}),
			countsOf(map[operation.Status]int64{operation.StatusSucceeded: 2}, nil),
		}, "nothing is left to do\n"},
		"blocked chain": {[]api.Counts{chained}, "2 wait"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeTables()
			for _, counts := range c.tell {
				f.events <- countsEvent(counts)
			}
			run(t, "", "op", "wait", "--server", serve(t, f.routes()...), "--after", "1-2").expect(t, exitOK, c.want)
		})
	}
	f := newFakeTables()
	f.events <- countsEvent(countsOf(map[operation.Status]int64{operation.StatusReady: 1}, nil))
	run(t, "", "op", "wait", "--server", serve(t, f.routes()...), "--timeout", "100ms").expect(t, exitUnavailable, "--timeout")
}

func TestARowHasTheFirstLineOfAFailure(t *testing.T) {
	f := &api.Failure{Code: "panic", Message: "the handler panicked: nil map\ngoroutine 7 [running]:\nmain.main()", Fault: "handler"}
	if got, want := whyText(&api.Operation{Standing: api.Standing{Status: "failed"}, Failure: f}), "panic: the handler panicked: nil map… [fault of the handler]"; got != want {
		t.Errorf("expected %q, but got %q", want, got)
	}
	if !strings.Contains(f.Message, "main.main()") {
		t.Errorf("expected the failure itself to stay whole, but it is %q", f.Message)
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	tab := newTable(&out, "ID", "WHY")
	tab.width = 30
	for i := range 2*tablePart + 3 {
		tab.row(fmt.Sprintf("op-%d", i), "because it is "+strings.Repeat("ä", 40))
	}
	if err := tab.flush(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(out.String()) {
		n++
		if got := len([]rune(line)) - 1; got > 30 {
			t.Errorf("expected lines of at most 30 characters, but got %d: %q", got, line)
		}
	}
	if n != 2*tablePart+4 {
		t.Errorf("expected all rows and one header, but got %d lines", n)
	}
	if !strings.HasPrefix(out.String(), "ID ") || !strings.Contains(out.String(), "op-1002  because it is ää") || !strings.Contains(out.String(), "…\n") {
		t.Errorf("expected a header, rows and what was cut off, but got %q", out.String()[:200])
	}

	now := time.Date(2030, 5, 6, 12, 0, 0, 0, time.Local)
	for _, c := range []struct {
		ago         time.Duration
		short, aged string
	}{
		{-time.Hour, "13:00:00", "0s"},
		{59 * time.Second, "11:59:01", "59s"},
		{90 * time.Second, "11:58:30", "1m"},
		{3 * time.Hour, "09:00:00", "3h"},
		{47 * time.Hour, "May 04 13:00", "47h"},
		{72 * time.Hour, "May 03 12:00", "3d"},
		{400 * 24 * time.Hour, "2029-04-01 12:00", "400d"},
	} {
		if short, aged := shortTime(now.Add(-c.ago), now), age(now.Add(-c.ago), now); short != c.short || aged != c.aged {
			t.Errorf("expected %q and %q for %s ago, but got %q and %q", c.short, c.aged, c.ago, short, aged)
		}
	}
}

func FuzzClean(f *testing.F) {
	for _, name := range hostile {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, s string) {
		shows(t, clean(s))
		data, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var before, after string
		safe := cleanJSON(data)
		shows(t, string(safe))
		if err := errors.Join(json.Unmarshal(data, &before), json.Unmarshal(safe, &after)); err != nil || before != after {
			t.Errorf("expected %q to stay what it is, but got %q, %v", before, after, err)
		}
	})
}

// embeddedService starts the whole service in this process.
func embeddedService(t testing.TB, data string) (_ *service, stop func()) {
	t.Helper()
	g := newGroup()
	s, err := startEmbedded(t.Context(), g, devFlags{
		data: data, listen: "127.0.0.1:0", kafka: "127.0.0.1:0", partitions: 3, slots: 8, lease: defaultLease,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("start the service: %v", errors.Join(err, g.stop()))
	}
	stop = sync.OnceFunc(func() {
		if err := g.stop(); err != nil {
			t.Errorf("stop the service: %v", err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

func TestAgainstTheService(t *testing.T) {
	data := t.TempDir()
	s, stop := embeddedService(t, data)
	t.Setenv("OPSTREAM_SERVER", s.url)
	t.Setenv("OPSTREAM_BROKERS", strings.Join(s.cfg.brokers, ","))

	var file strings.Builder
	for i := range 200 {
		fmt.Fprintf(&file, `{"organization":"contoso","id":"op-%d","type":"noop","dependencyToken":"t%d"}`+"\n", i, i%10)
	}
	file.WriteString(`{"organization":"contoso","id":"bad","type":"noop","data":{"fail":"no such mailbox","class":"fail"}}` + "\n")
	run(t, file.String(), "op", "submit", "--from", "-", "--wait").expect(t, exitFailed, "accepted 201, unchanged 0, refused 0", "succeeded 200, failed 1", "no such mailbox")
	run(t, file.String(), "op", "submit", "--from", "-").expect(t, exitOK, "accepted 0, unchanged 201, refused 0")
	run(t, "", "op", "list", "--status", "failed").expect(t, exitOK, "bad", "no such mailbox [fault of the handler]")
	run(t, "", "op", "get", "bad", "-O", "contoso").expect(t, exitOK, "failed (Completed 3, Failed 31)")
	run(t, "", "op", "wait", "bad", "op-7", "-O", "contoso").expect(t, exitFailed, "no such mailbox")
	run(t, "", "op", "retry", "bad", "-O", "contoso", "--data", "-").expect(t, exitUsage) // an empty input is no JSON
	run(t, "{}", "op", "retry", "bad", "-O", "contoso", "--data", "-", "--wait", "30s").expect(t, exitOK, "retried")
	run(t, "", "op", "wait", "bad", "-O", "contoso").expect(t, exitOK, "succeeded")

	// A type that nobody serves waits for a worker until it is taken back.
	run(t, `{"organization":"contoso","id":"idle","type":"nobodys"}`, "op", "submit", "--from", "-").expect(t, exitOK)
	run(t, "", "op", "pause", "idle", "-O", "contoso", "--by", "ada", "--reason", "tea", "--wait", "30s").expect(t, exitOK, "paused")
	run(t, "", "op", "list", "--wait", "paused").expect(t, exitOK, "paused by ada because tea")
	run(t, "", "op", "wait").expect(t, exitOK, "1 wait")
	run(t, "", "op", "resume", "idle", "-O", "contoso").expect(t, exitOK, "resumed")
	run(t, "", "op", "postpone", "idle", "-O", "contoso", "--until", "+1h").expect(t, exitOK, "postponed")
	run(t, "", "op", "cancel", "idle", "-O", "contoso", "--wait", "30s").expect(t, exitOK, "canceled")
	run(t, "", "op", "cancel", "idle", "-O", "contoso").expect(t, exitOK, "nothing to do")
	run(t, "", "op", "pause", "idle", "-O", "contoso").expect(t, exitRefused, "already_done", "whose fault: the request's")
	r := run(t, "", "op", "history", "idle", "-O", "contoso", "-o", "json")
	var kinds []string
	for _, e := range lines[api.HistoryEvent](t, r.out) {
		kinds = append(kinds, e.Event)
	}
	if got := strings.Join(kinds[:min(len(kinds), 5)], " "); got != "requested paused resumed postponed canceled" {
		t.Errorf("expected the history of what was done, but got %v", kinds)
	}
	run(t, "", "op", "history", "idle", "-O", "contoso").expect(t, exitOK, "by ada, because tea")
	run(t, "", "op", "counts", "-O", "contoso").expect(t, exitOK, "noop", "201", "nobodys")
	run(t, "", "op", "get", "none", "-O", "contoso").expect(t, exitNotFound, "not_found")

	r = run(t, "", "journal", "export", "--organization", "contoso", "--id", "idle")
	if got := lines[exported](t, r.out); len(got) < 5 || got[0].Type != "opstream.operation.requested.v1" || r.code != exitOK {
		t.Errorf("expected the events of the operation, but got %s", r)
	}
	run(t, "", "journal", "tail", "-n", "3").expect(t, exitOK, "contoso/")
	run(t, "", "verify", "--data", data).expect(t, exitOK, "verified")

	// The folder is enough when the service does not run.
	stop()
	t.Setenv("OPSTREAM_BROKERS", "")
	run(t, "", "verify", "--data", data).expect(t, exitOK, "verified", "partitions        3")
}

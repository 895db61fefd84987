package api_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/internal/api/apitest"
)

// echo answers with the path parameters and the body, to see what arrives.
func echo(w http.ResponseWriter, r *http.Request) error {
	org, err := api.PathName(r, "organization")
	if err != nil {
		return err
	}
	id, err := api.PathName(r, "id")
	if err != nil {
		return err
	}
	body, err := api.ReadBody(r)
	if err != nil {
		return err
	}
	return api.WriteJSON(w, http.StatusOK, []string{org, id, string(body)})
}

func routes() []api.Route {
	return []api.Route{
		{Method: "GET", Path: "/v1/organizations/{organization}/operations/{id}", Query: []string{"after"}, Handle: func(w http.ResponseWriter, r *http.Request) error {
			r.Body = http.NoBody
			return echo(w, r)
		}},
		{Method: "POST", Path: "/v1/organizations/{organization}/operations/{id}/cancel", Body: true, Handle: echo},
		{Method: "GET", Path: "/v1/counts", Handle: func(http.ResponseWriter, *http.Request) error { return errors.New("secret") }},
		{Method: "GET", Path: "/v1/status", Handle: func(http.ResponseWriter, *http.Request) error { panic("oops") }},
		{Method: "GET", Path: "/v1/events", Stream: true, Handle: func(w http.ResponseWriter, _ *http.Request) error {
			io.WriteString(w, "half") //nolint:errcheck // the test is about what comes after it
			panic("oops")
		}},
	}
}

func handler(t *testing.T) http.Handler {
	return api.Handler(slog.New(slog.NewTextHandler(t.Output(), nil)), routes()...)
}

// Whatever an organization or an operation is called, the client reaches it.
func TestNamesWithAnyCharacterArrive(t *testing.T) {
	h := handler(t)
	for _, name := range []string{"a", "a/b", "/", "a//b", "..", ".", "../../x", "a%2Fb", "%", "a?b#c", "a b", "a+b", "ü/ß", "日本", "a;b=c", `"<>&'`, "a:b", "{id}", "~", strings.Repeat("n", 128)} {
		path := "/v1/organizations/" + api.Segment(name) + "/operations/" + api.Segment(name)
		got := apitest.Do(t, h, "GET", path, "")
		var parts []string
		if got.Status != 200 {
			t.Errorf("%q: expected 200, but got %d %s %v", name, got.Status, got.Body, got.Header)
			continue
		}
		got.Into(t, &parts)
		if parts[0] != name || parts[1] != name {
			t.Errorf("expected %q to arrive, but got %q", name, parts)
		}
	}
}

func TestNamesThatNobodyCanHaveAreRefused(t *testing.T) {
	h := handler(t)
	for _, segment := range []string{"a%00b", "a%0Ab", "%7F", "%FF", "%C2%85", strings.Repeat("n", 129), strings.Repeat("n", 10<<10)} {
		got := apitest.Do(t, h, "GET", "/v1/organizations/o/operations/"+segment, "")
		if p := got.Problem(t); p.Code != api.InvalidParameter || p.Field != "id" || len(got.Body) > 2000 {
			t.Errorf("%.40s: expected a short invalid_parameter for id, but got %s", segment, got.Body)
		}
	}
}

func TestStrictness(t *testing.T) {
	h := handler(t)
	const one = "/v1/organizations/o/operations/i"
	for _, c := range []struct {
		name, method, target, body string
		headers                    []string
		status                     int
		code                       api.Code
		field                      string
	}{
		{"no such path", "GET", "/v2/operations", "", nil, 404, api.NoSuchPath, ""},
		{"no such path with anything in it", "GET", "/%00%FF<script>", "", nil, 404, api.NoSuchPath, ""},
		{"a method that the path does not know", "PUT", one, "", nil, 405, api.MethodNotAllowed, ""},
		{"a method that nobody knows", "BREW", one, "", nil, 405, api.MethodNotAllowed, ""},
		{"head on a stream", "HEAD", "/v1/events", "", nil, 405, api.MethodNotAllowed, ""},
		{"an unknown parameter", "GET", one + "?aftre=0-1", "", nil, 400, api.UnknownParameter, "aftre"},
		{"a parameter twice", "GET", one + "?after=0-1&after=0-2", "", nil, 400, api.InvalidParameter, "after"},
		{"control characters in a parameter", "GET", one + "?after=%00", "", nil, 400, api.InvalidParameter, "after"},
		{"bytes that are no text in a parameter", "GET", one + "?after=%FF", "", nil, 400, api.InvalidParameter, "after"},
		{"a broken query string", "GET", one + "?after=%zz", "", nil, 400, api.InvalidRequest, ""},
		{"a semicolon in the query string", "GET", one + "?a;b", "", nil, 400, api.InvalidRequest, ""},
		{"a huge query string", "GET", one + "?after=" + strings.Repeat("1", 20<<10), "", nil, 413, api.TooLarge, ""},
		{"a body where none is read", "GET", one, "{}", nil, 400, api.InvalidRequest, ""},
		{"a body that is too large", "POST", one + "/cancel", strings.Repeat("x", 1<<20+1), nil, 413, api.TooLarge, ""},
		{"another origin", "POST", one + "/cancel", "{}", []string{"Sec-Fetch-Site", "cross-site"}, 403, api.CrossOrigin, ""},
		{"another origin of an old browser", "POST", one + "/cancel", "{}", []string{"Origin", "https://evil.test"}, 403, api.CrossOrigin, ""},
		{"an error", "GET", "/v1/counts", "", nil, 500, api.Internal, ""},
		{"a panic", "GET", "/v1/status", "", nil, 500, api.Internal, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := apitest.Do(t, h, c.method, c.target, c.body, c.headers...)
			if got.Header.Get("Content-Type") != api.ProblemType {
				if c.method == "HEAD" && got.Status == c.status {
					return
				}
				t.Fatalf("expected a problem, but got %d %v %q", got.Status, got.Header, got.Body)
			}
			p := got.Problem(t)
			if got.Status != c.status || p.Code != c.code || p.Field != c.field || p.Status != c.status {
				t.Errorf("expected %d %s %q, but got %d %s", c.status, c.code, c.field, got.Status, got.Body)
			}
			if strings.Contains(string(got.Body), "secret") {
				t.Errorf("expected the error's text to stay inside, but got %s", got.Body)
			}
			if c.status == 405 && got.Header.Get("Allow") == "" {
				t.Errorf("expected the header Allow")
			}
			if got.Header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("expected nosniff")
			}
		})
	}
}

func TestAllowNamesTheMethods(t *testing.T) {
	got := apitest.Do(t, handler(t), "POST", "/v1/organizations/o/operations/i", "{}")
	if allow := got.Header.Get("Allow"); allow != "GET, HEAD" {
		t.Errorf("expected GET, HEAD, but got %q", allow)
	}
}

// Half an answer must not look like a whole one: the connection is cut.
func TestAPanicAfterTheAnswerHasBegunCutsTheConnection(t *testing.T) {
	server := httptest.NewServer(handler(t))
	defer server.Close()
	server.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(io.Discard, nil), slog.LevelError)
	resp, err := http.Get(server.URL + "/v1/events")
	if err != nil {
		return // cut before the answer was sent: as good
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("expected the connection to be cut, but got a whole answer %q", body)
	}
}

// A client that has closed its side of the connection has left, as far as net/http can tell. If it still listens, it must not
// take the end of a handler that has given up for an answer.
func TestAClientThatHasClosedItsSideIsNotToldThatAllIsWell(t *testing.T) {
	server := httptest.NewServer(api.Handler(slog.New(slog.NewTextHandler(t.Output(), nil)), api.Route{
		Method: "GET", Path: "/v1/status", Handle: func(_ http.ResponseWriter, r *http.Request) error {
			<-r.Context().Done()
			return fmt.Errorf("waiting for the end: %w", r.Context().Err())
		},
	}))
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /v1/status HTTP/1.1\r\nHost: test\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(conn); len(got) > 0 {
		t.Errorf("expected the connection to be cut, but got the answer %q", got)
	}
}

// What a sender wrote comes back as it was, also what HTML has other names for.
func TestWriteJSONLeavesPayloadsAlone(t *testing.T) {
	const payload = `{"a":"<b>&\u003c\u2028 '","n":1e400,"m":-0}`
	rec := httptest.NewRecorder()
	if err := api.WriteJSON(rec, http.StatusOK, map[string]any{"data": json.RawMessage(payload), "name": "<&>"}); err != nil {
		t.Fatal(err)
	}
	if got, want := rec.Body.String(), `{"data":`+payload+`,"name":"<&>"}`+"\n"; got != want {
		t.Errorf("expected %s, but got %s", want, got)
	}
}

func TestDecodeIsStrict(t *testing.T) {
	for body, field := range map[string]string{
		`{"by":"u","unknown":1}`:            "/unknown",
		`{"By":"u"}`:                        "/By",
		`{"by":"u","by":"v"}`:               "/by",
		`{"by":7}`:                          "/by",
		`{"by":"u"} {}`:                     "",
		`{"by":"u"`:                         "",
		``:                                  "",
		`[]`:                                "",
		"{\"by\":\"\xff\"}":                 "/by",
		`{"data":` + nested(64) + `}`:       "",
		`{"data":` + nested(1_000_000) + ``: "",
		`{"data":{"a":1,"a":2}}`:            "/data/a",
	} {
		var v api.CommandBody
		err := api.Decode([]byte(body), &v)
		var p *api.Problem
		if !errors.As(err, &p) || p.Code != api.InvalidRequest {
			t.Errorf("%.60s: expected invalid_request, but got %v", body, err)
			continue
		}
		if p.Field != field {
			t.Errorf("%.60s: expected the field %q, but got %q: %v", body, field, p.Field, p)
		}
	}
	var v api.CommandBody
	if err := api.Decode([]byte(`{"data":`+nested(62)+`}`), &v); err != nil {
		t.Errorf("expected 63 levels to be read, but: %v", err)
	}
	if err := api.Decode([]byte(`{"by":"brackets [[[[ in \" text"}`), &v); err != nil {
		t.Errorf("expected brackets in text not to count, but: %v", err)
	}
}

func nested(n int) string {
	return string(bytes.Repeat([]byte("["), n)) + string(bytes.Repeat([]byte("]"), n))
}

func TestMediaTypes(t *testing.T) {
	for contentType, ok := range map[string]bool{
		"application/json": true, "application/json; charset=utf-8": true, "Application/JSON;charset=UTF-8": true,
		"": false, "text/plain": false, "application/json; charset=latin1": false, "application/x-www-form-urlencoded": false, "json": false, ";;": false,
	} {
		r := httptest.NewRequest("POST", "/", strings.NewReader("{}"))
		r.Header.Set("Content-Type", contentType)
		if err := api.CheckMediaType(r, "application/json"); (err == nil) != ok {
			t.Errorf("%q: expected ok %v, but got %v", contentType, ok, err)
		}
	}
	r := httptest.NewRequest("POST", "/", strings.NewReader("{}"))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Content-Encoding", "gzip")
	if err := api.CheckMediaType(r, "application/json"); err == nil {
		t.Error("expected a compressed body to be refused")
	}
}

// What fails is told in the log, but not once a request: with the database away it would be as long as the traffic.
func TestFailuresAreLoggedNowAndThen(t *testing.T) {
	var log bytes.Buffer
	h := api.Handler(slog.New(slog.NewTextHandler(&log, nil)), routes()...)
	for range 100 {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/v1/counts", nil))
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "code=internal method=GET path=/v1/counts err=secret") {
		t.Errorf("expected one line with what failed, but got %s", got)
	}
}

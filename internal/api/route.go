package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/opstream/opstream/internal/oftenlog"
	"github.com/opstream/opstream/schemas"
)

// Limits of what is read.
const (
	BodyMax   = schemas.MaxRequestBytes // bytes of a body, and of a line of a batch
	depthMax  = schemas.MaxDepth        // arrays and objects within one another
	headerMax = 32 << 10                // bytes of all header lines
	queryMax  = 16 << 10                // bytes of a query string
)

// Times within which an ordinary request has to arrive and its answer to be taken.
const (
	readTime  = 30 * time.Second
	writeTime = WaitMax + 30*time.Second
)

// Route is one method of one path.
type Route struct {
	Method string
	Path   string   // as openapi.yaml writes it
	Query  []string // the query parameters that it knows
	Body   bool     // it reads a body; without it none is taken
	Stream bool     // it sets its own deadlines, and bounds what it reads itself

	// Handle answers. An error that it returns is written as a problem, unless the answer has begun.
	Handle func(w http.ResponseWriter, r *http.Request) error
}

// Handler serves the routes, and problems for everything else. What routes return that is no problem, and panics, it logs.
//
// It matches paths itself, because http.ServeMux has its own idea of what paths may hold: a segment that is nothing but an
// encoded slash matches no wildcard there, and a path with an empty segment is redirected.
func Handler(log *slog.Logger, routes ...Route) http.Handler {
	methods := map[string]map[string]Route{}
	for _, r := range routes {
		if methods[r.Path] == nil {
			methods[r.Path] = map[string]Route{}
		}
		methods[r.Path][r.Method] = r
	}
	t := &tree{paths: map[int][]path{}}
	for pattern, m := range methods {
		segments := strings.Split(pattern, "/")
		t.paths[len(segments)] = append(t.paths[len(segments)], path{pattern, segments, served(log, m)})
	}
	for _, list := range t.paths {
		// A name before a parameter, so that /v1/a/b is not taken for /v1/a/{id}.
		slices.SortFunc(list, func(a, b path) int {
			for i := range a.segments {
				if x, y := parameter(a.segments[i]), parameter(b.segments[i]); (x == "") != (y == "") {
					if x == "" {
						return -1
					}
					return 1
				}
			}
			return 0
		})
	}
	t.nothing = guarded(log, func(_ http.ResponseWriter, r *http.Request) error {
		return NewProblem(NoSuchPath, "there is nothing at %q", clip(r.URL.Path))
	})
	return t
}

// tree finds the handler of a path.
type tree struct {
	paths   map[int][]path // by number of segments
	nothing http.Handler
}

type path struct {
	pattern  string
	segments []string
	handler  http.Handler
}

// parameter returns the name in "{name}", "" of a segment that stands for itself.
func parameter(segment string) string {
	if strings.HasPrefix(segment, "{") {
		return segment[1 : len(segment)-1]
	}
	return ""
}

// ServeHTTP implements http.Handler.
func (t *tree) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	escaped := r.URL.EscapedPath()
	if strings.Count(escaped, "/") < 16 {
		got := strings.Split(escaped, "/")
		for _, p := range t.paths[len(got)] {
			if p.match(r, got) {
				r.Pattern = p.pattern // for whoever counts
				p.handler.ServeHTTP(w, r)
				return
			}
		}
	}
	t.nothing.ServeHTTP(w, r)
}

// match says whether the path is the request's, and then gives the request its parameters. A parameter is never empty.
func (p *path) match(r *http.Request, got []string) bool {
	for i, segment := range p.segments {
		if segment == got[i] {
			continue
		}
		if parameter(segment) == "" {
			// Some clients encode what they need not.
			if plain, err := url.PathUnescape(got[i]); err != nil || plain != segment {
				return false
			}
		} else if got[i] == "" {
			return false
		}
	}
	for i, segment := range p.segments {
		if name := parameter(segment); name != "" {
			value, err := url.PathUnescape(got[i])
			if err != nil {
				return false
			}
			r.SetPathValue(name, value)
		}
	}
	return true
}

// served picks the route by the method and holds the request against it.
func served(log *slog.Logger, methods map[string]Route) http.Handler {
	var allow []string
	for method, route := range methods {
		allow = append(allow, method)
		if method == http.MethodGet && !route.Stream {
			allow = append(allow, http.MethodHead)
		}
	}
	slices.Sort(allow)
	origin := http.NewCrossOriginProtection()

	return guarded(log, func(w http.ResponseWriter, r *http.Request) error {
		method := r.Method
		if method == http.MethodHead && slices.Contains(allow, http.MethodHead) {
			method = http.MethodGet
		}
		route, ok := methods[method]
		if !ok {
			w.Header().Set("Allow", strings.Join(allow, ", "))
			return NewProblem(MethodNotAllowed, "%s is not one of %s", clip(r.Method), strings.Join(allow, ", "))
		}
		if err := origin.Check(r); err != nil {
			return NewProblem(CrossOrigin, "the browser says that the request comes from a page of another origin")
		}
		if err := checkQuery(r, route.Query); err != nil {
			return err
		}
		if !route.Stream {
			// A writer that knows no deadlines is one of a test.
			rc, now := http.NewResponseController(w), time.Now()
			_ = rc.SetReadDeadline(now.Add(readTime))
			_ = rc.SetWriteDeadline(now.Add(writeTime))
		}
		if !route.Body {
			if err := noBody(r); err != nil {
				return err
			}
		} else if !route.Stream {
			r.Body = http.MaxBytesReader(w, r.Body, BodyMax)
		}
		return route.Handle(w, r)
	})
}

// guarded turns errors and panics into answers, and sets what every answer carries. What fails is logged a line a code every ten seconds.
func guarded(log *slog.Logger, handle func(http.ResponseWriter, *http.Request) error) http.Handler {
	failed := oftenlog.New(log, "a request failed", "code") // all requests may, while a database is away
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w := &writer{ResponseWriter: rw}
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if err, ok := v.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				log.ErrorContext(r.Context(), "a handler panicked", "method", r.Method, "path", clip(r.URL.Path), "err", fmt.Sprint(v), "stack", string(debug.Stack()))
				if !w.begun {
					writeProblem(w, NewProblem(Internal, ""))
					return
				}
			}
			// invariant: net/http's own signal to cut the connection, so that half an answer does not look like a whole one
			panic(http.ErrAbortHandler)
		}()
		err := handle(w, r)
		if err == nil {
			return
		}
		if r.Context().Err() != nil && errors.Is(err, context.Canceled) {
			if !w.begun {
				// Most likely nobody is there any more. But a client may have closed its own side alone, and would be told 200 if
				// nothing was written.
				//
				// invariant: net/http's own signal to cut the connection
				panic(http.ErrAbortHandler)
			}
			return
		}
		p := ProblemOf(err)
		if p.Cause != nil {
			failed.Warn(string(p.Code), slog.String("method", r.Method), slog.String("path", clip(r.URL.Path)), slog.Any("err", p.Cause))
		}
		if !w.begun {
			writeProblem(w, p)
		}
	})
}

// writer remembers whether the answer has begun.
type writer struct {
	http.ResponseWriter
	begun bool
}

func (w *writer) WriteHeader(status int) { w.begun = true; w.ResponseWriter.WriteHeader(status) }

func (w *writer) Write(b []byte) (int, error) { w.begun = true; return w.ResponseWriter.Write(b) }

// Unwrap lets http.ResponseController find the writer below.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// checkQuery refuses what a route does not know, what is given twice, and what cannot be read.
func checkQuery(r *http.Request, known []string) error {
	if len(r.URL.RawQuery) > queryMax {
		return NewProblem(TooLarge, "expected a query string of at most %d bytes, but got %d", queryMax, len(r.URL.RawQuery))
	}
	if r.URL.RawQuery == "" {
		return nil
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return NewProblem(InvalidRequest, "the query string cannot be read: %v", err)
	}
	for _, name := range slices.Sorted(keys(query)) {
		switch values := query[name]; {
		case !slices.Contains(known, name):
			what := "there is none here"
			if len(known) > 0 {
				what = "known here are " + strings.Join(known, ", ")
			}
			return NewProblem(UnknownParameter, "the query parameter %q is not known; %s", clip(name), what).At(clip(name))
		case len(values) > 1:
			return NewProblem(InvalidParameter, "the query parameter %s is given %d times; give it once, with commas where it is a list", name, len(values)).At(name)
		case !utf8.ValidString(values[0]) || strings.ContainsFunc(values[0], func(c rune) bool { return c < ' ' || c == 0x7f }):
			return NewProblem(InvalidParameter, "the query parameter %s holds control characters or is not UTF-8", name).At(name)
		}
	}
	return nil
}

func keys(v url.Values) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range v {
			if !yield(k) {
				return
			}
		}
	}
}

func noBody(r *http.Request) error {
	if r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	if n, _ := io.ReadFull(r.Body, make([]byte, 1)); n > 0 {
		return NewProblem(InvalidRequest, "no body is read here; give what you have to say in the path and the query")
	}
	return nil
}

// CheckMediaType refuses a body that is not of one of the given types, or is encoded.
func CheckMediaType(r *http.Request, types ...string) error {
	got, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset := params["charset"]
	if err != nil || !slices.Contains(types, got) || charset != "" && !strings.EqualFold(charset, "utf-8") {
		return NewProblem(NotJSON, "expected Content-Type %s in UTF-8, but got %q", strings.Join(types, " or "), clip(r.Header.Get("Content-Type"))).At("Content-Type")
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return NewProblem(NotJSON, "expected no Content-Encoding, but got %q", clip(encoding)).At("Content-Encoding")
	}
	return nil
}

// PathName returns a part of the path that names an organization or an operation. Any character may come percent-encoded,
// but what no request can have as its name is refused here, before anybody looks for it.
func PathName(r *http.Request, name string) (string, error) {
	value := r.PathValue(name)
	if err := checkName(value); err != "" {
		return "", NewProblem(InvalidParameter, "expected %s in the path to be at most %d bytes of UTF-8 without control characters, but %s", name, nameMax, err).At(name)
	}
	return value, nil
}

const nameMax = max(schemas.MaxID, schemas.MaxOrganization)

func checkName(s string) string {
	switch {
	case len(s) > nameMax:
		return fmt.Sprintf("it has %d", len(s))
	case !utf8.ValidString(s):
		return "it is not UTF-8"
	case strings.ContainsFunc(s, unicode.IsControl):
		return "it has some"
	}
	return ""
}

// CommandID returns the id under which a second copy of a command is recognised, "" when the caller gave none.
func CommandID(r *http.Request) (string, error) {
	values := r.Header.Values(HeaderIdempotencyKey)
	if len(values) == 0 {
		return "", nil
	}
	if len(values) > 1 || values[0] == "" || len(values[0]) > schemas.MaxID || checkName(values[0]) != "" {
		return "", NewProblem(InvalidParameter, "expected one header %s of 1 to %d bytes without control characters", HeaderIdempotencyKey, schemas.MaxID).At(HeaderIdempotencyKey)
	}
	return values[0], nil
}

// ReadBody reads the whole body of a request with a body of JSON.
func ReadBody(r *http.Request) ([]byte, error) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, ReadError(err)
	}
	return data, nil
}

// ReadError turns what went wrong in reading a body into a problem.
func ReadError(err error) error {
	var large *http.MaxBytesError
	var problem *Problem
	switch {
	case errors.As(err, &problem): // of whoever wraps the body
		return problem
	case errors.As(err, &large):
		return NewProblem(TooLarge, "expected at most %d bytes of body", large.Limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return NewProblem(TooSlow, "the body did not arrive in time")
	}
	return NewProblem(InvalidRequest, "the body ended early")
}

// CheckDepth refuses JSON that is nested deeper than anybody needs, before anything recursive looks at it.
func CheckDepth(data []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > depthMax {
				return NewProblem(InvalidRequest, "expected JSON nested at most %d deep, but it is deeper at byte %d", depthMax, i)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// Decode reads one JSON value strictly: members that the type does not have, members given twice, other capitals and
// anything after the value are refused.
func Decode(data []byte, into any) error {
	if err := CheckDepth(data); err != nil {
		return err
	}
	err := jsonv2.Unmarshal(data, into, jsonv2.RejectUnknownMembers(true))
	if err == nil {
		return nil
	}
	var semantic *jsonv2.SemanticError
	if errors.As(err, &semantic) {
		field := string(semantic.JSONPointer)
		if errors.Is(err, jsonv2.ErrUnknownName) {
			return NewProblem(InvalidRequest, "there is no member %s here", clip(field)).At(clip(field))
		}
		return NewProblem(InvalidRequest, "expected %v at %s, but got %s", semantic.GoType, clip(field), semantic.JSONKind).At(clip(field))
	}
	var syntactic *jsontext.SyntacticError
	if errors.As(err, &syntactic) {
		return NewProblem(InvalidRequest, "the body is not JSON: %v at byte %d", syntactic.Err, syntactic.ByteOffset).At(clip(string(syntactic.JSONPointer)))
	}
	return NewProblem(InvalidRequest, "the body is not JSON")
}

// Encode returns v as a line of JSON. Unlike json.Marshal it leaves <, > and & as they are: nobody reads this as HTML, and payloads
// stay what their senders wrote.
func Encode(v any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// WriteJSON answers with v.
func WriteJSON(w http.ResponseWriter, status int, v any) error {
	body, err := Encode(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that has gone needs no answer
	return nil
}

// NewServer returns a server with the limits of the contract. Its handlers' deadlines are the routes'.
func NewServer(addr string, h http.Handler) *http.Server {
	return &http.Server{
		Addr: addr, Handler: h,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: headerMax,
	}
}

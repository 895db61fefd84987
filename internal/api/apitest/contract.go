// Package apitest holds the routes of opstream's API against its contract: that they serve every path, method and
// parameter of the document and nothing else, that every answer is one that the document describes, and that every status
// it promises is given at least once in a test.
package apitest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/opstream/opstream/internal/api"
)

const documentURL = "https://opstream.test/openapi.json"

// Contract is the document, and what of it was seen.
type Contract struct {
	document map[string]any
	compiler *jsonschema.Compiler
	tag      string

	mu   sync.Mutex
	seen map[string]bool // "GET /v1/counts 200"
}

// Load reads the contract; of the operations only those with the tag count.
func Load(t testing.TB, tag string) *Contract {
	t.Helper()
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(api.OpenAPIJSON))
	if err != nil {
		t.Fatalf("expected openapi.json to be JSON, but: %v", err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.AssertFormat()
	if err := compiler.AddResource(documentURL, value); err != nil {
		t.Fatalf("add the document to the compiler: %v", err)
	}
	return &Contract{document: value.(map[string]any), compiler: compiler, tag: tag, seen: map[string]bool{}}
}

// each calls f for every operation of the tag.
func (c *Contract) each(f func(path, method string, op map[string]any)) {
	for path, item := range c.document["paths"].(map[string]any) {
		for method, op := range item.(map[string]any) {
			op := op.(map[string]any)
			if slices.Contains(op["tags"].([]any), any(c.tag)) {
				f(path, strings.ToUpper(method), op)
			}
		}
	}
}

// Routes checks that the routes are those of the document.
func (c *Contract) Routes(t testing.TB, routes []api.Route) {
	t.Helper()
	served := map[string]api.Route{}
	for _, r := range routes {
		served[r.Method+" "+r.Path] = r
	}
	if len(served) != len(routes) {
		t.Errorf("expected every route once, but %d routes have %d names", len(routes), len(served))
	}
	c.each(func(path, method string, op map[string]any) {
		name := method + " " + path
		route, ok := served[name]
		if !ok {
			t.Errorf("expected %s to be served as the document says, but it is not", name)
			return
		}
		delete(served, name)
		var query []string
		for _, p := range list(op["parameters"]) {
			p := c.resolve(p)
			switch p["in"] {
			case "query":
				query = append(query, p["name"].(string))
			case "path":
				if !strings.Contains(path, "{"+p["name"].(string)+"}") {
					t.Errorf("%s: the document has a path parameter %s that the path has not", name, p["name"])
				}
			}
		}
		got := slices.Sorted(slices.Values(route.Query))
		slices.Sort(query)
		if !slices.Equal(got, query) {
			t.Errorf("%s: expected the query parameters %q of the document, but the route knows %q", name, query, got)
		}
		if _, body := op["requestBody"]; body != route.Body {
			t.Errorf("%s: the document says body %v, but the route says %v", name, body, route.Body)
		}
	})
	for name := range served {
		t.Errorf("expected nothing to be served beside the document, but %s is", name)
	}
}

func list(v any) []any { l, _ := v.([]any); return l }

// resolve follows a $ref.
func (c *Contract) resolve(v any) map[string]any {
	m := v.(map[string]any)
	ref, ok := m["$ref"].(string)
	if !ok {
		return m
	}
	var at any = c.document
	for part := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
		at = at.(map[string]any)[part]
	}
	return c.resolve(at)
}

// Handler serves the routes and holds every answer against the contract.
func (c *Contract) Handler(t testing.TB, routes []api.Route) http.Handler {
	inner := api.Handler(slog.New(slog.NewTextHandler(t.Output(), nil)), routes...)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &tee{ResponseWriter: w, status: http.StatusOK}
		inner.ServeHTTP(rec, r)
		if r.Method != http.MethodHead {
			c.check(t, r, rec.status, rec.Header(), rec.body.Bytes())
		}
	})
}

type tee struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (w *tee) WriteHeader(status int) { w.status = status; w.ResponseWriter.WriteHeader(status) }

func (w *tee) Write(b []byte) (int, error) {
	if w.body.Len() < 1<<20 {
		w.body.Write(b)
	}
	return w.ResponseWriter.Write(b)
}

func (w *tee) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// pattern finds the path of the document that a request's path is an instance of.
func (c *Contract) pattern(r *http.Request) (string, map[string]any) {
	got := strings.Split(r.URL.EscapedPath(), "/")
	var best string
	for path := range c.document["paths"].(map[string]any) {
		want := strings.Split(path, "/")
		if len(want) != len(got) {
			continue
		}
		same := true
		for i := range want {
			same = same && (want[i] == got[i] || strings.HasPrefix(want[i], "{"))
		}
		if same && (best == "" || strings.Count(path, "{") < strings.Count(best, "{")) {
			best = path
		}
	}
	if best == "" {
		return "", nil
	}
	return best, c.document["paths"].(map[string]any)[best].(map[string]any)
}

func (c *Contract) check(t testing.TB, r *http.Request, status int, header http.Header, body []byte) {
	path, item := c.pattern(r)
	op, _ := item[strings.ToLower(r.Method)].(map[string]any)
	name := fmt.Sprintf("%s %s %d", r.Method, path, status)
	responsePath := "#/components/responses/Problem"
	var response map[string]any
	if op == nil {
		if status != http.StatusNotFound && status != http.StatusMethodNotAllowed {
			t.Errorf("%s %s: expected 404 or 405 where the document has nothing, but got %d", r.Method, r.URL, status)
		}
		response = c.resolve(map[string]any{"$ref": responsePath})
	} else {
		responses := op["responses"].(map[string]any)
		code := strconv.Itoa(status)
		if responses[code] == nil {
			code = "default"
		}
		if responses[code] == nil {
			t.Errorf("%s: the document does not describe this status", name)
			return
		}
		c.mu.Lock()
		c.seen[name] = true
		c.mu.Unlock()
		if ref, ok := responses[code].(map[string]any)["$ref"].(string); ok {
			responsePath = ref
		} else {
			responsePath = "#/paths/" + escapePointer(path) + "/" + strings.ToLower(r.Method) + "/responses/" + code
		}
		response = c.resolve(responses[code])
	}

	mediaType, _, _ := mime.ParseMediaType(header.Get("Content-Type"))
	content, _ := response["content"].(map[string]any)
	media, ok := content[mediaType].(map[string]any)
	if !ok {
		t.Errorf("%s: expected a media type of the document, but got %q: %s", name, mediaType, body)
		return
	}
	for required, headers := range map[string][]string{"Opstream-As-Of": {"Opstream-As-Of", "Opstream-Lag-Ms"}} {
		described, _ := response["headers"].(map[string]any)
		if described[required] == nil {
			continue
		}
		for _, h := range headers {
			if _, ok := header[http.CanonicalHeaderKey(h)]; !ok {
				t.Errorf("%s: expected the header %s", name, h)
			}
		}
	}
	if (status == 429 || status == 503) && mediaType == api.ProblemType && header.Get("Retry-After") == "" {
		t.Errorf("%s: expected the header Retry-After", name)
	}
	if status < 300 && response["headers"] != nil && response["headers"].(map[string]any)["Opstream-Position"] != nil {
		if _, err := api.ParsePosition(header.Get("Opstream-Position")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if media["schema"] == nil || !strings.HasSuffix(mediaType, "json") {
		return
	}
	schema, err := c.compile(responsePath + "/content/" + escapePointer(mediaType) + "/schema")
	if err != nil {
		t.Errorf("%s: the document's schema cannot be compiled: %v", name, err)
		return
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		t.Errorf("%s: expected JSON, but got %q", name, body)
		return
	}
	if err := schema.Validate(value); err != nil {
		t.Errorf("%s: the answer is not as the document says: %v\n%s", name, err, body)
	}
	if p, ok := value.(map[string]any); ok && mediaType == api.ProblemType && fmt.Sprint(p["status"]) != strconv.Itoa(status) {
		t.Errorf("%s: the problem says status %v", name, p["status"])
	}
}

// compile compiles a part of the document; answers may be checked by many goroutines.
func (c *Contract) compile(pointer string) (*jsonschema.Schema, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.compiler.Compile(documentURL + pointer)
}

func escapePointer(s string) string {
	s = strings.ReplaceAll(strings.ReplaceAll(s, "~", "~0"), "/", "~1")
	return strings.ReplaceAll(strings.ReplaceAll(s, "{", "%7B"), "}", "%7D")
}

// Covered checks that every status that the document promises for the tag's operations was given.
func (c *Contract) Covered(t testing.TB) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var missing []string
	c.each(func(path, method string, op map[string]any) {
		for code := range op["responses"].(map[string]any) {
			if name := method + " " + path + " " + code; code != "default" && !c.seen[name] {
				missing = append(missing, name)
			}
		}
	})
	slices.Sort(missing)
	if len(missing) > 0 {
		t.Errorf("expected every documented status to be given in a test, but these were not:\n%s", strings.Join(missing, "\n"))
	}
}

// Sound checks that every reference of the document leads somewhere, that every schema can be compiled, and that no
// component is left that nothing refers to.
func (c *Contract) Sound(t testing.TB) {
	t.Helper()
	used := map[string]bool{}
	var walk func(at string, v any)
	walk = func(at string, v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				used[ref] = true
				if !c.leads(ref) {
					t.Errorf("%s: expected %s to lead somewhere, but it does not", at, ref)
				}
			}
			for name, member := range v {
				walk(at+"/"+name, member)
			}
		case []any:
			for i, member := range v {
				walk(at+"/"+strconv.Itoa(i), member)
			}
		}
	}
	walk("#", c.document)
	for group, members := range c.document["components"].(map[string]any) {
		for name := range members.(map[string]any) {
			ref := "#/components/" + group + "/" + name
			// Events carry changes, and lines of a batch are lines: neither is the body of an answer.
			if !used[ref] && name != "Change" && name != "BatchLine" {
				t.Errorf("expected %s to be used, but nothing refers to it", ref)
			}
			if group != "schemas" {
				continue
			}
			if _, err := c.compile(ref); err != nil {
				t.Errorf("%s: %v", ref, err)
			}
		}
	}
}

func (c *Contract) leads(ref string) bool {
	var at any = c.document
	for part := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
		m, _ := at.(map[string]any)
		if at = m[part]; at == nil {
			return false
		}
	}
	return true
}

// Valid checks that a JSON value is as the named schema of the document says.
func (c *Contract) Valid(t testing.TB, schema string, data []byte) {
	t.Helper()
	s, err := c.compile("#/components/schemas/" + schema)
	if err != nil {
		t.Fatalf("compile the schema %s: %v", schema, err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Errorf("expected JSON, but got %q", data)
		return
	}
	if err := s.Validate(value); err != nil {
		t.Errorf("expected a %s, but: %v\n%s", schema, err, data)
	}
}

// Answer is an answer that was read.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Problem decodes the answer as a problem.
func (a Answer) Problem(t testing.TB) *api.Problem {
	t.Helper()
	p := &api.Problem{}
	if err := json.Unmarshal(a.Body, p); err != nil {
		t.Fatalf("expected a problem, but got %d %q", a.Status, a.Body)
	}
	return p
}

// Into decodes the answer.
func (a Answer) Into(t testing.TB, v any) {
	t.Helper()
	if err := json.Unmarshal(a.Body, v); err != nil {
		t.Fatalf("expected JSON, but got %d %q", a.Status, a.Body)
	}
}

// Do serves one request. Headers are pairs of name and value.
func Do(t testing.TB, h http.Handler, method, target, body string, headers ...string) Answer {
	t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	r := httptest.NewRequestWithContext(t.Context(), method, target, reader)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return Answer{w.Code, w.Header(), w.Body.Bytes()}
}

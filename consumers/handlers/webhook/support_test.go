package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"sync"
	"testing"

	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/retry"
)

var _ worker.Handler = (*Handler)(nil)

// rawKey is the key of the vectors: the bytes 0 to 31.
var rawKey = func() []byte {
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(i)
	}
	return key
}()

const prefixedKey = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

// open is a configuration that reaches the servers of tests.
func open() Config { return Config{AllowPrivate: true, AllowPlain: true} }

func newHandler(t testing.TB, cfg Config) *Handler {
	t.Helper()
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func serve(t testing.TB, f http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return s
}

// opOf is an operation with the given data, as alternating keys and values.
func opOf(t testing.TB, pairs ...any) *worker.Operation {
	t.Helper()
	members := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		members[pairs[i].(string)] = pairs[i+1]
	}
	b, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	return &worker.Operation{Organization: "contoso", ID: "op-1", Type: "system-event", Attempt: 1, Data: b}
}

// classified is what the worker would make of an error.
type classified struct {
	class    retry.Class
	code     string
	number   int32
	friendly string
}

func classify(err error) (c classified) {
	var e *worker.Error
	for at := err; errors.As(at, &e); at = e.Err {
		if c.class == retry.Unknown {
			c.class = e.Class
		}
		if c.code == "" {
			c.code = e.Code
		}
		if c.number == 0 {
			c.number = e.ErrorCode
		}
		if c.friendly == "" {
			c.friendly = e.Friendly
		}
	}
	if c.class == retry.Unknown && c.number == 0 {
		c.class = retry.Again
	}
	return c
}

// outcome says in a few words what an answer of Handle is.
func outcome(result any, err error) string {
	var yield *worker.YieldError
	switch {
	case errors.As(err, &yield):
		return "yield"
	case err != nil:
		c := classify(err)
		return c.class.String() + " " + c.code
	}
	b, err := json.Marshal(result)
	if err != nil {
		return "not JSON: " + err.Error()
	}
	return string(b)
}

// progress keeps what a handler shows to people.
type progress struct {
	mu  sync.Mutex
	all []string
}

func (p *progress) Progress(_ context.Context, v json.RawMessage) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, string(v))
	return nil
}

func (p *progress) SaveCheckpoint(context.Context, json.RawMessage) error { return nil }

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func readAll(t testing.TB, r io.Reader) string {
	b, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

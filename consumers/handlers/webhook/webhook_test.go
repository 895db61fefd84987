package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 123456000, time.UTC)

func TestTheCallOnTheWire(t *testing.T) {
	var got http.Header
	var body, line string
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got, body, line = r.Header.Clone(), readAll(t, r.Body), r.Method+" "+r.RequestURI+" "+r.Host
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		_, _ = w.Write([]byte(`{"done": true}`))
	})
	cfg := open()
	cfg.Now = func() time.Time { return noon }
	cfg.Secrets = func(_ context.Context, organization, name string) ([][]byte, error) {
		if organization != "contoso" || name != "hooks" {
			t.Errorf("asked for %q of %q", name, organization)
		}
		return [][]byte{[]byte(prefixedKey)}, nil
	}
	h := newHandler(t, cfg)
	op := opOf(t, "url", s.URL+"/a%20b?x=1&y=2", "secretName", "hooks", "headers", map[string]string{"x-team": "sales west"})
	op.Attempt = 3
	// Not compact, and so not what a JSON library would write.
	op.Data = append(bytes.TrimSuffix(op.Data, []byte("}")), `,"payload": {"n" : 1.50, "s":"é"}}`...)
	result, err := h.Handle(t.Context(), op)
	if outcome(result, err) != `{"status":200,"body":{"done":true}}` {
		t.Errorf("got %s, %v", outcome(result, err), err)
	}
	const sent = `{"n" : 1.50, "s":"é"}`
	if body != sent {
		t.Errorf("expected the payload byte for byte, but got %s", body)
	}
	if want := "POST /a%20b?x=1&y=2 " + strings.TrimPrefix(s.URL, "http://"); line != want {
		t.Errorf("got %s, want %s", line, want)
	}
	want := map[string]string{
		"Ce-Specversion": "1.0", "Ce-Id": "op-1", "Ce-Type": "opstream.plugin.execute.v1", "Ce-Source": "/organizations/contoso",
		"Ce-Time": "2026-11-23T12:00:00.123456Z", "Content-Type": "application/json", "Content-Length": fmt.Sprint(len(sent)),
		"Webhook-Id": "contoso/op-1", "Webhook-Timestamp": "1795435200", "Webhook-Signature": sign(rawKey, "contoso/op-1", "1795435200", []byte(sent)),
		"Idempotency-Key": "contoso/op-1", "Opstream-Attempt": "3", "User-Agent": "opstream-webhook/1", "X-Team": "sales west",
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if len(got[name]) != 1 || got[name][0] != want[name] {
			t.Errorf("%s: got %q, want %q", name, got[name], want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	if id, err := Verify(got, []byte(body), noon, 0, rawKey); err != nil || id != "contoso/op-1" {
		t.Errorf("verifying gives %q, %v", id, err)
	}
}

func TestNamesThatHeadersCannotHold(t *testing.T) {
	var got http.Header
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Clone() })
	h := newHandler(t, open())
	op := opOf(t, "url", s.URL, "type", "Geschäft \"neu\"", "method", "PUT", "headers", map[string]string{"User-Agent": "mine"})
	op.Organization, op.ID = "a/b c%", "Ö\r\nX-Evil: 1.5"
	op.Request = &operation.Request{Context: &operation.Context{RegardingType: "account", RegardingID: "17 €"}}
	if out := outcome(h.Handle(t.Context(), op)); out != `{"status":200}` {
		t.Fatal(out)
	}
	for name, want := range map[string]string{
		"Ce-Id": "%C3%96%0D%0AX-Evil:%201.5", "Ce-Type": "Gesch%C3%A4ft%20%22neu%22", "Ce-Source": "/organizations/a%252Fb%2520c%2525",
		"Ce-Subject": "account/17%20%E2%82%AC", "User-Agent": "mine", "Content-Type": "", "X-Evil": "", "Webhook-Signature": "",
		"Webhook-Id": encode(op.OperationKey(), "."),
	} {
		if got.Get(name) != want {
			t.Errorf("%s: got %q, want %q", name, got.Get(name), want)
		}
	}
	if strings.Contains(got.Get("Webhook-Id"), ".") {
		t.Errorf("expected no full stop in the id, but it is %q", got.Get("Webhook-Id"))
	}
}

func TestTheSameIDInEveryAttempt(t *testing.T) {
	var ids, keys, attempts []string
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		ids, keys = append(ids, r.Header.Get("Webhook-Id")), append(keys, r.Header.Get("Idempotency-Key"))
		attempts = append(attempts, r.Header.Get("Opstream-Attempt"))
	})
	h := newHandler(t, open())
	op := opOf(t, "url", s.URL)
	for op.Attempt = 1; op.Attempt <= 3; op.Attempt++ {
		if _, err := h.Handle(t.Context(), op); err != nil {
			t.Fatal(err)
		}
	}
	if len(slices.Compact(ids)) != 1 || len(slices.Compact(keys)) != 1 || len(slices.Compact(attempts)) != 3 {
		t.Errorf("expected one id, one key and three attempts, but got %q, %q and %q", ids, keys, attempts)
	}
}

func TestWhatAStatusMeans(t *testing.T) {
	classes := map[int]string{
		200: "", 201: "", 202: "", 204: "", 299: "",
		300: "fail webhook_redirected", 301: "fail webhook_redirected", 302: "fail webhook_redirected", 304: "fail webhook_redirected", 307: "fail webhook_redirected", 308: "fail webhook_redirected",
		400: "fail webhook_rejected", 401: "suspend webhook_unauthorized", 402: "fail webhook_rejected", 403: "suspend webhook_unauthorized",
		404: "fail webhook_rejected", 407: "suspend webhook_unauthorized", 408: "retry webhook_busy", 409: "fail webhook_rejected",
		410: "fail webhook_gone", 422: "fail webhook_rejected", 425: "retry webhook_busy", 429: "retry webhook_busy", 499: "fail webhook_rejected",
		500: "retry webhook_server_error", 501: "retry webhook_server_error", 503: "retry webhook_server_error", 599: "retry webhook_server_error",
		600: "fail webhook_protocol", 999: "fail webhook_protocol",
	}
	var status, calls atomic.Int64
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(int(status.Load()))
	})
	h := newHandler(t, open())
	for code, want := range classes {
		if want == "" {
			want = fmt.Sprintf(`{"status":%d}`, code)
		}
		status.Store(int64(code))
		result, err := h.Handle(t.Context(), opOf(t, "url", s.URL, "payload", 1))
		if got := outcome(result, err); got != want {
			t.Errorf("%d: got %s, want %s", code, got, want)
		}
		if err == nil {
			continue
		}
		c := classify(err)
		if c.number != -2147204346 || c.friendly == "" || !strings.Contains(err.Error(), fmt.Sprint(code)) {
			t.Errorf("%d: got %+v, %q", code, c, err)
		}
	}
	if int(calls.Load()) != len(classes) {
		t.Errorf("expected one call each, and no redirect followed, but there were %d calls for %d", calls.Load(), len(classes))
	}
}

func TestRetryAfter(t *testing.T) {
	for _, c := range []struct {
		status     int
		header     string
		checkpoint string
		wait       time.Duration // 0: an ordinary failure
		yields     int
	}{
		{429, "120", "", 2 * time.Minute, 1},
		{503, "2", "", 2 * time.Second, 1},
		{500, "30", "", 30 * time.Second, 1},
		{408, "30", "", 30 * time.Second, 1},
		{429, "Mon, 23 Nov 2026 12:10:00 GMT", "", 10*time.Minute - 123456*time.Microsecond, 1},
		{429, "7200", "", time.Hour, 1},
		{429, "99999999999999999999999", "", time.Hour, 1},
		{429, "Fri, 31 Dec 9999 23:59:59 GMT", "", time.Hour, 1},
		{429, "60", `{"yields":1}`, time.Minute, 2},
		{429, "60", `{"yields":9}`, time.Minute, 10},
		{429, "60", `"of another handler"`, time.Minute, 1},

		{429, "60", `{"yields":10}`, 0, 0},
		{429, "60", `{"yields":11}`, 0, 0},
		{429, "60", `{"yields":-1}`, 0, 0},
		{429, "1", "", 0, 0},
		{429, "0", "", 0, 0},
		{429, "-60", "", 0, 0},
		{429, "1.5", "", 0, 0},
		{429, "soon", "", 0, 0},
		{429, "", "", 0, 0},
		{429, "Mon, 23 Nov 2026 11:00:00 GMT", "", 0, 0},
		{400, "60", "", 0, 0},
		{401, "60", "", 0, 0},
		{301, "60", "", 0, 0},
	} {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", c.header)
			w.WriteHeader(c.status)
		})
		cfg := open()
		cfg.Now = func() time.Time { return noon }
		h := newHandler(t, cfg)
		op := opOf(t, "url", s.URL)
		op.Checkpoint = json.RawMessage(c.checkpoint)
		shown := &progress{}
		op.Bind(shown)
		_, err := h.Handle(t.Context(), op)
		var yield *worker.YieldError
		if !errors.As(err, &yield) {
			if c.wait != 0 || len(shown.all) != 0 {
				t.Errorf("%d %q %s: got %v", c.status, c.header, c.checkpoint, err)
			}
			continue
		}
		if got := yield.Until.Sub(noon); got != c.wait || yield.Checkpoint != (checkpoint{c.yields}) {
			t.Errorf("%d %q %s: waits %s with %v", c.status, c.header, c.checkpoint, got, yield.Checkpoint)
		}
		if len(shown.all) != 1 || !strings.Contains(shown.all[0], fmt.Sprintf(`"status":%d`, c.status)) {
			t.Errorf("%d %q: people see %q", c.status, c.header, shown.all)
		}
	}
}

// A receiver that always says "later" is asked ten times more, and then as often as the policy says.
func TestLaterForEver(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "60")
		w.WriteHeader(429)
	})
	h := newHandler(t, open())
	op := opOf(t, "url", s.URL)
	said := ""
	for range 14 {
		_, err := h.Handle(t.Context(), op)
		var yield *worker.YieldError
		if errors.As(err, &yield) {
			said += "y"
			op.Checkpoint, _ = json.Marshal(yield.Checkpoint)
		} else if classify(err).class == retry.Again {
			said += "r"
		}
	}
	if said != "yyyyyyyyyyrrrr" {
		t.Errorf("got %s", said)
	}
}

func TestResults(t *testing.T) {
	large := `"` + strings.Repeat("x", maxAnswerBody-2) + `"`
	for _, c := range []struct{ name, kind, body, want string }{
		{"object", "application/json", `{"a": [1]}`, `{"status":200,"body":{"a":[1]}}`},
		{"with parameter", "Application/JSON ; charset=utf-8", `null`, `{"status":200,"body":null}`},
		{"suffix", "application/problem+json", `1`, `{"status":200,"body":1}`},
		{"nothing", "application/json", ``, `{"status":200}`},
		{"text", "text/plain", `{}`, `{"status":200,"omitted":"not_json"}`},
		{"looks like it", "text/x+json", `{}`, `{"status":200,"omitted":"not_json"}`},
		{"broken", "application/json", `{"a":`, `{"status":200,"omitted":"not_json"}`},
		{"two values", "application/json", `1 2`, `{"status":200,"omitted":"not_json"}`},
		{"named twice", "application/json", `{"a":1,"a":2}`, `{"status":200,"omitted":"not_json"}`},
		{"half a pair", "application/json", `"\ud800"`, `{"status":200,"omitted":"not_json"}`},
		{"deep", "application/json", strings.Repeat("[", 1000) + strings.Repeat("]", 1000), `{"status":200,"omitted":"not_json"}`},
		{"not UTF-8", "application/json", "\"\xff\"", `{"status":200,"omitted":"not_json"}`},
		{"as large as may be", "application/json", large, `{"status":200,"body":` + large + `}`},
		{"too large", "application/json", large + " ", `{"status":200,"omitted":"too_large"}`},
	} {
		for _, chunked := range []bool{false, true} {
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", c.kind)
				if chunked {
					w.WriteHeader(200)
					w.(http.Flusher).Flush()
				} else {
					w.Header().Set("Content-Length", fmt.Sprint(len(c.body)))
				}
				_, _ = io.WriteString(w, c.body)
			})
			h := newHandler(t, open())
			if got := outcome(h.Handle(t.Context(), opOf(t, "url", s.URL))); got != c.want {
				t.Errorf("%s, chunked %v: got %.100s, want %.100s", c.name, chunked, got, c.want)
			}
		}
	}
}

func TestWhatAnErrorShowsOfTheAnswer(t *testing.T) {
	for body, want := range map[string]string{
		"no such account":                     "no such account",
		" two\r\n\tlines\x00\x1b[31m ":        "two lines [31m",
		"right\u202eto\u200bleft":             "right to left",
		"latin \xe9":                          "latin ?",
		strings.Repeat("a", 1023) + "éb":      strings.Repeat("a", 1023),
		strings.Repeat("b", 5000):             strings.Repeat("b", 1024),
		strings.Repeat("\x80", 3000):          "",
		strings.Repeat("c", maxAnswerBody*2):  strings.Repeat("c", 1024),
		"<html>\n<b>" + "Not &amp; there</b>": "<html> <b>Not &amp; there</b>",
	} {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(404)
			_, _ = io.WriteString(w, body)
		})
		h := newHandler(t, open())
		_, err := h.Handle(t.Context(), opOf(t, "url", s.URL))
		prefix := "webhook: " + strings.TrimPrefix(s.URL, "http://") + " answered 404 Not Found"
		if want != "" {
			prefix += ": "
		}
		if err == nil || err.Error() != prefix+want {
			t.Errorf("%.40q: got %.200q", body, err)
		}
	}
}

func TestDataThatIsRefused(t *testing.T) {
	const good = "https://hooks.example.com/"
	header := func(name, value string) []any { return []any{"url", good, "headers", map[string]string{name: value}} }
	many := map[string]string{}
	for i := range maxHeaders + 1 {
		many[fmt.Sprintf("X-%d", i)] = ""
	}
	cases := [][]any{
		{},
		{"url", ""},
		{"url", "hooks.example.com"},
		{"url", "//hooks.example.com/"},
		{"url", "ftp://hooks.example.com/"},
		{"url", "file:///etc/passwd"},
		{"url", "gopher://hooks.example.com/"},
		{"url", "http://hooks.example.com/"},
		{"url", "https://"},
		{"url", "https:hooks.example.com"},
		{"url", "https:///path"},
		{"url", "https://:443/"},
		{"url", "https://user@hooks.example.com/"},
		{"url", "https://user:word@hooks.example.com/"},
		{"url", "https://hooks.example.com/#part"},
		{"url", "https://hooks.example.com:0/"},
		{"url", "https://hooks.example.com:65536/"},
		{"url", "https://hooks.example.com:8443/"},
		{"url", "https://hooks.example.com:x/"},
		{"url", "https://hooks.example.com/\r\nX: 1"},
		{"url", "https://hooks.example.com /"},
		{"url", "https://hooks.example.com\\@evil/"},
		{"url", "https://[2606:4700::1111%25eth0]/"},
		{"url", good + strings.Repeat("x", maxURL)},
		{"url", 1},
		{"url", good, "method", "GET"},
		{"url", good, "method", "post"},
		{"url", good, "method", "POST / HTTP/1.1\r\n"},
		{"url", good, "secret", "whsec_in_data"},
		{"url", good, "secretName", strings.Repeat("n", maxAttribute+1)},
		{"url", good, "secretName", "a\nb"},
		{"url", good, "type", "a\x00b"},
		{"url", good, "subject", strings.Repeat("s", maxAttribute+1)},
		{"url", good, "timeoutSeconds", 0},
		{"url", good, "timeoutSeconds", -1},
		{"url", good, "timeoutSeconds", 121},
		{"url", good, "timeoutSeconds", 1e300},
		{"url", good, "headers", many},
		{"url", good, "headers", map[string]string{"X-A": "1", "x-a": "2"}},
		header("X-Long", strings.Repeat("v", maxHeaderBytes)),
		header("", "v"), header("X Y", "v"), header("X:Y", "v"), header("X\r\nY", "v"), header("Ünder", "v"), header("(X)", "v"),
		header("X", "a\r\nY: b"), header("X", "a\nb"), header("X", "a\x00"), header("X", "a\x7f"), header("X", "é"),
		header("host", "v"), header("Connection", "close"), header("keep-alive", "v"), header("Proxy-Connection", "v"), header("TE", "v"),
		header("trailer", "v"), header("Transfer-Encoding", "chunked"), header("upgrade", "h2c"), header("Content-Length", "3"), header("Expect", "100-continue"),
		header("content-type", "text/plain"), header("Content-Encoding", "gzip"), header("Accept-Encoding", "gzip"), header("HTTP2-Settings", "v"),
		header("Ce-Id", "v"), header("CE-anything", "v"), header("webhook-signature", "v"), header("WEBHOOK-other", "v"), header("opstream-attempt", "v"),
		header("Idempotency-Key", "v"), header("x-idempotency-key", "v"), header("Authorization", "Bearer v"), header("Proxy-Authorization", "v"), header("cookie", "v"),
	}
	silent := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		t.Error("expected nothing to be looked up")
		return nil, errors.New("no network in this test")
	}}
	h := newHandler(t, Config{Resolver: silent, Ports: []uint16{443}})
	for _, pairs := range cases {
		_, err := h.Handle(t.Context(), opOf(t, pairs...))
		if got := outcome(nil, err); err == nil || got != "fail invalid_data" {
			t.Errorf("%v: got %s", pairs, got)
		}
		if err != nil && (strings.Contains(err.Error(), "in_data") || strings.Contains(err.Error(), "Bearer v")) {
			t.Errorf("expected the error to hold no secret, but it says %q", err)
		}
	}
	for _, literal := range []string{"https://10.0.0.1/", "https://[::1]/", "https://[::ffff:10.0.0.1]/"} {
		if got := outcome(h.Handle(t.Context(), opOf(t, "url", literal))); got != "fail webhook_address_refused" {
			t.Errorf("%s: got %s", literal, got)
		}
	}
	anyPort := newHandler(t, Config{Resolver: silent})
	for _, address := range []string{"https://hooks.example.com:0/", "https://hooks.example.com:65536/"} {
		if got := outcome(anyPort.Handle(t.Context(), opOf(t, "url", address))); got != "fail invalid_data" {
			t.Errorf("%s: got %s", address, got)
		}
	}
	op := opOf(t)
	op.Data = nil
	if got := outcome(h.Handle(t.Context(), op)); got != "fail invalid_data" {
		t.Errorf("no data: got %s", got)
	}
}

func TestSecrets(t *testing.T) {
	var got http.Header
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Clone() })
	old := bytes.Repeat([]byte("o"), 40)
	stores := map[string]func() ([][]byte, error){
		"one":     func() ([][]byte, error) { return [][]byte{rawKey}, nil },
		"two":     func() ([][]byte, error) { return [][]byte{rawKey, old}, nil },
		"none":    func() ([][]byte, error) { return nil, nil },
		"short":   func() ([][]byte, error) { return [][]byte{rawKey, []byte("hunter2")}, nil },
		"empty":   func() ([][]byte, error) { return [][]byte{{}}, nil },
		"many":    func() ([][]byte, error) { return slices.Repeat([][]byte{rawKey}, maxKeys+1), nil },
		"broken":  func() ([][]byte, error) { return nil, errors.New("store is down") },
		"decided": func() ([][]byte, error) { return nil, worker.Suspend(errors.New("store is sealed")) },
	}
	cfg := open()
	cfg.Secrets = func(_ context.Context, _, name string) ([][]byte, error) { return stores[name]() }
	h := newHandler(t, cfg)
	for name, want := range map[string]string{
		"one": `{"status":200}`, "two": `{"status":200}`, "none": "suspend webhook_secret", "short": "suspend webhook_secret", "empty": "suspend webhook_secret",
		"many": "suspend webhook_secret", "broken": "retry webhook_secret", "decided": "suspend webhook_secret",
	} {
		got = nil
		result, err := h.Handle(t.Context(), opOf(t, "url", s.URL, "secretName", name, "payload", "x"))
		if out := outcome(result, err); out != want {
			t.Errorf("%s: got %s, want %s", name, out, want)
		}
		if err != nil && (got != nil || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%s: expected no call and no secret in %q", name, err)
		}
		if name == "two" {
			// A receiver that has changed over, one that has not, and one in between.
			for _, keys := range [][][]byte{{rawKey}, {old}, {old, rawKey}} {
				if _, err := Verify(got, []byte(`"x"`), time.Now(), 0, keys...); err != nil {
					t.Errorf("with %d keys: %v", len(keys), err)
				}
			}
		}
	}

	if out := outcome(newHandler(t, open()).Handle(t.Context(), opOf(t, "url", s.URL, "secretName", "one"))); out != "suspend webhook_secret" {
		t.Errorf("without a store: %s", out)
	}
	strict := open()
	strict.RequireSignature = true
	if out := outcome(newHandler(t, strict).Handle(t.Context(), opOf(t, "url", s.URL))); out != "fail invalid_data" {
		t.Errorf("without a name: %s", out)
	}
}

func TestAuthorize(t *testing.T) {
	var got http.Header
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Clone() })
	cfg := open()
	var fails error
	cfg.Authorize = func(_ context.Context, organization, name string, h http.Header) error {
		h.Set("Authorization", "Bearer "+organization+name)
		h.Set("Webhook-Id", "forged")
		return fails
	}
	h := newHandler(t, cfg)
	if out := outcome(h.Handle(t.Context(), opOf(t, "url", s.URL))); out != `{"status":200}` || got.Get("Authorization") != "Bearer contoso" || got.Get("Webhook-Id") != "contoso/op-1" {
		t.Errorf("got %s, %v", out, got)
	}
	fails = errors.New("no token")
	if out := outcome(h.Handle(t.Context(), opOf(t, "url", s.URL))); out != "retry webhook_secret" {
		t.Errorf("got %s", out)
	}
}

func TestCertificates(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // it complains of the handshakes that are to fail
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	trusted := x509.NewCertPool()
	trusted.AddCert(s.Certificate())
	// The certificate of httptest is for example.com and 127.0.0.1.
	inside := nameServer(t, func(string) netip.Addr { return netip.MustParseAddr("127.0.0.1") })

	for _, c := range []struct {
		name, host string
		tls        *tls.Config
		want       string
	}{
		{"trusted", "example.com", &tls.Config{RootCAs: trusted}, `{"status":204}`},
		{"unknown authority", "example.com", nil, "suspend webhook_certificate"},
		{"another name", "hooks.example.org", &tls.Config{RootCAs: trusted}, "suspend webhook_certificate"},
		{"expired", "example.com", &tls.Config{RootCAs: trusted, Time: func() time.Time { return time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC) }}, "suspend webhook_certificate"},
		{"version", "example.com", &tls.Config{RootCAs: trusted, MaxVersion: tls.VersionTLS10, MinVersion: tls.VersionTLS10}, "retry webhook_unreachable"},
	} {
		h := newHandler(t, Config{AllowPrivate: true, TLS: c.tls, Resolver: inside})
		result, err := h.Handle(t.Context(), opOf(t, "url", "https://"+c.host+":"+port+"/"))
		if got := outcome(result, err); got != c.want {
			t.Errorf("%s: got %s (%v), want %s", c.name, got, err, c.want)
		}
	}

	plain := serve(t, func(http.ResponseWriter, *http.Request) {})
	h := newHandler(t, open())
	if got := outcome(h.Handle(t.Context(), opOf(t, "url", strings.Replace(plain.URL, "http:", "https:", 1)))); got != "retry webhook_unreachable" {
		t.Errorf("a plain server: got %s", got)
	}
}

func TestNoAnswer(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	broken := raw(t, "")
	garbage := raw(t, "SSH-2.0-OpenSSH_9\x1b[31m\r\n")
	headers := raw(t, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", maxAnswerHeader*2)+"\r\n\r\n")
	switching := raw(t, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")

	h := newHandler(t, open())
	for _, c := range []struct{ name, address, want string }{
		{"nobody listens", closed.Addr().String(), "retry webhook_unreachable"},
		{"hangs up", broken, "retry webhook_unreachable"},
		{"not HTTP", garbage, "retry webhook_unreachable"},
		{"endless headers", headers, "retry webhook_unreachable"},
		{"switches protocols", switching, "fail webhook_protocol"},
	} {
		result, err := h.Handle(t.Context(), opOf(t, "url", "http://"+c.address+"/path?token=hidden"))
		if got := outcome(result, err); got != c.want {
			t.Errorf("%s: got %s (%v), want %s", c.name, got, err, c.want)
		}
		if err != nil && (strings.Contains(err.Error(), "hidden") || strings.Contains(err.Error(), "\x1b")) {
			t.Errorf("%s: expected a clean error without the path, but it is %q", c.name, err)
		}
	}

	lost := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("name server 10.9.8.7 is down")
	}}
	cfg := open()
	cfg.Resolver = lost
	_, err = newHandler(t, cfg).Handle(t.Context(), opOf(t, "url", "http://hooks.example.com/"))
	if got := outcome(nil, err); got != "retry webhook_unreachable" || strings.Contains(err.Error(), "10.9.8.7") {
		t.Errorf("no name server: got %s (%v), expected a failure that does not show our network", got, err)
	}
}

func TestNoSuchName(t *testing.T) {
	cfg := open()
	cfg.Resolver = nameServer(t, func(string) netip.Addr { return netip.Addr{} })
	_, err := newHandler(t, cfg).Handle(t.Context(), opOf(t, "url", "http://hooks.example.com/"))
	if got := outcome(nil, err); got != "retry webhook_unreachable" || !strings.Contains(err.Error(), "no such name") {
		t.Errorf("got %s (%v)", got, err)
	}
}

// raw is a server that reads a little, says what it is told to, and hangs up.
func raw(t *testing.T, says string) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, says)
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = l.Close(); served.Wait() })
	return l.Addr().String()
}

func TestTimeouts(t *testing.T) {
	mute, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, and nobody answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mute.Close() })
	short := func(set func(*Config)) *Handler {
		cfg := open()
		set(&cfg)
		return newHandler(t, cfg)
	}
	const limit = 20 * time.Millisecond
	for _, c := range []struct {
		name, scheme, says string
		h                  *Handler
		more               []any
	}{
		{"data's own limit", "http", "within 20ms", short(func(*Config) {}), []any{"timeoutSeconds", limit.Seconds()}},
		{"whole call", "http", "within 20ms", short(func(c *Config) { c.Timeout = limit }), nil},
		{"handshake", "https", "handshake timeout", short(func(c *Config) { c.TLSTimeout = limit }), nil},
		{"header", "http", "awaiting response headers", short(func(c *Config) { c.HeaderTimeout = limit }), nil},
	} {
		result, err := c.h.Handle(t.Context(), opOf(t, slices.Concat([]any{"url", c.scheme + "://" + mute.Addr().String()}, c.more)...))
		if got := outcome(result, err); got != "retry webhook_timeout" || classify(err).number != retry.CodeNetwork || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %s (%v)", c.name, got, err)
		}
	}
}

// The status decides even when the body never ends.
func TestSlowAndEndlessBodies(t *testing.T) {
	for _, c := range []struct {
		name   string
		status int
		chunk  string
		again  bool
		want   string
	}{
		{"slow success", 200, `{"a":`, false, `{"status":200,"omitted":"incomplete"}`},
		{"endless success", 200, strings.Repeat("x", 4096), true, `{"status":200,"omitted":"too_large"}`},
		{"slow failure", 503, "wait", false, "retry webhook_server_error"},
		{"endless failure", 404, strings.Repeat("x", 4096), true, "fail webhook_rejected"},
	} {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(c.status)
			for {
				if _, err := io.WriteString(w, c.chunk); err != nil {
					return
				}
				w.(http.Flusher).Flush()
				if !c.again {
					<-r.Context().Done()
					return
				}
			}
		})
		cfg := open()
		cfg.Timeout = 200 * time.Millisecond
		if got := outcome(newHandler(t, cfg).Handle(t.Context(), opOf(t, "url", s.URL))); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

func TestCancellation(t *testing.T) {
	for _, cause := range []error{worker.ErrCancelRequested, worker.ErrPauseRequested, worker.ErrTimeLimit, worker.ErrLeaseLost, worker.ErrStopping} {
		ctx, cancel := context.WithCancelCause(t.Context())
		s := serve(t, func(_ http.ResponseWriter, r *http.Request) {
			cancel(cause)
			<-r.Context().Done()
		})
		_, err := newHandler(t, open()).Handle(ctx, opOf(t, "url", s.URL))
		var yield *worker.YieldError
		if pause := cause == worker.ErrPauseRequested; errors.As(err, &yield) != pause || !pause && !errors.Is(err, cause) {
			t.Errorf("%v: got %v", cause, err)
		}

		// The same while the secret is looked up.
		ctx, cancel = context.WithCancelCause(t.Context())
		cfg := open()
		cfg.Secrets = func(call context.Context, _, _ string) ([][]byte, error) {
			cancel(cause)
			<-call.Done()
			return nil, call.Err()
		}
		_, err = newHandler(t, cfg).Handle(ctx, opOf(t, "url", s.URL, "secretName", "slow"))
		if pause := cause == worker.ErrPauseRequested; errors.As(err, &yield) != pause || !pause && !errors.Is(err, cause) {
			t.Errorf("%v, looking up the secret: got %v", cause, err)
		}
	}
}

// A receiver that has said 200 has done its part, although the worker wants to stop before all of the answer is there.
func TestSuccessWinsOverACancelInTheBody(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	h := newHandler(t, open())
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := h.transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	cancel(worker.ErrCancelRequested)
	if got := outcome(h.answer(ctx, opOf(t), "host", response)); got != `{"status":200,"omitted":"incomplete"}` {
		t.Errorf("got %s", got)
	}
}

func TestConnectionsAreKept(t *testing.T) {
	var opened atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(map[string]int{"/ok": 200, "/no": 404, "/later": 503}[r.URL.Path])
		_, _ = io.WriteString(w, strings.Repeat("x", 5000))
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	h := newHandler(t, open())
	for range 3 {
		for _, path := range []string{"/ok", "/no", "/later"} {
			_, _ = h.Handle(t.Context(), opOf(t, "url", s.URL+path, "payload", 1))
		}
	}
	if opened.Load() != 1 {
		t.Errorf("expected one connection for nine calls, but there were %d", opened.Load())
	}
}

func TestConfigFaultsAreToldAtOnce(t *testing.T) {
	_, err := New(Config{
		Timeout: time.Hour, DialTimeout: -1, TLSTimeout: -1, HeaderTimeout: -1, IdleTimeout: -1, MaxIdle: -1, Ports: []uint16{0}, UserAgent: "a\nb",
		Allow: []netip.Prefix{{}, mustPrefix("::ffff:10.0.0.0/104")},
	})
	if err == nil {
		t.Fatal("expected faults")
	}
	for _, want := range []string{"Timeout to be at most", "DialTimeout", "TLSTimeout", "HeaderTimeout", "IdleTimeout", "MaxIdle", "Ports", "UserAgent", "one is empty", "written as IPv6"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("expected %q among the faults, but they are %v", want, err)
		}
	}
}

func TestTheConfigIsCopied(t *testing.T) {
	allow := []netip.Prefix{mustPrefix("127.0.0.0/8")}
	h := newHandler(t, Config{AllowPlain: true, Allow: allow})
	allow[0] = mustPrefix("10.0.0.0/8")
	if reason := h.cfg.refused(netip.MustParseAddr("10.0.0.1")); reason == "" {
		t.Error("expected what is allowed to be settled by New, but a later change counts")
	}
}

func FuzzClean(f *testing.F) {
	f.Add([]byte("a\xffb\u202e"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := clean(b, 64); strings.ContainsFunc(got, isControl) || !utf8.ValidString(got) || len(got) > 64 {
			t.Errorf("got %q", got)
		}
	})
}

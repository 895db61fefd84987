package bearer_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/sasl/oauth"

	"github.com/opstream/opstream/internal/bearer"
)

// endpoint is a token endpoint that answers with a script.
type endpoint struct {
	*httptest.Server
	asked  atomic.Int64
	answer func(n int64, w http.ResponseWriter, r *http.Request)
}

func newEndpoint(t *testing.T, answer func(n int64, w http.ResponseWriter, r *http.Request)) *endpoint {
	e := &endpoint{answer: answer}
	e.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.answer(e.asked.Add(1), w, r)
	}))
	t.Cleanup(e.Close)
	return e
}

func tokens(life string) func(int64, http.ResponseWriter, *http.Request) {
	return func(n int64, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json;charset=UTF-8")
		fmt.Fprintf(w, `{"access_token": "token-%d", "token_type": "Bearer"%s}`, n, life)
	}
}

func secret(text string) func() (string, error) {
	return func() (string, error) { return text, nil }
}

func TestTokenIsReplacedBeforeItsEnd(t *testing.T) {
	for _, c := range []struct {
		life string
		kept time.Duration
	}{
		{`, "expires_in": 3600`, 59 * time.Minute},
		{`, "expires_in": "3600"`, 59 * time.Minute}, // some servers write it so
		{`, "expires_in": 60`, 30 * time.Second},
		{``, 4 * time.Minute},
		{`, "expires_in": null`, 4 * time.Minute},
		{`, "expires_in": -5`, 4 * time.Minute},
		{`, "expires_in": 1e300`, 24*time.Hour - time.Minute},
	} {
		e := newEndpoint(t, tokens(c.life))
		now := time.Unix(1_900_000_000, 0)
		client, err := bearer.New(bearer.Credentials{URL: e.URL, ID: "id", Secret: secret("s"), HTTP: e.Client(), Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			pass time.Duration
			want string
		}{{0, "token-1"}, {c.kept - time.Second, "token-1"}, {time.Second, "token-2"}, {c.kept - time.Second, "token-2"}} {
			now = now.Add(step.pass)
			if got, err := client.Token(t.Context()); err != nil || got != step.want {
				t.Errorf("%s: after %s expected %s, but got %q, %v", c.life, step.pass, step.want, got, err)
			}
		}
	}
}

func TestRequestIsThatOfTheGrant(t *testing.T) {
	e := newEndpoint(t, func(n int64, w http.ResponseWriter, r *http.Request) {
		want := "Basic " + base64.StdEncoding.EncodeToString([]byte("my+id:p%3Aw+%25"))
		if got := r.Header.Get("Authorization"); got != want {
			t.Errorf("expected %s, but got %s", want, got)
		}
		if err := r.ParseForm(); err != nil || r.Method != http.MethodPost || r.PostForm.Encode() != "grant_type=client_credentials&scope=kafka" {
			t.Errorf("expected a POST of the grant, but got %s %v, %v", r.Method, r.PostForm, err)
		}
		tokens("")(n, w, r)
	})
	client, err := bearer.New(bearer.Credentials{URL: e.URL, ID: "my id", Secret: secret("p:w %"), Scope: "kafka", HTTP: e.Client()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Token(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAnswersThatAreNoToken(t *testing.T) {
	const json = "application/json"
	for _, c := range []struct {
		status      int
		media, body string
		want        string
	}{
		{401, json, `{"error": "invalid_client", "error_description": "unknown"}`, "invalid_client"},
		{200, json, `{"error": "invalid_scope"}`, "invalid_scope"},
		{500, json, `{}`, "500"},
		{200, "text/html", `<html>`, "token endpoint?"},
		{200, json, `{"access_token": `, "JSON"},
		{200, json, `{"access_token": "a", "token_type": "mac"}`, "Bearer"},
		{200, json, `{"access_token": "", "token_type": "bearer"}`, "empty"},
		{200, json, `{"access_token": "a\u0001b", "token_type": "bearer"}`, "RFC 6750"},
		{200, json, `{"access_token": "` + strings.Repeat("a", 2<<20) + `", "token_type": "bearer"}`, "at most"},
		{302, json, `{}`, "302"},
	} {
		e := newEndpoint(t, func(_ int64, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", c.media)
			w.Header().Set("Location", "https://elsewhere.example.com/")
			w.WriteHeader(c.status)
			fmt.Fprint(w, c.body)
		})
		client, err := bearer.New(bearer.Credentials{URL: e.URL, ID: "id", Secret: secret("very-secret"), HTTP: e.Client()})
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Token(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "very-secret") || len(err.Error()) > 2000 {
			t.Errorf("%d %.60s: expected a short error that says %q, but got %v", c.status, c.body, c.want, err)
		}
		// A refusal is not kept.
		e.answer = tokens("")
		if got, err := client.Token(t.Context()); err != nil || got != "token-2" {
			t.Errorf("expected a token once there is one, but got %q, %v", got, err)
		}
	}
}

func TestManyAskOnce(t *testing.T) {
	e := newEndpoint(t, tokens(`, "expires_in": 3600`))
	client, err := bearer.New(bearer.Credentials{URL: e.URL, ID: "id", Secret: secret("s"), HTTP: e.Client()})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if got, err := client.Token(context.WithoutCancel(t.Context())); err != nil || got != "token-1" {
				t.Errorf("expected token-1, but got %q, %v", got, err)
			}
		})
	}
	all.Wait()
	if n := e.asked.Load(); n != 1 {
		t.Errorf("expected one request, but there were %d", n)
	}
}

func TestWhereASecretMayGo(t *testing.T) {
	for text, good := range map[string]bool{
		"https://login.example.com/token?tenant=1": true, "http://127.0.0.1:8080/token": true, "http://localhost/t": true, "http://[::1]/t": true,
		"http://login.example.com/token": false, "ftp://login.example.com": false, "login.example.com": false, "": false,
		"https://user:pw@login.example.com/": false, "https://login.example.com/#a": false, "https://": false, "http://127.0.0.1.example.com/": false,
	} {
		if err := bearer.CheckURL(text); (err == nil) != good {
			t.Errorf("%q: expected %t, but got %v", text, good, err)
		}
	}
	if _, err := bearer.New(bearer.Credentials{URL: "http://login.example.com"}); err == nil || !strings.Contains(err.Error(), "https") || !strings.Contains(err.Error(), "client id") {
		t.Errorf("expected both faults, but got %v", err)
	}
}

// TestHandshake holds the first message of the mechanism, with a token from a file that is replaced between two authentications, against
// RFC 7628.
func TestHandshake(t *testing.T) {
	content := "first.token~+/-_==\n"
	source := bearer.File(func() (string, error) { return content, nil })
	mechanism := oauth.Oauth(func(ctx context.Context) (auth oauth.Auth, err error) {
		auth.Token, err = source(ctx)
		return auth, err
	})
	if mechanism.Name() != "OAUTHBEARER" {
		t.Errorf("expected OAUTHBEARER, but got %s", mechanism.Name())
	}
	for _, want := range []string{"n,,\x01auth=Bearer first.token~+/-_==\x01\x01", "n,,\x01auth=Bearer second\x01\x01"} {
		session, first, err := mechanism.Authenticate(t.Context(), "broker:9093")
		if err != nil || string(first) != want {
			t.Fatalf("expected %q, but got %q, %v", want, first, err)
		}
		if done, _, err := session.Challenge(nil); !done || err != nil {
			t.Errorf("expected an empty challenge to end the exchange, but got %t, %v", done, err)
		}
		content = "second"
	}
	for _, bad := range []string{"", "\n", "a b", "a\x01auth=Bearer b", "a=b", "ä"} {
		content = bad
		if _, _, err := mechanism.Authenticate(t.Context(), ""); err == nil {
			t.Errorf("expected %q to be refused as a token, but it was taken", bad)
		}
	}
	broken := errors.New("no such file")
	if _, err := bearer.File(func() (string, error) { return "", broken })(t.Context()); !errors.Is(err, broken) {
		t.Errorf("expected the error of the file, but got %v", err)
	}
}

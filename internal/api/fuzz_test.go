package api_test

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/opstream/opstream/internal/api"
)

func FuzzPositions(f *testing.F) {
	for _, s := range []string{"", "3-1042", "0-0,1-1", "1-1,1-2", "-", "-1-1", "00-1", "2147483648-0", "0-9223372036854775808", ",", "0-1,", "１-1", "0-1\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list, err := api.ParsePositions(text)
		if err != nil {
			if len(err.Error()) > 1000 {
				t.Errorf("expected a bounded message, but it has %d bytes", len(err.Error()))
			}
			return
		}
		again, err := api.ParsePositions(list.String())
		if err != nil || again.String() != list.String() {
			t.Errorf("%q: expected %s, but got %s, %v", text, list, again, err)
		}
	})
}

func FuzzPrefer(f *testing.F) {
	for _, s := range []string{"wait=5", "respond-async, wait=5", "wait", "wait=", "wait=-1", `wait="7"`, "wait=99999999999999999999", "WAIT = 3", "wait=1;x=2", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if wait, _ := api.PreferredWait(http.Header{"Prefer": {text}}); wait < 0 || wait > api.WaitMax {
			t.Errorf("%q: expected a wait from 0 to %s, but got %s", text, api.WaitMax, wait)
		}
	})
}

// FuzzRequest sends anything to routes of every sort. What is not for a route is a problem that the table of problems has, and
// what is for one has the names that the path spells.
func FuzzRequest(f *testing.F) {
	f.Add("GET", "/v1/organizations/o/operations/i", "after=0-1", "", "")
	f.Add("POST", "/v1/operations", "", "application/json", `{"by":"a","by":"b"}`)
	f.Add("POST", "/v1/operations", "", "application/json; charset=latin1", `{}{}`)
	f.Add("POST", "/v1/operations", "", "application/json", strings.Repeat("[", 1000))
	f.Add("POST", "/v1/operations", "", ";;", `{"data":"\ud800"}`)
	f.Add("HEAD", "/v1/organizations/%2F/operations/%2e%2e", "after=%zz&after=1", "", "")
	f.Add("GET", "/v1/organizations/\xff/operations/%00", "%", "", "x")
	f.Add("GET", "/../..//%", ";", "", "")
	name := func(w http.ResponseWriter, r *http.Request) error {
		for _, part := range []string{"organization", "id"} {
			value, err := api.PathName(r, part)
			if err != nil {
				return err
			}
			if value == "" || !strings.Contains(r.URL.EscapedPath(), "/"+api.Segment(value)) && !strings.Contains(r.URL.EscapedPath(), "%") {
				return api.NewProblem(api.Internal, "expected the name that the path spells, but got %q", value)
			}
		}
		return api.WriteJSON(w, http.StatusOK, "read")
	}
	handler := api.Handler(slog.New(slog.DiscardHandler),
		api.Route{Method: http.MethodGet, Path: "/v1/organizations/{organization}/operations/{id}", Query: []string{"after"}, Handle: name},
		api.Route{Method: http.MethodPost, Path: "/v1/operations", Body: true, Handle: func(w http.ResponseWriter, r *http.Request) error {
			if err := api.CheckMediaType(r, "application/json"); err != nil {
				return err
			}
			if _, err := api.CommandID(r); err != nil {
				return err
			}
			data, err := api.ReadBody(r)
			if err != nil {
				return err
			}
			var body api.CommandBody
			if err := api.Decode(data, &body); err != nil {
				return err
			}
			return api.WriteJSON(w, http.StatusOK, body)
		}})
	f.Fuzz(func(t *testing.T, method, path, query, contentType, body string) {
		u := &url.URL{Path: path, RawQuery: query}
		if plain, err := url.PathUnescape(path); err == nil {
			u.Path, u.RawPath = plain, path
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://x/", strings.NewReader(body))
		r.Method, r.URL = method, u
		r.Header.Set("Content-Type", contentType)
		r.Header.Set(api.HeaderIdempotencyKey, contentType)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code == http.StatusOK {
			if !json.Valid(w.Body.Bytes()) {
				t.Errorf("expected JSON, but got %q", w.Body)
			}
			return
		}
		var p api.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
			t.Fatalf("expected a problem, but got %d %q: %v", w.Code, w.Body, err)
		}
		if kind, ok := api.KindOf(p.Code); !ok || kind.Status != w.Code || w.Code >= 500 || w.Body.Len() > 4<<10 {
			t.Errorf("expected a problem of the caller, of the table, in a few words, but got %d %s", w.Code, w.Body)
		}
	})
}

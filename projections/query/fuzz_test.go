package query_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/opstream/opstream/internal/api"
)

// FuzzQuery asks the real tables anything. Every answer is JSON, and a refusal is the caller's to mend.
func FuzzQuery(f *testing.F) {
	for _, query := range []string{
		"", "limit=1", "limit=0", "limit=99999999999999999999", "cursor=AAAA", "status=ready,waiting", "status=,", "wait=paused", "type=13", "type=-1", "type=a,,b",
		"createdAfter=1601-01-01T00:00:00Z", "createdBefore=9999-12-31T23:59:59.999999999Z", "modifiedAfter=2016-12-31T23:59:60Z", "modifiedBefore=2030-01-01T00:00:00%2B14:00",
		"organization=%FF", "organization=a%27--", "token=%25&correlationId=_", "order=oldest&limit=1000", "after=0-0,1-99999", "%", ";", "a=b&a=b",
	} {
		for where := range uint8(5) {
			f.Add(where, "acme", query)
		}
	}
	f.Add(uint8(1), "..", "cursor=9223372036854775807")
	f.Add(uint8(2), "a/b\x00", "after=1-1")
	w := newWorld(f)
	f.Fuzz(func(t *testing.T, where uint8, name, query string) {
		path := []string{
			"/v1/operations", "/v1/organizations/" + api.Segment(name) + "/operations/" + api.Segment(name), "/v1/organizations/o/operations/" + api.Segment(name) + "/history",
			"/v1/counts", "/assets/" + api.Segment(name),
		}[int(where)%5]
		u := &url.URL{RawPath: path, RawQuery: query}
		var err error
		if u.Path, err = url.PathUnescape(path); err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://x/", nil)
		r.URL = u
		r.Header.Set("Prefer", "wait=0")
		answer := httptest.NewRecorder()
		w.h.ServeHTTP(answer, r)
		if where%5 == 4 && answer.Code == http.StatusOK {
			return // a file
		}
		if !json.Valid(answer.Body.Bytes()) {
			t.Fatalf("expected JSON, but got %d %q", answer.Code, answer.Body)
		}
		switch answer.Code {
		case http.StatusOK, http.StatusBadRequest, http.StatusNotFound, http.StatusRequestEntityTooLarge:
		case http.StatusServiceUnavailable: // a position that never comes
			if r.URL.Query().Get("after") == "" {
				t.Errorf("%s?%s: expected an answer, but got %s", path, query, answer.Body)
			}
		default:
			t.Errorf("%s?%s: got %d %s", path, query, answer.Code, answer.Body)
		}
	})
}

package query_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// The page is safe whatever people call their operations, and shows why they wait.
func TestThePageShowsNamesAsText(t *testing.T) {
	w := newWorld(t)
	hostile := `<script>alert(1)</script>"'><img src=x onerror=y>`
	name, err := json.Marshal(hostile)
	if err != nil {
		t.Fatal(err)
	}
	w.submit(0, fmt.Sprintf(`{"id":%s,"organization":"o/../..","type":"import","name":%s}`, name, name))
	got := w.get("/")
	body := string(got.Body)
	if strings.Contains(body, "<script>alert") || strings.Contains(body, "<img") {
		t.Errorf("expected the name as text, but got %s", body)
	}
	for _, want := range []string{
		"&lt;script&gt;alert", "no worker has room for type import", `/v1/organizations/o%2F..%2F../operations/%3Cscript%3E`,
		`<th scope="col">`, `aria-live="polite"`, `<noscript><meta http-equiv="refresh"`, "12 ms behind", `lang="en"`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("expected %s in the page", want)
		}
	}
	csp := got.Header.Get("Content-Security-Policy")
	if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || strings.Contains(body, " style=") || strings.Contains(body, "onclick") {
		t.Errorf("expected a strict policy that the page keeps, but got %s", csp)
	}
	for _, host := range []string{"http://", "https://"} {
		if strings.Contains(body, host) {
			t.Errorf("expected nothing from elsewhere, but the page has %s", host)
		}
	}
}

func TestThePageOfAnEmptyService(t *testing.T) {
	body := string(newWorld(t).get("/").Body)
	for _, want := range []string{"Nothing waits.", "No operation was ever submitted.", "None yet."} {
		if !strings.Contains(body, want) {
			t.Errorf("expected %q in the page", want)
		}
	}
}

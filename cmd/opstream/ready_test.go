package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestReady(t *testing.T) {
	t.Parallel()
	ready, lacks := true, ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/livez" || r.URL.Path == "/readyz" && ready:
			_, _ = w.Write([]byte(`{"ok":true` + lacks + `}`))
		case r.URL.Path == "/readyz":
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(`{"ok":false,"reason":"partition 3 is being recovered"}`))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer server.Close()
	_, address, _ := strings.Cut(server.URL, "//")
	_, port, _ := strings.Cut(address, ":")
	run(t, "", "ready", "--ops", address).expect(t, exitOK)
	run(t, "", "ready", "--ops", "0.0.0.0:"+port).expect(t, exitOK)
	run(t, "", "ready", "--ops", ":"+port).expect(t, exitOK)
	if r := run(t, "", "ready", "--ops", address); r.out != "" {
		t.Errorf("expected nothing to be said of a process that lacks nothing, but got %s", r)
	}
	lacks = `,"reason":"the tables cannot be read"`
	run(t, "", "ready", "--ops", address).expect(t, exitOK, "without this: the tables cannot be read")
	ready = false
	run(t, "", "ready", "--ops", address).expect(t, exitUnavailable, "partition 3 is being recovered")
	run(t, "", "ready", "--ops", address, "--live").expect(t, exitOK)
	run(t, "", "ready", "--ops", "here").expect(t, exitUsage, "expected --ops HOST:PORT")
	server.Close()
	run(t, "", "ready", "--ops", address).expect(t, exitUnavailable, "--ops-listen")
}

package api_test

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/opstream/opstream/internal/api"
)

// TestCommandsAreSentOnce breaks the connection behind a command that came: nobody but the caller may send it again, who knows then that
// there are two.
func TestCommandsAreSentOnce(t *testing.T) {
	for _, name := range []string{"cancel", "delete"} {
		t.Run(name, func(t *testing.T) {
			var got atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if key := r.Header.Get(api.HeaderIdempotencyKey); key != "k" {
					t.Errorf("expected the key to arrive, but got %q", key)
				}
				if got.Add(1) != 2 {
					_, _ = w.Write([]byte("{}"))
					return
				}
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				_ = conn.Close()
			}))
			defer server.Close()
			c := &api.Client{Base: server.URL, HTTP: server.Client()}
			give := func() error {
				_, err := c.Command(t.Context(), name, "acme", "r-1", api.CommandBody{}, nil, api.Call{Key: "k"})
				return err
			}
			if err := give(); err != nil { // now there is a connection to use again
				t.Fatal(err)
			}
			if err := give(); err == nil || got.Load() != 2 {
				t.Errorf("expected an error, as the answer was lost, and two commands, but got %v and %d", err, got.Load())
			}
		})
	}
}

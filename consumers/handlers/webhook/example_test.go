package webhook_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"

	"github.com/opstream/opstream/consumers/handlers/webhook"
	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/operation"
)

// A receiver takes the body as it came, verifies it, and does each id's work once, however often the call arrives.
func ExampleVerify() {
	secret := []byte("whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")

	var done sync.Map // in earnest a table, written in the transaction that does the work
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, "too large", http.StatusRequestEntityTooLarge)
			return
		}
		id, err := webhook.Verify(r.Header, body, time.Now(), webhook.Tolerance, secret)
		if err != nil {
			http.Error(w, "not verified", http.StatusUnauthorized)
			return
		}
		if _, again := done.LoadOrStore(id, true); !again {
			fmt.Printf("%s: %s %s\n", id, r.Header.Get("Ce-Type"), body)
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer receiver.Close()

	// The other side: a worker whose configuration lets it call this very machine.
	sender, err := webhook.New(webhook.Config{
		AllowPrivate: true,
		AllowPlain:   true,
		Secrets: func(context.Context, string, string) ([][]byte, error) {
			return [][]byte{secret}, nil
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer sender.Close()
	data, err := json.Marshal(map[string]any{"url": receiver.URL, "secretName": "account-hooks", "payload": map[string]string{"account": "A-17"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	for attempt := operation.Attempt(1); attempt <= 2; attempt++ {
		op := &worker.Operation{Organization: "contoso", ID: "7d9f1f2e-0001", Attempt: attempt, Data: data}
		result, err := sender.Handle(context.Background(), op)
		fmt.Println(attempt, result.(webhook.Result).Status, err)
	}
	// Output:
	// contoso/7d9f1f2e-0001: opstream.plugin.execute.v1 {"account":"A-17"}
	// 1 204 <nil>
	// 2 204 <nil>
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/internal/pgtest"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/projector"
)

// door is a way to a database that can be shut.
type door struct {
	url    string
	target string

	mu   sync.Mutex
	open bool
	used map[net.Conn]bool
}

func newDoor(t *testing.T, address string) *door {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &door{target: u.Host, used: map[net.Conn]bool{}}
	u.Host = listener.Addr().String()
	d.url = u.String()
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { d.pass(c) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		d.set(false)
		all.Wait()
	})
	return d
}

// set opens the door, or shuts it on all who are in it.
func (d *door) set(open bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open = open; !open {
		for c := range d.used {
			c.Close()
		}
	}
}

func (d *door) pass(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", d.target)
	if err != nil {
		return
	}
	defer server.Close()
	d.mu.Lock()
	if !d.open {
		d.mu.Unlock()
		return
	}
	d.used[client], d.used[server] = true, true
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.used, client)
		delete(d.used, server)
	}()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(client, server) // ends with either of them
		client.Close()
	}()
	_, _ = io.Copy(server, client)
	server.Close()
	<-done
}

// inProcess starts roles over the brokers, with their tables in a database.
func inProcess(t *testing.T, cfg serviceConfig, database string, roles ...string) *service {
	t.Helper()
	cfg.roles, cfg.database, cfg.listen = roles, database, "127.0.0.1:0"
	cfg.lease, cfg.slots = 5*time.Second, 16
	cfg.handlers = map[string]worker.Handler{"noop": worker.HandlerFunc(func(context.Context, *worker.Operation) (any, error) { return nil, nil })}
	g := newGroup()
	s, err := startService(t.Context(), g, cfg)
	if err != nil {
		t.Fatalf("start %v: %v", roles, err)
	}
	t.Cleanup(func() {
		if err := g.stop(); err != nil {
			t.Errorf("stop %v: %v", roles, err)
		}
	})
	return s
}

// ask sends a request and decodes the answer, if there is somewhere to.
func ask(t *testing.T, method, address, body string, header http.Header, into any) (status int, text string, head http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for k, v := range header {
		r.Header[k] = v
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if into != nil {
		if err := json.NewDecoder(bytes.NewReader(raw)).Decode(into); err != nil {
			t.Fatalf("%s %s: %v: %s", method, address, err, raw)
		}
	}
	return answer.StatusCode, string(raw), answer.Header
}

// TestRolesOverADatabase has every role in a service of its own, two projectors and two APIs among them, over a database that comes
// after them, goes, and comes again.
func TestRolesOverADatabase(t *testing.T) {
	gate := newDoor(t, pgtest.Postgres(t))
	cfg := serviceConfig{log: slog.New(slog.DiscardHandler)}
	data := t.TempDir() // goes after the broker
	g := newGroup()
	t.Cleanup(func() {
		if err := g.stop(); err != nil {
			t.Errorf("stop the broker: %v", err)
		}
	})
	if err := startBroker(t.Context(), g, devFlags{data: data, partitions: 2}, &cfg); err != nil {
		t.Fatal(err)
	}
	inProcess(t, cfg, "", roleScheduler, roleWorker)
	projecting := inProcess(t, cfg, gate.url, roleProjector)
	inProcess(t, cfg, gate.url, roleProjector, roleScheduler) // its scheduler must not mind
	apis := []*service{inProcess(t, cfg, gate.url, roleAPI), inProcess(t, cfg, gate.url, roleAPI)}

	submit := func(id string, header http.Header) (api.Outcome, int) {
		t.Helper()
		var accepted api.Outcome
		status, text, _ := ask(t, http.MethodPost, apis[0].url+"/v1/operations", fmt.Sprintf(`{"organization": "acme", "id": %q, "type": "noop"}`, id), header, &accepted)
		if status != http.StatusAccepted && status != http.StatusOK && header == nil {
			t.Fatalf("expected %s to be accepted without a database, but got %d: %s", id, status, text)
		}
		return accepted, status
	}
	// runs submits one and waits for its end in the journal, which needs no tables.
	runs := func(id string) api.Outcome {
		t.Helper()
		watch := apis[1].answers.Watch("acme", operation.ID(id))
		defer watch.Stop()
		accepted, _ := submit(id, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := watch.Wait(ctx); err != nil {
			t.Fatalf("expected %s to end, but: %v", id, err)
		}
		return accepted
	}
	reads := func(id, after string) {
		t.Helper()
		for i, s := range apis {
			eventually(t, time.Minute, func() (bool, string) {
				status, text, head := ask(t, http.MethodGet, s.url+"/v1/organizations/acme/operations/"+id+"?after="+after, "", nil, nil)
				if status == http.StatusOK && (head.Get(api.HeaderAsOf) == "" || head.Get(api.HeaderLag) == "") {
					t.Errorf("API %d: expected the answer to say how old it is, but got %v", i, head)
				}
				return status == http.StatusOK, fmt.Sprintf("API %d about %s: %d %s", i, id, status, text)
			})
		}
	}

	// Before the database.
	first := runs("early")
	if status, text, _ := ask(t, http.MethodGet, apis[0].url+"/readyz", "", nil, nil); status != http.StatusServiceUnavailable || !strings.Contains(text, "tables") {
		t.Errorf("expected the API not to be ready for want of the tables, but got %d: %s", status, text)
	}
	if err := projecting.ready(t.Context()); err == nil {
		t.Error("expected the projector to say what it waits for")
	}
	if status, text, _ := ask(t, http.MethodGet, apis[0].url+"/v1/operations", "", nil, nil); status != http.StatusServiceUnavailable {
		t.Errorf("expected a list to be unavailable, but got %d: %s", status, text)
	}

	// It comes.
	gate.set(true)
	reads("early", first.Position)
	eventually(t, time.Minute, func() (bool, string) {
		status, text, _ := ask(t, http.MethodGet, apis[0].url+"/readyz", "", nil, nil)
		return status == http.StatusOK && text == "ready\n", text
	})

	// With it: who waits for the end hears of it from another process's tables.
	ended, status := submit("waited", http.Header{"Prefer": {"wait=30"}})
	if status != http.StatusOK || ended.Operation == nil || ended.Operation.Status != "succeeded" {
		t.Errorf("expected the answer to be the end of the operation, but got %d %+v", status, ended)
	}
	listened(t, apis[1], func() { submit("streamed", nil) }, "streamed")

	// It goes, and comes again.
	gate.set(false)
	late := runs("late")
	eventually(t, time.Minute, func() (bool, string) { // it still takes commands, as it has just done
		status, text, _ := ask(t, http.MethodGet, apis[0].url+"/readyz", "", nil, nil)
		if status != http.StatusOK {
			t.Fatalf("expected the API to keep its requests, but got %d: %s", status, text)
		}
		return strings.Contains(text, "tables"), text
	})
	eventually(t, time.Minute, func() (bool, string) { // once it has something to write
		serves, err := projecting.serves(t.Context())
		return !serves && err != nil, "expected the projector to say what it waits for"
	})
	gate.set(true)
	reads("late", late.Position)

	// Everything is as the journal says.
	report, err := projections.Verify(t.Context(), apis[0].store, projector.Journal{Client: cfg.clientOptions(), Topics: cfg.topics})
	if err != nil || !report.OK() || report.Operations != 4 {
		t.Errorf("expected 4 operations without a difference, but got %+v, %v", report, err)
	}
	r := run(t, "", "verify", "--brokers", strings.Join(cfg.brokers, ","), "--database", gate.url)
	r.expect(t, 0, "the tables are what the journal says")
	r = run(t, "", "verify", "--brokers", strings.Join(cfg.brokers, ","), "--database", pgtest.Postgres(t))
	r.expect(t, 1, "there are none")
}

// listened does something while it listens to all changes, and returns when it has heard of an operation.
func listened(t *testing.T, s *service, do func(), id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/v1/events?organization=acme", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	do()
	buf, text := make([]byte, 4096), ""
	for !strings.Contains(text, `"id":"`+id+`"`) {
		n, err := answer.Body.Read(buf)
		if text += string(buf[:n]); err != nil {
			t.Fatalf("expected to hear of %s, but: %v after %s", id, err, text)
		}
	}
}

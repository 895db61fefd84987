package simulation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/producers/answers"
	"github.com/opstream/opstream/producers/command"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/projector"
	"github.com/opstream/opstream/projections/query"
	"github.com/opstream/opstream/schemas"
)

// node is what others need of a running process with the roles projector and api.
type node struct{ projector *projector.Projector }

// base is the address of a node's API: a name of the process, not of one of its lives.
func base(i int) string { return fmt.Sprintf("http://localhost:%d", 8080+i) }

// The safeguards of the read side that a test has switched off: reads do not wait, say that they know more than they do, and do not
// tell of every change.
var impatient, boastful, forgetful bool

// progress is what a node knows of its tables, unless a test makes it lie.
type progress struct{ query.Projected }

func (p progress) WaitFor(ctx context.Context, partition int32, place operation.Place) error {
	if impatient {
		return nil
	}
	return p.Projected.WaitFor(ctx, partition, place)
}

func (p progress) AsOf(ctx context.Context) (api.Positions, time.Duration, error) {
	list, lag, err := p.Projected.AsOf(ctx)
	if boastful {
		for i, part := range p.Status().Partitions {
			if i < len(list) && part.End > part.Next {
				list[i].Place++
			}
		}
	}
	return list, lag, err
}

// node makes a process with the roles projector and api, wired as the program wires it.
func (w *world) node(i int) func(context.Context, *life) error {
	return func(ctx context.Context, l *life) error {
		log := w.log(l)
		feed, batches := query.NewFeed(), 0
		publish := func(b *projections.Batch) {
			if batches++; !forgetful || batches%5 > 0 {
				feed.PublishBatch(b)
			}
		}
		p, err := projector.New(projector.Config{
			Store: w.stores[i], Client: w.options(l.host), Topics: w.topics, Log: log, OnCommitted: publish, OnMissed: feed.Gap,
		})
		if err != nil {
			return err
		}
		status := func(context.Context) api.Status { return api.Status{Ready: true} }
		q := query.New(query.Config{Store: w.stores[i], Progress: progress{query.Projected{Projector: p}}, Feed: feed, Status: status})
		begin, stop := context.WithTimeout(ctx, 10*time.Second)
		a, err := answers.New(begin, answers.Config{Brokers: []string{address}, Topics: w.topics, Options: w.options(l.host), Log: log})
		stop()
		if err != nil {
			return err
		}
		routes := command.Routes(command.Config{Journal: a, Parse: schemas.ParseRequest, Locator: q, Effects: q, Overload: a.Overload})
		routes = append(routes, q.Routes()...)
		routes = append(routes, api.Process{
			Status: status, Serves: func(context.Context) (bool, error) { return true, nil }, AsyncAPI: schemas.AsyncAPI(), Schemas: schemas.JSONSchemas(),
		}.Routes()...)
		inner, err := w.net.virtual.Listen("tcp", base(i)[len("http://"):])
		if err != nil {
			return errors.Join(err, a.Close(ctx))
		}
		server := api.NewServer("", api.Handler(log, routes...))
		server.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelWarn)
		l.part.offer(l, &node{p})

		// The first part to end stops the others, those that lean on others first.
		type running struct {
			stop context.CancelFunc
			done chan struct{}
		}
		var parts []running
		errs := make([]error, 0, 3)
		ended := make(chan struct{}, 3)
		start := func(run func(context.Context) error) {
			living, stop := context.WithCancel(context.WithoutCancel(ctx))
			r := running{stop, make(chan struct{})}
			errs = append(errs, nil)
			result := &errs[len(errs)-1]
			parts = append(parts, r)
			go func() {
				*result = run(living)
				ended <- struct{}{}
				close(r.done)
			}()
		}
		start(p.Run)
		start(func(ctx context.Context) error {
			err := a.Run(ctx)
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			return errors.Join(err, a.Close(closing))
		})
		start(func(ctx context.Context) error {
			served := make(chan error, 1)
			go func() { served <- server.Serve(&listener{inner, l.host}) }()
			select {
			case err := <-served:
				return err
			case <-ctx.Done():
			}
			feed.Close()
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			if server.Shutdown(closing) != nil {
				_ = server.Close() // what did not end in time is cut off
			}
			<-served //nolint:errcheck // it says that the server was closed
			return nil
		})
		select {
		case <-ended:
		case <-ctx.Done():
		}
		for _, r := range slices.Backward(parts) {
			r.stop()
			<-r.done
		}
		return errors.Join(errs...)
	}
}

// listener takes connections for a host, while it lives and has a network.
type listener struct {
	net.Listener
	host *host
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		inner, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &served{Conn: inner, host: l.host, ended: make(chan struct{})}
		l.host.mu.Lock()
		refused := l.host.dead || l.host.cut
		if !refused {
			l.host.served[c] = struct{}{}
		}
		l.host.mu.Unlock()
		if refused {
			inner.Close()
			continue
		}
		return c, nil
	}
}

// served is the server's end of a connection. The faults of its host hold for it; its client's end has those of the client.
type served struct {
	net.Conn
	host  *host
	ended chan struct{}
	once  sync.Once
}

func (c *served) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && !c.host.pass(c.ended) {
		return 0, errCut
	}
	return n, err
}

func (c *served) Write(b []byte) (int, error) {
	if !c.host.pass(c.ended) {
		return 0, errCut
	}
	return c.Conn.Write(b)
}

func (c *served) Close() error {
	c.once.Do(func() {
		close(c.ended)
		c.host.mu.Lock()
		delete(c.host.served, c)
		c.host.mu.Unlock()
	})
	return c.Conn.Close()
}

// browser is a client of the API. Each of its calls tells what its answers' headers said.
type browser struct {
	transport *http.Transport

	mu    sync.Mutex
	heard map[ref]string // the last position that an answer named, by operation; the partition is not known to it
}

func newBrowser(dial func(ctx context.Context, network, address string) (net.Conn, error)) *browser {
	return &browser{
		transport: &http.Transport{DialContext: dial, DisableCompression: true, MaxIdleConnsPerHost: 4, IdleConnTimeout: 5 * time.Second},
		heard:     map[ref]string{},
	}
}

// headers keeps what the answers to one call said beside their bodies.
type headers struct {
	next   http.RoundTripper
	status int           // of the last answer
	asOf   api.Positions // of the first answer, which is the oldest
	heard  func()        // called when an answer of success has begun
}

func (h *headers) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := h.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	h.status = resp.StatusCode
	if text := resp.Header.Get(api.HeaderAsOf); text != "" && h.asOf == nil {
		if h.asOf, err = api.ParsePositions(text); err != nil {
			return nil, errors.Join(fmt.Errorf("the header %s: %w", api.HeaderAsOf, err), resp.Body.Close())
		}
	}
	if h.heard != nil && resp.StatusCode == http.StatusOK {
		h.heard()
	}
	return resp, nil
}

func (b *browser) at(i int) (*api.Client, *headers) {
	h := &headers{next: b.transport}
	return &api.Client{Base: base(i), HTTP: &http.Client{Transport: h}}, h
}

func (b *browser) last(org, id string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.heard[ref{org: org, id: operation.ID(id)}]
}

func (b *browser) hears(org, id, position string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.heard[ref{org: org, id: operation.ID(id)}] = position
}

// eventKinds are the words of the API for what a command led to.
var eventKinds = func() map[string]operation.EventKind {
	m := map[string]operation.EventKind{}
	for k := range operation.EventKind(operation.EventKinds) {
		m[k.String()] = k
	}
	return m
}()

// ask gives a command through the API and enters into the call what was answered.
func (w *world) ask(ctx context.Context, v *voice, k *call) {
	c, o, cmd := &k.plan, k.op, k.sent
	client, head := v.browser.at(c.node)
	of := api.Call{Wait: c.wait}
	var out *api.Outcome
	var err error
	if cmd.Kind == operation.Submit {
		if c.keyed {
			of.Key = o.id
		}
		out, err = client.Submit(ctx, schemas.AppendRequest(nil, cmd.Request), of)
	} else {
		of.Key = cmd.CommandID
		target := url.Values{}
		switch {
		case c.keyed && o.key != "":
			target.Set("partitionKey", o.key)
		case c.keyed && o.token != "":
			target.Set("dependencyToken", o.token)
		default:
			of.After = v.browser.last(o.org, o.id)
		}
		body := api.CommandBody{By: cmd.By.Who, Reason: cmd.By.Reason, Data: cmd.Data}
		if cmd.Kind == operation.Postpone {
			body.Until = cmd.Until.Go().Format(time.RFC3339Nano)
		}
		out, err = client.Command(ctx, cmd.Kind.String(), o.org, o.id, body, target, of)
	}
	k.status = head.status
	var problem *api.Problem
	switch {
	case err == nil:
		var at api.Position
		if at, k.err = api.ParsePosition(out.Position); k.err != nil {
			w.violation("%s's %s %s/%s was answered without a position: %+v", k.who, cmd.Kind, cmd.Org, cmd.ID, out)
			return
		}
		status, known := operation.ParseStatus(out.Status)
		kind, also := eventKinds[out.Event]
		if !known || !also || out.Organization != cmd.Org || out.ID != string(cmd.ID) {
			w.violation("%s's %s %s/%s was answered with what it cannot be: %+v", k.who, cmd.Kind, cmd.Org, cmd.ID, out)
		}
		k.answer = command.Answer{Partition: at.Partition, Place: at.Place, Status: status, Event: kind, Unchanged: out.Unchanged}
		k.shown = out.Operation
		v.browser.hears(o.org, o.id, out.Position)
		if done := out.Ended() || cmd.Kind != operation.Submit && out.Settled(); done != (head.status == http.StatusOK) {
			w.violation("%s's %s %s/%s was answered with %d, but it is %s", k.who, cmd.Kind, cmd.Org, cmd.ID, head.status, out.Status)
		}
	case errors.As(err, &problem) && problem.Position != "":
		var at api.Position
		if at, k.err = api.ParsePosition(problem.Position); k.err != nil {
			w.violation("%s's %s %s/%s was answered without a position: %v", k.who, cmd.Kind, cmd.Org, cmd.ID, problem)
			return
		}
		k.answer = command.Answer{
			Partition: at.Partition, Place: at.Place, Event: operation.Rejected,
			Rejection: &operation.Rejection{Code: operation.RejectionCode(problem.Code), Reason: problem.Detail},
		}
	case errors.As(err, &problem):
		k.err = err
		switch problem.Code {
		case api.OutcomeUnknown:
		case api.Internal:
			w.violation("%s's %s %s/%s was answered that the service has failed: %v", k.who, cmd.Kind, cmd.Org, cmd.ID, problem)
		default:
			k.refused = true
		}
	default:
		k.err = err
	}
}

type readKind uint8

const (
	readOne readKind = iota
	readHistory
	readList
	readSome // a list of some statuses
	readCounts
	readKinds = iota
)

func (k readKind) String() string {
	return [...]string{"reads", "reads the history of", "lists", "lists some of", "counts"}[k]
}

// readPlan is one read of one client.
type readPlan struct {
	at       time.Duration
	client   int
	node     int
	kind     readKind
	op       int
	after    bool // reads what it wrote: after the last position that it heard of
	wait     time.Duration
	statuses []operation.Status
	limit    int
}

// read is what a client asked the tables, and what it was shown.
type read struct {
	plan         *readPlan
	who          string
	org, id      string
	began, ended time.Duration
	after, asOf  api.Positions
	rows         []api.Operation
	events       []api.HistoryEvent
	counts       *api.Counts
	missing      bool // there is none
	err          error
}

func (r *read) String() string {
	what := r.org
	if r.plan.kind <= readHistory {
		what += "/" + r.id
	}
	return fmt.Sprintf("%s %s %s at %s of projector%d", r.who, r.plan.kind, what, r.began, r.plan.node)
}

// look has a client read.
func (w *world) look(name string, v *voice, plan *readPlan, org, id, after string) {
	r := &read{plan: plan, who: name, org: org, id: id, began: w.history.now()}
	w.calling.Go(func() {
		ctx, cancel := context.WithTimeout(v.ctx, 20*time.Second)
		defer cancel()
		client, head := v.browser.at(plan.node)
		of := api.Call{After: after, Wait: plan.wait}
		if after != "" {
			r.after, r.err = api.ParsePositions(after)
		}
		switch plan.kind {
		case readOne:
			var o *api.Operation
			if o, r.err = client.Get(ctx, org, id, of); r.err == nil {
				r.rows = append(r.rows, *o)
			}
		case readHistory:
			for e, err := range client.History(ctx, org, id, of) {
				if r.err = err; err == nil {
					r.events = append(r.events, e)
				}
			}
		case readList, readSome:
			filter := url.Values{"organization": {org}, "limit": {fmt.Sprint(plan.limit)}}
			if plan.kind == readSome {
				names := ""
				for _, s := range plan.statuses {
					names += "," + s.String()
				}
				filter.Set("status", names[1:])
			}
			for o, err := range client.List(ctx, filter, of) {
				if r.err = err; err == nil {
					r.rows = append(r.rows, o)
				}
			}
		case readCounts:
			r.counts, r.err = client.Counts(ctx, org, of)
		}
		r.asOf = head.asOf
		var problem *api.Problem
		if errors.As(r.err, &problem) {
			switch problem.Code {
			case api.Code(operation.NotFound):
				r.missing, r.err = true, nil
			case api.Internal:
				w.violation("%s: the service has failed: %v", r, problem)
			}
		}
		w.history.mu.Lock()
		r.ended = w.history.now()
		w.history.reads = append(w.history.reads, r)
		w.history.mu.Unlock()
		w.history.note(name, "%s %s/%s of projector%d after %q: %d rows, %d events, missing %t, as of %s, %v", plan.kind, org, id, plan.node, after, len(r.rows), len(r.events), r.missing, r.asOf, r.err)
	})
}

// stream is what a client heard of one node without a gap, over one connection or several.
type stream struct {
	who     string
	node    int
	began   time.Duration
	asOf    api.Positions // what the tables had when it began
	changes []heard
	whole   bool // it has a connection
	final   bool // it had one at the end of the quiet phase
}

type heard struct {
	at     time.Duration
	change api.Change
}

// listen has a client hear of changes until its life ends. Now and then it turns to another node; else it asks for what it
// has missed.
func (w *world) listen(ctx context.Context, name string, b *browser, r *rand.Rand) {
	var s *stream
	last, i := "", 0
	for ctx.Err() == nil {
		if s == nil || last == "" || r.IntN(3) == 0 {
			s, last, i = nil, "", r.IntN(w.plan.Projectors)
		}
		client, head := b.at(i)
		head.heard = func() {
			if s == nil {
				s = w.newStream(name, i, head.asOf)
			}
			w.listening(s, true)
		}
		err := client.Events(ctx, nil, last, func(e api.ServerEvent) error {
			last = e.ID
			switch e.Name {
			case "reset":
				w.listening(s, false)
				s = w.newStream(name, i, head.asOf)
				w.listening(s, true)
			case "operation":
				var c api.Change
				if err := json.Unmarshal(e.Data, &c); err != nil {
					w.violation("%s heard %q, which cannot be read: %v", name, e.Data, err)
					return err
				}
				w.history.mu.Lock()
				s.changes = append(s.changes, heard{w.history.now(), c})
				w.history.mu.Unlock()
			}
			return nil
		})
		w.listening(s, false)
		w.history.note(name, "hears no more of projector%d: %v", i, err)
		select {
		case <-time.After(between(r, 10*time.Millisecond, 2*time.Second)):
		case <-ctx.Done():
		}
	}
}

func (w *world) newStream(name string, i int, asOf api.Positions) *stream {
	s := &stream{who: name, node: i, began: w.history.now(), asOf: asOf}
	w.history.note(name, "hears of projector%d from %s on", i, asOf)
	w.history.mu.Lock()
	w.history.streams = append(w.history.streams, s)
	w.history.mu.Unlock()
	return s
}

// listening notes whether a stream has a connection.
func (w *world) listening(s *stream, connected bool) {
	if s == nil {
		return
	}
	w.history.mu.Lock()
	s.whole = connected
	w.history.mu.Unlock()
}

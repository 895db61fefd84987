package answers

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/schemas"
)

// headers are those of a journal record that are of interest here.
type headers struct{ typ, organization, subject, cause []byte }

func headersOf(rec *kgo.Record) (h headers) {
	for i := range rec.Headers {
		switch r := &rec.Headers[i]; r.Key {
		case schemas.HeaderType:
			h.typ = r.Value
		case schemas.HeaderOrganization:
			h.organization = r.Value
		case schemas.HeaderSubject:
			h.subject = r.Value
		case schemas.HeaderCause:
			h.cause = r.Value
		}
	}
	return h
}

// request returns the offset of the request that the event follows from.
func (h *headers) request() (int64, bool) {
	const prefix = schemas.TopicRequests + "/"
	if len(h.cause) <= len(prefix) || len(h.cause) > len(prefix)+18 || string(h.cause[:len(prefix)]) != prefix {
		return 0, false
	}
	var n int64
	for _, c := range h.cause[len(prefix):] {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// kinds are the types of the journal's events.
var kinds = func() map[string]operation.EventKind {
	m := make(map[string]operation.EventKind)
	for _, message := range schemas.Registry() {
		if message.Topic == schemas.TopicJournal {
			m[message.Type] = message.Event
		}
	}
	return m
}()

// Entry is a valid event of the journal, of which only the headers were read.
type Entry struct {
	Partition    int32
	Place        operation.Place
	Kind         operation.EventKind
	Organization string
	ID           operation.ID

	rec *kgo.Record
}

// Time is when the record was sent to the log, by the scheduler's clock.
func (e *Entry) Time() operation.Time { return operation.TimeOf(e.rec.Timestamp) }

// Event reads the whole event. Whoever keeps an Entry keeps the batch that its record was fetched with.
func (e *Entry) Event() (operation.Event, error) { return schemas.DecodeEvent(e.rec) }

// feed tells others in the process what passes.
type feed struct {
	watched atomic.Int64 // operations in ends
	heard   atomic.Pointer[[]*listener]

	// Of the goroutine that reads.
	batch []Entry
	key   []byte

	mu    sync.Mutex
	ended error
	ends  map[string][]*Watch // by organization, NUL and id
}

type listener struct{ hear func([]Entry) }

func (f *feed) listened() bool { return f.watched.Load() > 0 || f.heard.Load() != nil }

// Subscribe has hear called with all valid events from the next fetch on, in the order of each partition. It is called by
// the one goroutine that reads the journal, so it must be quick, and the slice is good only until it returns. An event of
// a later version, whose type is not known here, is left out. Nobody is told when the client ends, so see Run.
func (c *Client) Subscribe(hear func([]Entry)) (stop func()) {
	l := &listener{hear}
	c.feed.change(func(all []*listener) []*listener { return append(all, l) })
	return func() {
		c.feed.change(func(all []*listener) []*listener {
			var rest []*listener
			for _, other := range all {
				if other != l {
					rest = append(rest, other)
				}
			}
			return rest
		})
	}
}

// change replaces the list of listeners, so that reading it takes no lock.
func (f *feed) change(edit func([]*listener) []*listener) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []*listener
	if now := f.heard.Load(); now != nil {
		all = append(all, *now...)
	}
	if all = edit(all); len(all) == 0 {
		f.heard.Store(nil)
		return
	}
	f.heard.Store(&all)
}

// add takes up an event.
func (f *feed) add(partition int32, rec *kgo.Record, h headers) {
	kind, known := kinds[string(h.typ)]
	if !known {
		return
	}
	all := f.heard.Load() != nil
	if !all && !terminal(kind) {
		return
	}
	e := Entry{Partition: partition, Place: operation.Place(rec.Offset), Kind: kind, rec: rec}
	if all {
		e.Organization, e.ID = string(h.organization), operation.ID(h.subject)
		f.batch = append(f.batch, e)
	}
	if f.watched.Load() == 0 || !terminal(kind) {
		return
	}
	f.key = append(append(append(f.key[:0], h.organization...), 0), h.subject...)
	f.mu.Lock()
	defer f.mu.Unlock()
	watches := f.ends[string(f.key)]
	if watches == nil {
		return
	}
	delete(f.ends, string(f.key))
	f.watched.Add(-1)
	e.Organization, e.ID = string(h.organization), operation.ID(h.subject)
	for _, w := range watches {
		w.entry = e
		close(w.done)
	}
}

// deliver tells the listeners what was taken up since the last call.
func (f *feed) deliver() {
	if len(f.batch) == 0 {
		return
	}
	if all := f.heard.Load(); all != nil {
		for _, l := range *all {
			l.hear(f.batch)
		}
	}
	clear(f.batch)
	f.batch = f.batch[:0]
}

func (f *feed) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = err
	for _, watches := range f.ends {
		for _, w := range watches {
			w.err = err
			close(w.done)
		}
	}
	f.ends = nil
	f.watched.Store(0)
}

// terminal says whether an operation has ended with an event of the kind.
func terminal(kind operation.EventKind) bool {
	switch kind {
	case operation.Succeeded, operation.Failed, operation.Canceled, operation.Deleted:
		return true
	}
	return false
}

// Watch waits for the end of one operation.
type Watch struct {
	feed  *feed
	key   string
	done  chan struct{}
	entry Entry
	err   error
}

// Watch begins to watch for an operation's end. Begun before the operation is submitted it cannot miss it; of an operation
// that may have ended before, ask after Watch has returned what it is now. Stop must be called.
func (c *Client) Watch(org string, id operation.ID) *Watch {
	f := &c.feed
	w := &Watch{feed: f, key: org + "\x00" + string(id), done: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended != nil {
		w.err = f.ended
		close(w.done)
		return w
	}
	if f.ends == nil {
		f.ends = make(map[string][]*Watch)
	}
	if f.ends[w.key] == nil {
		f.watched.Add(1)
	}
	f.ends[w.key] = append(f.ends[w.key], w)
	return w
}

// Wait returns the event with which the operation ended: succeeded, failed, canceled or deleted. When ctx ends first the
// error is its cause.
func (w *Watch) Wait(ctx context.Context) (Entry, error) {
	select {
	case <-w.done:
		return w.entry, w.err
	case <-ctx.Done():
		select {
		case <-w.done: // in the same moment
			return w.entry, w.err
		default:
			return Entry{}, context.Cause(ctx)
		}
	}
}

// Stop ends the watch.
func (w *Watch) Stop() {
	w.feed.mu.Lock()
	defer w.feed.mu.Unlock()
	watches := w.feed.ends[w.key]
	for i, other := range watches {
		if other == w {
			if len(watches) == 1 {
				delete(w.feed.ends, w.key)
				w.feed.watched.Add(-1)
			} else {
				w.feed.ends[w.key] = append(watches[:i:i], watches[i+1:]...)
			}
			return
		}
	}
}

// WaitEnd is Watch and Wait in one, for an operation that is known to be still going.
func (c *Client) WaitEnd(ctx context.Context, org string, id operation.ID) (Entry, error) {
	w := c.Watch(org, id)
	defer w.Stop()
	return w.Wait(ctx)
}

package query

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"strconv"
	"strings"
	"sync"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/projections"
)

// Feed hands changes on to those who listen.
type Feed struct {
	wanted chan struct{} // holds a token when a listener has come

	mu     sync.Mutex
	epoch  string // tells the numbers of this process, since the last gap in them, from others
	closed bool
	broad  int    // listeners that must hear what has changed
	seq    uint64 // of the latest change
	ring   []api.Change
	subs   map[*Subscription]struct{} // those that do not name one operation
	byID   map[name]map[*Subscription]struct{}
}

type name struct{ org, id string }

// The bounds of a feed.
const (
	ringSize   = 8192 // changes that are remembered for those who come back
	bufferSize = 1024 // changes that wait for one listener
)

// NewFeed returns a feed that has heard of nothing.
func NewFeed() *Feed {
	return &Feed{
		wanted: make(chan struct{}, 1), epoch: newEpoch(), ring: make([]api.Change, 0, ringSize),
		subs: map[*Subscription]struct{}{}, byID: map[name]map[*Subscription]struct{}{},
	}
}

func newEpoch() string { return strings.ToLower(rand.Text()[:8]) }

// ChangeOf says what a row has become.
func ChangeOf(row *projections.Row) api.Change {
	return api.Change{
		Organization: row.Org, ID: string(row.ID), Type: row.Request.Type, Standing: api.StandingOf(row.Status),
		Wait: row.Wait().String(), At: row.ModifiedAt.Go(), Position: positionOf(row.Partition, row.LastPlace).String(),
	}
}

// PublishBatch hands on what a batch has changed. Call it after the batch was written, so that who hears of a change can
// read it.
func (f *Feed) PublishBatch(b *projections.Batch) {
	changes := make([]api.Change, 0, len(b.Changes))
	for i := range b.Changes {
		if c := &b.Changes[i]; c.Written {
			changes = append(changes, ChangeOf(c.Row))
		}
	}
	f.Publish(changes)
}

// Publish hands changes on. It never waits for anybody.
func (f *Feed) Publish(changes []api.Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range changes {
		c := &changes[i]
		if len(f.ring) < ringSize {
			f.ring = append(f.ring, *c)
		} else {
			f.ring[f.seq%ringSize] = *c
		}
		f.seq++
		for s := range f.subs {
			s.put(f.seq, c)
		}
		for s := range f.byID[name{c.Organization, c.ID}] {
			s.put(f.seq, c)
		}
	}
}

// Signal wakes those who only want to know that this operation has changed.
func (f *Feed) Signal(org string, id operation.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.byID[name{org, string(id)}] {
		if s.interest.SignalOnly {
			s.wake()
		}
	}
}

// Gap says that there were changes which are not published: whoever listens is told to read again, and whoever comes back is,
// too.
func (f *Feed) Gap() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.epoch, f.seq, f.ring = newEpoch(), 0, f.ring[:0]
	for s := range f.subs {
		s.gap()
	}
	for _, subs := range f.byID {
		for s := range subs {
			s.gap()
		}
	}
}

// gap is Gap for one; the feed's lock is held.
func (s *Subscription) gap() {
	if s.err != nil {
		return
	}
	if !s.interest.SignalOnly {
		s.items, s.reset = nil, true
	}
	s.wake()
}

// Wanted is signalled when somebody begins to listen.
func (f *Feed) Wanted() <-chan struct{} { return f.wanted }

// Listened says whether anybody listens, and whether some of them must hear what has changed, and not only that something has.
func (f *Feed) Listened() (somebody, what bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.subs)+len(f.byID) > 0, f.broad > 0
}

// Close ends all subscriptions; new ones end at once.
func (f *Feed) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for s := range f.subs {
		s.fail(ErrClosed)
	}
	for _, subs := range f.byID {
		for s := range maps.Keys(subs) {
			s.fail(ErrClosed)
		}
	}
}

// Interest says what a listener wants to hear of.
type Interest struct {
	Organization string // "" means all
	ID           string // with an organization: one operation
	// Only that something has changed, not what: nothing is buffered.
	SignalOnly bool
	// LastEventID is the id of the last change that the listener heard of, "" for one that begins.
	LastEventID string
}

// The ends of a subscription.
var (
	ErrSlow   = errors.New("the listener did not keep up; listen again and read what was missed")
	ErrClosed = errors.New("the process stops; listen again elsewhere")
)

// Item is a change with its number in the feed.
type Item struct {
	Seq    uint64
	Change api.Change
}

// Subscription is one listener's place. Its methods are for one goroutine.
type Subscription struct {
	feed     *Feed
	interest Interest
	ready    chan struct{} // holds a token when there is something to take

	// Guarded by feed.mu.
	items []Item
	reset bool
	err   error
}

// Subscribe begins to listen. End it with Close.
func (f *Feed) Subscribe(in Interest) *Subscription {
	s := &Subscription{feed: f, interest: in, ready: make(chan struct{}, 1)}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		s.fail(ErrClosed)
		return s
	}
	if in.LastEventID != "" && !in.SignalOnly {
		s.catchUp(in.LastEventID)
	}
	if in.broad() {
		f.broad++
	}
	if in.ID == "" {
		f.subs[s] = struct{}{}
	} else {
		key := name{in.Organization, in.ID}
		if f.byID[key] == nil {
			f.byID[key] = map[*Subscription]struct{}{}
		}
		f.byID[key][s] = struct{}{}
	}
	select {
	case f.wanted <- struct{}{}:
	default:
	}
	return s
}

// broad says whether to signal one operation is not enough.
func (in *Interest) broad() bool { return !in.SignalOnly || in.ID == "" }

// catchUp queues what came after the event, or a reset if that is not known.
func (s *Subscription) catchUp(lastEventID string) {
	f := s.feed
	epoch, number, _ := strings.Cut(lastEventID, "-")
	seq, err := strconv.ParseUint(number, 10, 64)
	oldest := f.seq - uint64(len(f.ring)) // the change before the first that the ring has
	if err != nil || epoch != f.epoch || seq < oldest || seq > f.seq {
		s.reset = true
		s.wake()
		return
	}
	for n := seq + 1; n <= f.seq; n++ {
		s.put(n, &f.ring[(n-1)%ringSize])
		if s.err != nil { // more than a buffer: shorter to read the list again
			s.err, s.items, s.reset = nil, nil, true
			s.wake()
			return
		}
	}
}

// put queues a change; the feed's lock is held.
func (s *Subscription) put(seq uint64, c *api.Change) {
	in := &s.interest
	if s.err != nil || in.Organization != "" && (in.Organization != c.Organization || in.ID != "" && in.ID != c.ID) {
		return
	}
	if !in.SignalOnly {
		if len(s.items) == bufferSize {
			s.fail(ErrSlow)
			return
		}
		s.items = append(s.items, Item{seq, *c})
	}
	s.wake()
}

// fail ends the subscription; what was queued is given up, because it is no longer whole.
func (s *Subscription) fail(err error) {
	s.err, s.items = err, nil
	s.wake()
}

func (s *Subscription) wake() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// Ready is signalled when Take has something to give.
func (s *Subscription) Ready() <-chan struct{} { return s.ready }

// Taken is what a listener takes at a time.
type Taken struct {
	Items []Item
	Reset bool   // changes before Items may have been missed
	At    string // the event id to come back with when all of this was heard
	Err   error  // the subscription has ended

	epoch string
}

// EventID is the id of the i-th of Items.
func (t *Taken) EventID(i int) string { return t.epoch + "-" + strconv.FormatUint(t.Items[i].Seq, 10) }

// Take returns what has come since the last call.
func (s *Subscription) Take() Taken {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	t := Taken{Items: s.items, Reset: s.reset, At: s.feed.eventID(s.feed.seq), Err: s.err, epoch: s.feed.epoch}
	s.items, s.reset = nil, false
	return t
}

// Mark returns the event id to come back with while nothing is queued, "" when something is.
func (s *Subscription) Mark() string {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	if len(s.items) > 0 || s.reset || s.err != nil || s.interest.SignalOnly {
		return ""
	}
	return s.feed.eventID(s.feed.seq)
}

// eventID numbers a change; the lock is held.
func (f *Feed) eventID(seq uint64) string { return f.epoch + "-" + strconv.FormatUint(seq, 10) }

// Close ends the subscription.
func (s *Subscription) Close() {
	f := s.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	key := name{s.interest.Organization, s.interest.ID}
	_, all := f.subs[s]
	_, one := f.byID[key][s]
	if (all || one) && s.interest.broad() {
		f.broad--
	}
	delete(f.subs, s)
	if subs := f.byID[key]; subs != nil {
		if delete(subs, s); len(subs) == 0 {
			delete(f.byID, key)
		}
	}
}

// wait waits until there is something to take.
func (s *Subscription) wait(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func positionOf(partition int32, place operation.Place) api.Position {
	return api.Position{Partition: partition, Place: place}
}

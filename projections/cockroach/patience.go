package cockroach

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// patience is how long the database may take to answer.
//
// A connection can be dead without a word: what is written to it is taken, by a buffer or a machine on the way, and nothing comes back,
// ever. From here that looks like a statement that takes long, and only time tells the two apart. So what is not answered in time is
// tried anew on another connection, and is given twice the time then, so that a database which lives and is slow gets every batch
// done in the end, however large. The longer time stays while something needs it, and a while longer.
type patience struct {
	least time.Duration

	mu     sync.Mutex
	limit  time.Duration // above least; 0 for least
	needed time.Time     // when it last was
}

const (
	patienceMost  = 10 * time.Minute
	patienceStays = 10 * time.Minute

	// pingTime is how long a connection that has been idle may take to show that it lives before it is used.
	pingTime = 2 * time.Second
)

// now is how long to wait.
func (p *patience) now(at time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.limit != 0 && at.Sub(p.needed) > patienceStays {
		p.limit = 0
	}
	return max(p.limit, p.least)
}

// lost hears that so long was not enough.
func (p *patience) lost(limit time.Duration, at time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit, p.needed = max(p.limit, min(2*limit, patienceMost)), at
	return p.limit
}

// took hears how long something took that was answered.
func (p *patience) took(d time.Duration, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d > p.least/2 {
		p.needed = at
	}
}

// renewEvery is how often connections are made anew, at most, because the server refuses what they ask for.
const renewEvery = time.Second

// renew has all connections made anew, unless that was done a moment ago: a limit that is meant ends one statement and not all others.
//
// What a session may do was settled when it began: that it only reads, and how long its statements may take. An operator who puts
// the database right again, or makes another server the one that writes, changes that for new sessions alone, and the old ones
// would go on being refused until they are an hour old.
func (s *Store) renew(at time.Time) {
	was := s.renewed.Load()
	if at.UnixNano()-was < renewEvery.Nanoseconds() || !s.renewed.CompareAndSwap(was, at.UnixNano()) {
		return
	}
	s.pool.Reset()
}

// errSilent says that nothing was heard in time.
var errSilent = errors.New("the database did not answer in time")

// within does something that the database must answer, if it does at all, in the time that p gives it. When it does not, all
// connections are made anew: what has befallen one has mostly befallen the others.
func (s *Store) within(ctx context.Context, p *patience, do func(context.Context) error) error {
	began := time.Now()
	limit := p.now(began)
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := do(bounded)
	now := time.Now()
	if err == nil {
		p.took(now.Sub(began), now)
		return nil
	}
	if bounded.Err() == nil || ctx.Err() != nil {
		if ofSession(err) {
			s.renew(now)
		}
		if ofTables(err) { // the database was made anew, or restored from a copy: the next use looks what it is
			s.known.Store(nil)
		}
		return err
	}
	next := p.lost(limit, now)
	s.pool.Reset()
	return fmt.Errorf("%w, within %s; it is tried on another connection, for %s: %w", errSilent, limit, next, err)
}

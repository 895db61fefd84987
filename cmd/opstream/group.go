package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// group runs the parts of a service. The first part that ends, or the end of the caller's context, stops the rest: the
// parts that were added last stop first, each before the next one is told to, since they lean on the earlier ones.
type group struct {
	parts []*part
	ended chan struct{} // closed by the first part that ends
	once  sync.Once
	limit time.Duration // of a part's stop
}

type part struct {
	name string
	stop context.CancelFunc
	done chan struct{}
	err  error
}

func newGroup() *group { return &group{ended: make(chan struct{}), limit: partLimit} }

// start runs a part until it is stopped.
func (g *group) start(name string, run func(ctx context.Context) error) {
	ctx, stop := context.WithCancel(context.Background())
	p := &part{name: name, stop: stop, done: make(chan struct{})}
	g.parts = append(g.parts, p)
	go func() {
		defer close(p.done)
		defer g.once.Do(func() { close(g.ended) })
		p.err = run(ctx)
	}()
}

// wait returns when ctx or a part has ended.
func (g *group) wait(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-g.ended:
	}
}

// partLimit is how long a part may take to stop. Each has bounds of its own far below, of which a worker's are the widest; this one is
// for what nobody has thought of: a process that must be killed leaves more behind than one part that is given up.
const partLimit = 40 * time.Second

// stop stops all parts and returns their errors. That a part which was told to stop did not finish something is none.
func (g *group) stop() error {
	var errs []error
	for i := len(g.parts) - 1; i >= 0; i-- {
		p := g.parts[i]
		told := true
		select {
		case <-p.done:
			told = false
		default:
		}
		p.stop()
		select {
		case <-p.done:
		case <-time.After(g.limit):
			errs = append(errs, fmt.Errorf("%s: expected it to stop within %s, but it did not, and is given up", p.name, g.limit))
			continue
		}
		if p.err != nil && !(told && errors.Is(p.err, context.Canceled)) {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, p.err))
		}
	}
	g.parts = nil
	return errors.Join(errs...)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// group runs the parts of a service. The first part that ends, or the end of the caller's context, stops the rest: the
// parts that were added last stop first, each before the next one is told to, since they lean on the earlier ones.
type group struct {
	parts []*part
	ended chan struct{} // closed by the first part that ends
	once  sync.Once
}

type part struct {
	name string
	stop context.CancelFunc
	done chan struct{}
	err  error
}

func newGroup() *group { return &group{ended: make(chan struct{})} }

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
		<-p.done
		if p.err != nil && !(told && errors.Is(p.err, context.Canceled)) {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, p.err))
		}
	}
	g.parts = nil
	return errors.Join(errs...)
}

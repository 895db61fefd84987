package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
)

func newOpWait() *cobra.Command {
	var r remote
	var organization, after string
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "wait [ID… --organization O]",
		Short: "Wait for operations to end, or until nothing is left to do",
		Long: `wait with ids returns when all of them have ended, and says how each did: exit code 0 when
all succeeded, 1 when one failed or was canceled, 4 when one is not there.

wait without ids returns when no operation (of the organization, when one is given) is
ready, dispatched, running, pausing or canceling. Operations that wait for a time, an event,
a person or one another are counted, not waited for.

It listens for changes rather than asking again and again. When --timeout has passed first
the exit code is 5.`,
		Example: `  opstream op wait mail-7 mail-8 --organization contoso --timeout 5m
  opstream op submit --from requests.jsonl && opstream op wait`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			if err := needValues(cmd, "organization"); err != nil {
				return err
			}
			if len(ids) > 0 {
				if err := needOrganization(organization); err != nil {
					return err
				}
			}
			if timeout < 0 {
				return usage("expected --timeout to be positive, but got %s", timeout)
			}
			client, err := r.client(cmd)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			if len(ids) == 0 {
				return r.waitIdle(ctx, cmd, client, organization, after)
			}
			w := newWaiter(client, after)
			for _, id := range ids {
				w.add(organization, id)
			}
			return r.waitFor(ctx, cmd, w)
		},
	}
	c.Flags().StringVarP(&organization, "organization", "O", "", "organization of the operations; without ids: only of this one")
	c.Flags().DurationVar(&timeout, "timeout", 0, "wait no longer than that (0: as long as it takes)")
	afterFlag(c, &after)
	r.add(c)
	return c
}

// The times of waiting.
const (
	listenAgain    = time.Second      // before a stream that ended is opened again
	listenPatience = 30 * time.Second // for a service that does not answer
	lookAgain      = 15 * time.Second // at operations of which nothing was heard
	appearTime     = 3 * time.Second  // for an operation to appear in the tables
	settleTime     = 1500 * time.Millisecond
	parallelReads  = 8
	lookedAt       = 1000 // operations that are looked at again although a stream is open
	listedFrom     = 100  // operations that are looked for in a list
	explainedMax   = 100  // operations whose failures are looked up
)

// listen hands the events of the service to f until ctx ends, f returns an error or the service is silent for too long. It
// calls opened whenever what came before may have been missed: once the stream is open, and when the service says so.
func listen(ctx context.Context, client *api.Client, filter url.Values, opened func(), f func(api.ServerEvent) error) error {
	heard, never := time.Now(), true // when the service last answered, and whether it never did
	last := ""
	for {
		var own error
		var answered atomic.Bool
		trace := &httptrace.ClientTrace{GotFirstResponseByte: func() {
			answered.Store(true)
			opened()
		}}
		err := client.Events(httptrace.WithClientTrace(ctx, trace), filter, last, func(e api.ServerEvent) error {
			last = e.ID
			if e.Name == "reset" {
				opened()
			}
			own = f(e)
			return own
		})
		if answered.Load() {
			heard, never = time.Now(), false
		}
		var p *api.Problem
		switch {
		case own != nil:
			return own
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &p) && !p.Retryable:
			return err
		case time.Since(heard) > listenPatience || never && errors.Is(err, syscall.ECONNREFUSED):
			return err
		}
		timer := time.NewTimer(listenAgain)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// named is an operation's full name.
type named struct{ organization, id string }

// ended is what is told of an operation that is waited for.
type ended struct {
	Organization string       `json:"organization"`
	ID           string       `json:"id"`
	Status       string       `json:"status"` // "" when there is no such operation
	Failure      *api.Failure `json:"failure,omitempty"`
	NotFound     bool         `json:"notFound,omitempty"`
}

// waiter waits for operations to end. It remembers the names of those that have not.
type waiter struct {
	client *api.Client
	after  string

	mu        sync.Mutex
	open      map[named]time.Time // since when the tables are known not to have it; mostly zero
	total     int
	explained int         // failures that were looked up; for the goroutine that listens
	report    func(ended) // called with mu held
	changed   chan struct{}
}

func newWaiter(client *api.Client, after string) *waiter {
	return &waiter{client: client, after: after, open: map[named]time.Time{}, changed: make(chan struct{}, 1)}
}

func (w *waiter) add(organization, id string) {
	n := named{organization, id}
	if _, known := w.open[n]; !known {
		w.open[n] = time.Time{}
		w.total++
	}
}

func (w *waiter) left() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.open)
}

func (w *waiter) isOpen(n named) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, is := w.open[n]
	return is
}

// end notes that an operation has ended; only the first time counts.
func (w *waiter) end(n named, e ended) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, is := w.open[n]; !is {
		return
	}
	delete(w.open, n)
	e.Organization, e.ID = n.organization, n.id
	w.report(e)
	poke(w.changed)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// filter asks for no more events than are needed.
func (w *waiter) filter() url.Values {
	w.mu.Lock()
	defer w.mu.Unlock()
	filter := url.Values{"events": {"operation"}}
	organization, several := "", false
	for n := range w.open {
		several = several || organization != "" && organization != n.organization
		organization = n.organization
		if len(w.open) == 1 {
			filter.Set("id", n.id)
		}
	}
	if !several {
		filter.Set("organization", organization)
	}
	return filter
}

// run returns when all operations have ended. report is called for each, by one goroutine at a time; tick whenever some
// have.
func (w *waiter) run(ctx context.Context, report func(ended), tick func()) error {
	w.report = report
	if len(w.open) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	var listening sync.WaitGroup
	defer listening.Wait()
	defer cancel()

	opened, failed := make(chan struct{}, 1), make(chan error, 1)
	filter := w.filter()
	listening.Go(func() {
		failed <- listen(ctx, w.client, filter, func() { poke(opened) }, func(e api.ServerEvent) error {
			return w.hear(ctx, e)
		})
	})
	again := time.NewTimer(lookAgain)
	defer again.Stop()
	for w.left() > 0 {
		look := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			return err
		case <-w.changed:
			tick()
		case <-opened:
			look = true
		case <-again.C:
			look = w.left() <= lookedAt
			again.Reset(lookAgain)
		}
		if !look {
			continue
		}
		missing, err := w.look(ctx)
		if err != nil {
			return err
		}
		if missing {
			again.Reset(appearTime)
		}
	}
	tick()
	return nil
}

// hear takes a change of the stream.
func (w *waiter) hear(ctx context.Context, e api.ServerEvent) error {
	var change api.Change
	if e.Name != "operation" {
		return nil
	}
	if err := json.Unmarshal(e.Data, &change); err != nil {
		return fmt.Errorf("read an event of the service: %w; bring this program up to date", err)
	}
	n := named{change.Organization, change.ID}
	if !change.Ended() || !w.isOpen(n) {
		return nil
	}
	out := ended{Status: change.Status}
	if change.Status == operation.StatusFailed.String() && w.explained < explainedMax {
		w.explained++
		// Without it the operation has failed all the same.
		if o, err := w.client.Get(ctx, n.organization, n.id, api.Call{}); err == nil && o.Status == change.Status {
			out.Failure = o.Failure
		}
	}
	w.end(n, out)
	return nil
}

// look asks for all operations that are open, and says whether some are not there yet.
func (w *waiter) look(ctx context.Context) (missing bool, err error) {
	w.mu.Lock()
	names := slices.Collect(maps.Keys(w.open))
	w.mu.Unlock()
	if len(names) > listedFrom {
		seen := w.list(ctx, len(names))
		names = slices.DeleteFunc(names, func(n named) bool { return seen[n] })
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan named)
	var readers sync.WaitGroup
	var mu sync.Mutex
	for range min(parallelReads, len(names)) {
		readers.Go(func() {
			for n := range next {
				gone, err := w.lookAt(ctx, n)
				if err != nil {
					cancel(err)
				}
				mu.Lock()
				missing = missing || gone
				mu.Unlock()
			}
		})
	}
send:
	for _, n := range names {
		if !w.isOpen(n) {
			continue // it was heard of meanwhile
		}
		select {
		case next <- n:
		case <-ctx.Done():
			break send
		}
	}
	close(next)
	readers.Wait()
	if ctx.Err() != nil {
		return missing, context.Cause(ctx)
	}
	return missing, nil
}

// list looks for many operations at once, among the newest of the tables, and returns those that it has seen. What it has
// not seen, for whatever reason, is asked for one by one.
func (w *waiter) list(ctx context.Context, many int) map[named]bool {
	seen := make(map[named]bool, many)
	filter := url.Values{"limit": {strconv.Itoa(pageMax)}}
	if organization := w.filter().Get("organization"); organization != "" {
		filter.Set("organization", organization)
	}
	listed := 0
	for o, err := range w.client.List(ctx, filter, api.Call{After: w.after}) {
		if listed++; err != nil || len(seen) == many || listed > 2*many+pageMax {
			break
		}
		n := named{o.Organization, o.ID}
		if !w.isOpen(n) {
			continue
		}
		seen[n] = true
		if o.Ended() {
			w.end(n, ended{Status: o.Status, Failure: o.Failure})
		}
	}
	return seen
}

// lookAt asks for one operation. What cannot be read now is read later.
func (w *waiter) lookAt(ctx context.Context, n named) (missing bool, err error) {
	o, err := w.client.Get(ctx, n.organization, n.id, api.Call{After: w.after})
	var p *api.Problem
	switch {
	case err == nil:
		if o.Ended() {
			w.end(n, ended{Status: o.Status, Failure: o.Failure})
		}
		return false, nil
	case !errors.As(err, &p):
		return false, nil // the stream is gone, too, and has its patience
	case exitCodeOf(p) == exitNotFound:
		w.mu.Lock()
		since, open := w.open[n]
		if open && since.IsZero() {
			w.open[n] = time.Now()
		}
		w.mu.Unlock()
		// An operation that was submitted a moment ago may not be in the tables yet, unless their position was waited for.
		if w.after != "" || !since.IsZero() && time.Since(since) >= appearTime/2 {
			w.end(n, ended{NotFound: true})
			return false, nil
		}
		return true, nil
	case p.Retryable:
		return false, nil
	}
	return false, err
}

// waitFor waits for the waiter's operations, and reports each.
func (r *remote) waitFor(ctx context.Context, cmd *cobra.Command, w *waiter) error {
	out := cmd.OutOrStdout()
	bar := newProgress(cmd.ErrOrStderr(), r.output)
	rows := newTable(out, "ID", "STATUS", "WHY")
	code, begun := exitOK, time.Now()
	var unwritten error
	err := w.run(ctx, func(e ended) {
		switch {
		case e.NotFound:
			code = worse(code, exitNotFound)
		case e.Status != operation.StatusSucceeded.String():
			code = exitFailed
		}
		if r.output.json() {
			unwritten = cmp.Or(unwritten, printJSON(out, e))
			return
		}
		bar.clear()
		status, why := e.Status, ""
		if e.NotFound {
			status, why = "not found", "the tables have no such operation of this organization"
		}
		if e.Failure != nil {
			why = failureLine(e.Failure)
		}
		rows.row(e.ID, status, why)
		rows.print()
	}, func() {
		bar.show("%d of %d have ended, %s", w.total-w.left(), w.total, time.Since(begun).Round(time.Second))
	})
	bar.clear()
	if err != nil {
		if left := w.left(); left > 0 {
			names := slices.Collect(maps.Keys(w.open))
			shown := make([]string, min(len(names), 5))
			for i := range shown {
				shown[i] = clean(names[i].id)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%d of %d have not ended, such as %s\n", left, w.total, strings.Join(shown, ", "))
		}
		return r.waitFailed(cmd, err)
	}
	if err := cmp.Or(unwritten, rows.broken); err != nil {
		return err
	}
	if code != exitOK {
		return &exitError{code, nil}
	}
	return nil
}

// waitFailed tells a time that has passed from other failures.
func (r *remote) waitFailed(cmd *cobra.Command, err error) error {
	if errors.Is(err, context.DeadlineExceeded) && cmd.Context().Err() == nil {
		return &exitError{exitUnavailable, errors.New("the time of --timeout has passed; wait again, or look at what is left with: opstream op list")}
	}
	return r.fail(cmd, err)
}

// waitIdle waits until nothing is left to do.
func (r *remote) waitIdle(ctx context.Context, cmd *cobra.Command, client *api.Client, organization, after string) error {
	if after != "" {
		if _, err := client.Counts(ctx, organization, api.Call{After: after, Wait: api.WaitMax}); err != nil {
			return r.waitFailed(cmd, err)
		}
	}
	filter := url.Values{"events": {"counts"}}
	if organization != "" {
		filter.Set("organization", organization)
	}
	ctx, cancel := context.WithCancel(ctx)
	var listening sync.WaitGroup
	defer listening.Wait()
	defer cancel()
	news, failed := make(chan api.Counts), make(chan error, 1)
	listening.Go(func() {
		failed <- listen(ctx, client, filter, func() {}, func(e api.ServerEvent) error {
			var counts api.Counts
			if e.Name != "counts" {
				return nil
			}
			if err := json.Unmarshal(e.Data, &counts); err != nil {
				return fmt.Errorf("read an event of the service: %w; bring this program up to date", err)
			}
			select {
			case news <- counts:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	bar := newProgress(cmd.ErrOrStderr(), r.output)
	defer bar.clear()
	var counts api.Counts
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			bar.clear()
			return r.waitFailed(cmd, ctx.Err())
		case err := <-failed:
			bar.clear()
			return r.waitFailed(cmd, err)
		case <-settled:
			return r.idle(cmd, bar, &counts)
		case counts = <-news:
		}
		busy, chained := workOf(&counts)
		switch {
		case busy > 0:
			settled = nil
			bar.show("%d to do, %d of %d have ended", busy, endedOf(&counts), counts.Total)
		case chained == 0:
			return r.idle(cmd, bar, &counts)
		case settled == nil:
			// Between the end of an operation and the release of the next one of its token nothing is busy for a moment.
			settled = time.After(settleTime)
		}
	}
}

func (r *remote) idle(cmd *cobra.Command, bar *progress, counts *api.Counts) error {
	bar.clear()
	if r.output.json() {
		return printJSON(cmd.OutOrStdout(), counts)
	}
	if err := showCounts(cmd.OutOrStdout(), counts); err != nil {
		return err
	}
	waiting := int64(0)
	for _, s := range counts.ByStatus {
		if s.Status == operation.StatusWaiting.String() {
			waiting = s.Count
		}
	}
	if waiting > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "nothing is left to do; %d wait, see: opstream op list --status waiting\n", waiting)
	} else {
		fmt.Fprintln(cmd.ErrOrStderr(), "nothing is left to do")
	}
	return nil
}

// workOf counts what is being done or can be, and what waits for another operation.
func workOf(c *api.Counts) (busy, chained int64) {
	for _, s := range c.ByStatus {
		if status, ok := operation.ParseStatus(s.Status); ok && !status.Terminal() && status != operation.StatusWaiting {
			busy += s.Count
		}
	}
	for _, w := range c.ByWait {
		if w.Wait == operation.WaitDependency.String() {
			chained += w.Count
		}
	}
	return busy, chained
}

func endedOf(c *api.Counts) (n int64) {
	for _, s := range c.ByStatus {
		if s.Ended() {
			n += s.Count
		}
	}
	return n
}

package simulation

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/producers/command"
)

// history is all that was seen from outside.
type history struct {
	began time.Time

	mu    sync.Mutex
	lines []line
	runs  []*handlerRun
	calls []*call

	reads   []*read
	streams []*stream
}

// line is one observation.
type line struct {
	at   time.Duration
	who  string
	text string
}

// handlerRun is one call of a handler.
type handlerRun struct {
	partition   int32
	org         string
	id          operation.ID
	attempt     operation.Attempt
	host        *host
	began       time.Duration
	ended       time.Duration // when it returned, or its process fell; -1 while it runs
	interrupted time.Duration // when its context ended, -1 if it did not
	cause       error
	data        string // what it was given
}

// call is one command of one client.
type call struct {
	plan   commandPlan
	op     *opPlan
	who    string
	began  time.Duration
	ended  time.Duration
	sent   *operation.Command
	answer command.Answer
	err    error
	acked  bool // plain: the broker has it

	// Of calls through the API.
	status  int            // of HTTP
	refused bool           // it was told that nothing has come of it
	shown   *api.Operation // with Prefer: wait
}

func (h *history) now() time.Duration { return time.Since(h.began) }

func (h *history) note(who, format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, line{h.now(), who, fmt.Sprintf(format, args...)})
}

// write shows the history, one line an event, merged in time.
func (h *history) write(w io.Writer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	slices.SortStableFunc(h.lines, func(a, b line) int { return int(a.at - b.at) })
	for _, l := range h.lines {
		fmt.Fprintf(w, "%12.6f %-13s %s\n", l.at.Seconds(), l.who, l.text)
	}
}

// logOf writes what a part logs into the history.
type logOf struct {
	h     *history
	who   string
	attrs string
	hear  func(message string)
}

func (l logOf) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (l logOf) Handle(_ context.Context, r slog.Record) error {
	if l.hear != nil {
		l.hear(r.Message)
	}
	var b strings.Builder
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%.300v", a.Key, a.Value)
		return true
	})
	l.h.note(l.who, "log %s: %s%s%s", r.Level, r.Message, l.attrs, b.String())
	return nil
}

func (l logOf) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		l.attrs += fmt.Sprintf(" %s=%v", a.Key, a.Value)
	}
	return l
}

func (l logOf) WithGroup(string) slog.Handler { return l }

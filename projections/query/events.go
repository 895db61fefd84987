package query

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/opstream/opstream/internal/api"
)

// The times of a stream.
const (
	countsEvery = time.Second      // at most
	writeTime   = 10 * time.Second // for a client to take what is sent
)

// events streams changes as server-sent events.
func (q *Query) events(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	org, err := given(query, "organization")
	if err != nil {
		return err
	}
	id, err := given(query, "id")
	if err != nil {
		return err
	}
	in := Interest{Organization: org, ID: id, LastEventID: r.Header.Get("Last-Event-ID")}
	if in.ID != "" && in.Organization == "" {
		return api.NewProblem(api.InvalidParameter, "an id means nothing without its organization").At("organization")
	}
	operations, counts := true, false
	if query.Has("events") {
		operations = false
		for _, kind := range split(query, "events") {
			switch kind {
			case "operation":
				operations = true
			case "counts":
				counts = true
			default:
				return api.NewProblem(api.InvalidParameter, "expected operation or counts, but got %q", shorten(kind)).At("events")
			}
		}
	}
	if counts && in.ID != "" {
		return api.NewProblem(api.InvalidParameter, "one operation is not counted; leave out counts or id").At("events")
	}
	in.SignalOnly = !operations
	defer q.listeners.Add(-1)
	if q.listeners.Add(1) > int64(q.ListenersMax) {
		return api.NewProblem(api.TooManyListeners, "%d clients listen already", q.ListenersMax)
	}
	// In this order, so that of whatever is not in the positions that are told the listener hears.
	sub := q.Feed.Subscribe(in)
	defer sub.Close()
	if err := q.fresh(w, r); err != nil {
		return err
	}

	out := &stream{w: w, rc: http.NewResponseController(w)}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // proxies that would collect a page before they send it
	w.WriteHeader(http.StatusOK)
	out.buf.WriteString("retry: 2000\n")
	// Who loses the connection before anything has come must be able to ask for what he missed, too.
	if id := sub.Mark(); id != "" {
		out.buf.WriteString("id: " + id + "\n")
	}
	out.buf.WriteString("\n")
	if err := out.flush(); err != nil {
		return nil
	}

	heartbeat := time.NewTicker(q.Heartbeat)
	defer heartbeat.Stop()
	// Counts are due at the beginning, and then when something has changed, but not more often than every second. Those that were counted
	// for somebody else before this listener heard of the last change may lack it, so others are due a second later.
	var due <-chan time.Time
	var lastCounts time.Time
	heard := time.Now() // of a change; at first of those before the beginning
	waiting := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	if counts {
		due, waiting = timer.C, true
	}
	for {
		select {
		case <-r.Context().Done():
			return nil
		case <-heartbeat.C:
			// The id without data moves Last-Event-ID forward while nothing comes that is of interest.
			if id := sub.Mark(); id != "" {
				out.buf.WriteString("id: " + id + "\n")
			}
			out.buf.WriteString(": alive\n\n")
		case <-due:
			lastCounts = time.Now()
			c, err := q.sharedCounts(r.Context(), in.Organization, lastCounts.Add(-countsEvery))
			if err == nil {
				out.event("counts", "", c.counts)
			}
			// Where the tables could not be read, nothing may change for long, and this listener would go on with old counts.
			if waiting = err != nil || c.at.Before(heard); waiting {
				timer.Reset(countsEvery)
			}
		case <-sub.Ready():
			taken := sub.Take()
			heard = time.Now()
			if taken.Err != nil {
				out.event("dropped", "", dropped{reasonOf(taken.Err)})
				_ = out.flush() // the last, whether it is heard or not
				return nil
			}
			if taken.Reset {
				out.event("reset", taken.At, dropped{"changes may have been missed; read the list again"})
			}
			for i := range taken.Items {
				out.event("operation", taken.EventID(i), &taken.Items[i].Change)
			}
			if counts && !waiting {
				waiting = true
				timer.Reset(max(0, time.Until(lastCounts.Add(countsEvery))))
			}
		}
		if err := out.flush(); err != nil {
			return nil // the client has gone, or takes nothing
		}
	}
}

type dropped struct {
	Reason string `json:"reason"`
}

func reasonOf(err error) string {
	if errors.Is(err, ErrClosed) {
		return ErrClosed.Error()
	}
	return ErrSlow.Error()
}

// stream writes server-sent events.
type stream struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	buf bytes.Buffer
}

func (s *stream) event(kind, id string, data any) {
	body, err := api.Encode(data)
	if err != nil {
		return // only what encodes is given here
	}
	s.buf.WriteString("event: " + kind + "\n")
	if id != "" {
		s.buf.WriteString("id: " + id + "\n")
	}
	s.buf.WriteString("data: ")
	s.buf.WriteString(strings.TrimSpace(string(body)))
	s.buf.WriteString("\n\n")
}

func (s *stream) flush() error {
	if s.buf.Len() == 0 {
		return nil
	}
	// A writer that knows no deadlines or flushes is one of a test.
	_ = s.rc.SetWriteDeadline(time.Now().Add(writeTime))
	_, err := s.w.Write(s.buf.Bytes())
	s.buf.Reset()
	if s.buf.Cap() > 1<<20 {
		s.buf = bytes.Buffer{}
	}
	if err != nil {
		return err
	}
	if err := s.rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

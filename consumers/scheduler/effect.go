package scheduler

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/internal/kafkaclient"
	"github.com/opstream/opstream/internal/oftenlog"
	"github.com/opstream/opstream/internal/safeguard"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// commit sends the effects of an event that the journal holds.
func (a *actor) commit(ev *appended) {
	a.outbox.Commit(&operation.Event{Kind: ev.kind, Org: ev.org, ID: ev.id, Session: ev.session}, ev.place)
	switch ev.kind {
	case operation.Dispatched, operation.CancelRequested, operation.PauseRequested:
		if s := a.engine.State(ev.org, ev.id); s != nil {
			a.tell(s, ev.kind == operation.Dispatched)
		}
	case operation.Forwarded:
		a.forward(ev.place, ev.to, ev.body)
	}
}

// tell sends what the session that holds an open attempt must know: the item, or that it is to stop. The engine may be
// ahead of the journal; what is not committed is not told.
func (a *actor) tell(s *operation.State, item bool) {
	place, open := a.outbox.Open(partition.Ref{Org: s.Org, ID: s.ID})
	if !open || !s.Status.Locked() || s.DispatchedPlace != place {
		return
	}
	inbox, known := a.engine.Inbox(s.Session)
	if !known {
		return // its next heartbeat leads here again, or its silence ends the attempt
	}
	var rec *kgo.Record
	if item {
		rec = schemas.EncodeItem(a.s.cfg.Topics, &schemas.Item{
			Session: s.Session, Partition: a.p, Place: place, Low: a.outbox.Low(s.Session, place),
			Org: s.Org, ID: s.ID, Attempt: s.Attempt, Failures: s.Failures,
			Request: s.Request, Carry: s.Carry, SentAt: a.now(),
		})
	} else {
		rec = schemas.EncodeStop(a.s.cfg.Topics, &schemas.Stop{
			Pause: s.Status == operation.StatusPausing, Session: s.Session, Partition: a.p, Place: place,
			Org: s.Org, ID: s.ID, Attempt: s.Attempt, Reason: s.By.Reason,
		})
	}
	rec.Partition = inbox
	a.s.mail.sent(inbox, a.s.ticks.now())
	// Not waited for: an item that gets lost is offered again.
	a.s.out.Produce(a.s.ctx, rec, a.s.told)
}

// hearTold makes told. What is lost for a reason that lasts is offered again in vain, and nobody else would say so.
func (s *Scheduler) hearTold() func(*kgo.Record, error) {
	lost := oftenlog.New(s.log, "a worker was not told what to do; it is tried again when nothing is heard of the attempt", "topic")
	return func(rec *kgo.Record, err error) {
		s.mail.answered(rec.Partition, s.ticks.now())
		if err != nil && s.ctx.Err() == nil {
			if kafka := (*kerr.Error)(nil); !errors.As(err, &kafka) {
				s.out.ForceMetadataRefresh() // of inboxes that were added the client hears after minutes else
			}
			lost.Warn(rec.Topic, slog.Int("partition", int(rec.Partition)), slog.Any("err", kafkaclient.Explain(err)))
		}
	}
}

// offerAgain repeats the offers of which nothing was heard for long.
func (a *actor) offerAgain(t operation.Time) {
	if safeguard.NoResend {
		return
	}
	a.engine.Overdue(t, false, func(s *operation.State) {
		inbox, _ := a.engine.Inbox(s.Session)
		if stuck := a.s.mail.stuck(inbox, t); stuck >= resendEvery {
			if stuck >= mailPatience {
				a.s.undelivered.Warn(a.s.cfg.Topics.Inboxes(), slog.Int("partition", int(inbox)), slog.Duration("for", stuck))
			}
			return // it is on its way for as long as that lasts
		}
		a.tell(s, true)
		if s.Status == operation.StatusCanceling || s.Status == operation.StatusPausing {
			a.tell(s, false)
		}
	})
}

// mailPatience is how long the brokers may take nothing for an inbox before somebody should look.
const mailPatience = 5 * time.Second

// mail counts what is on its way to each inbox. The client keeps what a partition's leader does not take, and sends it when it can. To offer
// it again meanwhile would fill the memory that it shares with all appends, until none is made any more.
type mail struct {
	mu      sync.Mutex
	inboxes map[int32]*letters
}

type letters struct {
	under int            // not answered yet
	since operation.Time // when the first was sent, or one was answered
}

func (m *mail) sent(inbox int32, now operation.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.inboxes[inbox]
	if l == nil {
		l = &letters{}
		m.inboxes[inbox] = l
	}
	if l.under++; l.under == 1 {
		l.since = now
	}
}

func (m *mail) answered(inbox int32, now operation.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.inboxes[inbox]
	if l.under--; l.under == 0 {
		delete(m.inboxes, inbox)
	} else {
		l.since = now
	}
}

// stuck is for how long nothing of what is on its way was answered.
func (m *mail) stuck(inbox int32, now operation.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.inboxes[inbox]; l != nil {
		return now.Sub(l.since)
	}
	return 0
}

// effectsMark is the oldest place whose signal is not known to be on the log.
type effectsMark struct {
	unsent map[operation.Place]struct{}
}

func (m *effectsMark) through(end operation.Place) operation.Place {
	for p := range m.unsent {
		end = min(end, p)
	}
	return end
}

// forward sends a mis-keyed request to the partition that its key names.
func (a *actor) forward(place operation.Place, to int32, body []byte) {
	if a.mark.unsent == nil {
		a.mark.unsent = make(map[operation.Place]struct{})
	}
	a.mark.unsent[place] = struct{}{}
	rec, err := schemas.UnwrapRequest(body)
	var c operation.Command
	if err == nil {
		c, err = schemas.DecodeCommand(rec)
	}
	if err != nil { // it was decoded before it was forwarded
		a.log.Error("a forwarded request cannot be read", "place", int64(place), "err", err)
		return
	}
	rec = schemas.EncodeForwarded(a.s.cfg.Topics, body, schemas.KeyOf(rec, &c), to, fmt.Sprintf("%d-%d", a.p, place))
	a.s.out.Produce(a.s.ctx, rec, func(rec *kgo.Record, err error) {
		if err != nil {
			a.log.Error("signal was not written; it is sent again after the next recovery", "topic", rec.Topic, "to", to, "err", err)
			return
		}
		a.mu.Lock()
		a.signaled = append(a.signaled, place)
		a.mu.Unlock()
	})
}

// resumeEffects sends again what a crash may have left unsent. Receivers know what they have had.
func (a *actor) resumeEffects() {
	for _, ev := range a.unsent {
		a.forward(ev.place, ev.to, ev.body)
	}
	a.unsent = nil
}

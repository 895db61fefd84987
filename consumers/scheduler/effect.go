package scheduler

import (
	"errors"
	"fmt"
	"log/slog"

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
	// Not waited for: an item that gets lost is offered again.
	a.s.out.Produce(a.s.ctx, rec, a.s.told)
}

// hearTold makes told. What is lost for a reason that lasts is offered again in vain, and nobody else would say so.
func (s *Scheduler) hearTold() func(*kgo.Record, error) {
	lost := oftenlog.New(s.log, "a worker was not told what to do; it is tried again when nothing is heard of the attempt", "topic")
	return func(rec *kgo.Record, err error) {
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
		a.tell(s, true)
		if s.Status == operation.StatusCanceling || s.Status == operation.StatusPausing {
			a.tell(s, false)
		}
	})
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

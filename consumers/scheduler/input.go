package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kgo"
)

// inputs are records that wait to be decided, in the order in which they were fetched; the actor's mutex guards it.
type inputs struct {
	waiting []*kgo.Record
	spare   []*kgo.Record // the other half of the double buffer
	paused  bool          // too many wait: the topic's partition is not fetched
}

// take removes the first n at most. It returns resume when fetching may go on, and more when some are left.
func (q *inputs) take(n, queueMax int) (records []*kgo.Record, resume, more bool) {
	records = q.waiting
	if more = len(records) > n; more {
		records = records[:n:n]
		q.waiting = q.waiting[n:]
	} else {
		q.waiting, q.spare = q.spare[:0], nil
	}
	if resume = q.paused && len(q.waiting) <= queueMax/2; resume {
		q.paused = false
	}
	return records, resume, more
}

// requestsAtOnce is how many requests are decided before reports are looked at again: a flood of new work must not keep
// what is under way from ending.
const requestsAtOnce = 512

// takeInputs decides inputs that wait, as far as the room for appends allows: reports and signals first.
func (a *actor) takeInputs(ctx context.Context, t operation.Time, cause *operation.Cause) {
	room := a.s.cfg.InFlightMax - len(a.flying)
	a.mu.Lock()
	reports, resumeReports, moreReports := a.reports.take(room, a.s.cfg.QueueMax)
	requests, resumeRequests, moreRequests := a.requests.take(min(requestsAtOnce, max(room-len(reports), 0)), a.s.cfg.QueueMax)
	a.mu.Unlock()
	if resumeReports || resumeRequests {
		a.s.fetch.resume(a.p, resumeReports, resumeRequests)
	}
	if moreReports || moreRequests {
		a.signal()
	}
	for _, records := range [][]*kgo.Record{reports, requests} {
		for i, rec := range records {
			*cause = a.input(ctx, rec, t)
			records[i] = nil
		}
	}
	a.mu.Lock()
	if !moreReports {
		a.reports.spare = reports[:0]
	}
	if !moreRequests {
		a.requests.spare = requests[:0]
	}
	a.mu.Unlock()
}

// input decides one record and returns it as the cause of what follows.
func (a *actor) input(ctx context.Context, rec *kgo.Record, t operation.Time) operation.Cause {
	cause := operation.Cause{Topic: a.s.cfg.Topics.Short(rec.Topic), Offset: rec.Offset}
	if a.engine.Read(cause) {
		return cause
	}
	original := rec
	var c operation.Command
	var err error
	switch cause.Topic {
	case schemas.TopicReports:
		c, err = schemas.DecodeReport(rec)
	case schemas.TopicSignals:
		if rec, err = schemas.DecodeForwarded(rec); err != nil {
			break
		}
		fallthrough
	default:
		c, err = schemas.DecodeCommand(rec)
		if err == nil && cause.Topic == schemas.TopicRequests {
			if to := schemas.ExpectedPartition(rec, &c, int32(a.s.cfg.Engine.Partitions)); to != a.p {
				a.engine.Forward(to, schemas.WrapRequest(rec), cause, t)
				return cause
			}
		}
	}
	c.Cause = cause
	var refusal *schemas.Refusal
	switch {
	case errors.As(err, &refusal):
		a.engine.Refuse(&c, refusal.Code, refusal.Error(), t)
		return cause
	case err != nil:
		a.bury(original, err)
		return cause
	}
	if need, wants := a.engine.Do(&c, t); wants {
		a.retry(ctx, &c, need, t)
	}
	return cause
}

// retry reads the request of an operation that has ended from the journal, and decides its retry by hand. The partition
// waits for that: later inputs must not overtake this one.
func (a *actor) retry(ctx context.Context, c *operation.Command, place operation.Place, t operation.Time) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := a.requestAt(ctx, place)
	if err == nil && c.Data != nil {
		req = schemas.WithData(req, c.Data)
	}
	if err != nil {
		a.log.Error("the request of a failed operation cannot be read from the journal", "operation_id", string(c.ID), "place", int64(place), "err", err)
		a.engine.Refuse(c, operation.Forgotten, "the operation's request could not be read: "+err.Error(), t)
		return
	}
	c.Request = req
	a.engine.Do(c, t)
}

// bury puts a record that cannot be read where people look, with the reason.
func (a *actor) bury(rec *kgo.Record, why error) {
	code := schemas.MalformedJSON
	if bad, ok := schemas.IsDecodeError(why); ok {
		code = bad.Code
	}
	dead := schemas.DeadLetter(a.s.cfg.Topics, rec, code, why.Error(), a.s.cfg.Owner, a.s.cfg.now())
	a.log.Warn("input cannot be read", "topic", rec.Topic, "offset", rec.Offset, "err", why)
	a.s.out.Produce(a.s.ctx, dead, func(_ *kgo.Record, err error) {
		if err != nil {
			a.log.Error("dead letter was not written", "topic", rec.Topic, "offset", rec.Offset, "err", err)
		}
	})
}

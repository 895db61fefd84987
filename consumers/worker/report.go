package worker

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/kafkaclient"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// answer is a report, as it is made and may be made again. What it says does not change once it was given to send.
type answer struct {
	session *session
	at      spot
	command operation.Command
	key     []byte
	done    chan error   // for whoever waits until it is on the log
	size    int          // for answers
	since   atomic.Int64 // when it was given to the client, in Unix nanoseconds; 0 while it is not there
}

// resendAfter is how long a report rests that the client could not deliver. The client itself tries again without end
// whatever may pass, so this is for what it gives up: its buffer is full, or the topic is not there.
const resendAfter = 100 * time.Millisecond

// send hands a report to the client and does not wait. The caller has asked mayReport at now.
func (s *session) send(r *answer, now time.Time) {
	r.since.CompareAndSwap(0, now.UnixNano())
	s.unsent.Add(1)
	s.put(r, now)
}

// repeat sends a report of before again, unless it has been on its way for long: who asks again while its partition takes nothing must not
// have the client keep one more of it each time.
func (s *session) repeat(r *answer, now time.Time) {
	if since := r.since.Load(); since == 0 || now.UnixNano()-since < int64(time.Second) {
		s.send(r, now)
	}
}

func (s *session) put(r *answer, now time.Time) {
	rec := schemas.EncodeReport(s.w.cfg.Topics, &r.command, r.key)
	rec.Partition, rec.Timestamp = r.at.partition, s.w.wall(now)
	// detached: the report must reach the log whatever becomes of its handler's context; the client ends with the session.
	s.client.TryProduce(context.Background(), rec, r.acked)
}

// acked hears what became of the report.
func (r *answer) acked(rec *kgo.Record, err error) {
	s := r.session
	switch {
	case err == nil:
	case s.isOver():
		err = ErrLeaseLost
	case errors.Is(err, kerr.MessageTooLarge):
		s.w.reportsTooLarge.Warn(rec.Topic, slog.Int("partition", int(rec.Partition)),
			slog.String("operation_id", string(r.command.ID)), slog.Int("attempt", int(r.command.Attempt)), slog.Int("bytes", len(rec.Value)))
		again := &answer{session: s, at: r.at, key: r.key, command: r.command}
		again.command.Result, again.command.Carry = nil, nil
		switch r.command.Kind {
		case operation.Succeed, operation.Yield:
			again.command.Kind = operation.Fail
			again.command.Failure = failureOf(Final(WithCode(err, CodeResultTooLarge, 0, "")))
			s.send(again, time.Now())
		case operation.Stop: // who canceled the operation does not need its checkpoint, but must see it end
			if r.command.Carry != nil {
				s.send(again, time.Now())
			}
		}
	default:
		s.w.counters.Resent.Add(1)
		s.w.reportsFail.Warn(rec.Topic, slog.Int("partition", int(rec.Partition)),
			slog.String("operation_id", string(r.command.ID)), slog.Int("attempt", int(r.command.Attempt)), slog.Any("err", kafkaclient.Explain(err)))
		time.AfterFunc(resendAfter, func() {
			if err := s.stillMayReport(); err != nil {
				r.settle(err)
				return
			}
			s.put(r, time.Now())
		})
		return
	}
	r.settle(err)
}

func (r *answer) settle(err error) {
	r.since.Store(0)
	if r.done != nil {
		r.done <- err
	}
	if r.session.unsent.Add(-1) == 0 {
		r.session.signal()
	}
}

package answers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/producers/command"
	"github.com/opstream/opstream/schemas"
)

func lonely() *partition {
	return &partition{requests: "requests", slots: make(chan struct{}, 1<<20), lost: -1, last: -1, sent: -1, givenUp: -1}
}

func (p *partition) mustEnter(t *testing.T) *call {
	t.Helper()
	p.slots <- struct{}{}
	c, late, _, err := p.enter(time.Now(), 2*time.Second)
	if c == nil {
		t.Fatalf("expected to be let in, but the partition is %s late, %v", late, err)
	}
	return c
}

func (p *partition) hear(offsets ...int64) {
	if !p.asked() {
		return
	}
	p.seen = p.seen[:0]
	for _, o := range offsets {
		p.seen = append(p.seen, early{o, &kgo.Record{Offset: 1000 + o}})
	}
	p.match()
}

// Whatever the order in which acknowledgements, answers and timeouts come: who is answered gets the first event for his
// command, who is not is told the truth about what is known, and nothing is left behind.
func TestMatchingInAnyOrder(t *testing.T) {
	for seed := range uint64(3000) {
		dice := rand.New(rand.NewPCG(seed, 0))
		p := lonely()
		type sent struct {
			*call
			offset   int64
			answered bool // by the scheduler
		}
		var calls []*sent
		next, acked := int64(0), 0
		answerable := []*sent{}
		var log []string
		for range 60 {
			switch dice.IntN(6) {
			case 0, 1: // ours
				s := &sent{call: p.mustEnter(t), offset: next}
				calls, answerable = append(calls, s), append(answerable, s)
				log = append(log, fmt.Sprint("send ", next))
				next++
			case 2: // another process's
				answerable = append(answerable, &sent{offset: next})
				next++
			case 3:
				if acked < len(calls) {
					s := calls[acked]
					acked++
					log = append(log, fmt.Sprint("ack ", s.offset))
					p.acked(s.call, producers.Position{Offset: s.offset}, nil)
				}
			case 4: // the scheduler answers some, perhaps passing over one
				n := min(dice.IntN(4), len(answerable))
				var offsets []int64
				for _, s := range answerable[:n] {
					if dice.IntN(20) == 0 {
						continue
					}
					s.answered = true
					offsets = append(offsets, s.offset)
					if dice.IntN(3) == 0 {
						offsets = append(offsets, s.offset)
					}
				}
				answerable = answerable[n:]
				log = append(log, fmt.Sprint("hear ", offsets))
				p.hear(offsets...)
			case 5:
				if len(calls) > 0 && dice.IntN(4) == 0 {
					s := calls[dice.IntN(len(calls))]
					log = append(log, fmt.Sprint("abandon ", s.offset))
					ctx, cancel := context.WithCancel(t.Context())
					cancel()
					p.abandon(ctx, s.call)
				}
			}
		}
		for ; acked < len(calls); acked++ {
			p.acked(calls[acked].call, producers.Position{Offset: calls[acked].offset}, nil)
		}
		p.hear(next) // a last one, so that what was passed over is known to be
		for _, s := range calls {
			select {
			case <-s.done:
			default:
				t.Fatalf("seed %d: expected command %d to be over\n%q", seed, s.offset, log)
			}
			unheard, _ := errors.AsType[*Unheard](s.err)
			switch {
			case s.err == nil && (!s.answered || s.rec.Offset != 1000+s.offset):
				t.Fatalf("seed %d: expected no answer but its own for %d, but got that at %d\n%q", seed, s.offset, s.rec.Offset, log)
			case s.err != nil && s.answered && !errors.Is(s.err, context.Canceled):
				t.Fatalf("seed %d: expected the answer for %d, but got %v\n%q", seed, s.offset, s.err, log)
			case s.err != nil && (unheard == nil || unheard.Offset != s.offset && unheard.Offset != -1):
				t.Fatalf("seed %d: expected an error that says where command %d stands, but got %v\n%q", seed, s.offset, s.err, log)
			}
		}
		if p.unacked != 0 || len(p.waiting) != 0 || len(p.early) != 0 || len(p.slots) != 0 || p.givenUp != -1 || p.asked() {
			t.Fatalf("seed %d: expected nothing to be left, but got %+v\n%q", seed, p, log)
		}
	}
}

func TestLatePartitionRefusesAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := lonely()
		refused := func() (time.Duration, <-chan struct{}) {
			t.Helper()
			c, late, moved, err := p.enter(time.Now(), 2*time.Second)
			if c != nil || err != nil {
				t.Fatalf("expected a refusal, but got %v, %v", c, err)
			}
			return late, moved
		}
		first := p.mustEnter(t)
		time.Sleep(2 * time.Second)
		p.acked(first, producers.Position{Offset: 0}, nil)
		second := p.mustEnter(t)
		p.acked(second, producers.Position{Offset: 1}, nil)
		time.Sleep(time.Second)
		late, moved := refused()
		if late != 3*time.Second {
			t.Errorf("expected to be 3 s late, but got %s", late)
		}
		// The callers give up, but their commands are on the log, and until they are answered the partition is late: one
		// command in a second goes through, to see.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if !p.abandon(ctx, first) || !p.abandon(ctx, second) || p.abandon(ctx, second) {
			t.Error("expected each call to be given up once")
		}
		if _, refuses := p.refuses(time.Now(), 2*time.Second); refuses {
			t.Error("expected it to be told that one may come")
		}
		probe := p.mustEnter(t)
		if late, _ := refused(); late != 3*time.Second {
			t.Errorf("expected to be 3 s late, but got %s", late)
		}
		p.acked(probe, producers.Position{Offset: 2}, nil)
		time.Sleep(time.Second)
		refused() // the probe waits itself
		select {
		case <-moved:
			t.Fatal("expected nothing to have moved")
		default:
		}
		p.hear(0)
		<-moved
		p.mustEnter(t) // what waits now is the probe, and that for a second only
	})
}

// A scheduler that decides 100 requests a second would answer the last of 300 commands after 3 s. They come within a moment, so that by
// the age of the oldest alone all would be let in.
func TestWhoWouldWaitTooLongIsRefusedBeforeAnybodyHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := lonely()
		offset := int64(0)
		send := func() {
			p.acked(p.mustEnter(t), producers.Position{Offset: offset}, nil)
			offset++
		}
		send()
		p.hear(0)
		for range 150 { // nothing is known of the speed yet
			send()
		}
		for decided := int64(10); decided <= 120; decided += 10 {
			time.Sleep(100 * time.Millisecond)
			p.hear(decided)
		}
		let := 0
		for ; let < 300; let++ {
			c, late, _, _ := p.enter(time.Now(), 2*time.Second)
			if c == nil {
				if late <= 2*time.Second || late > 2100*time.Millisecond {
					t.Errorf("expected to hear that a command would wait for little more than 2 s, but got %s", late)
				}
				break
			}
			p.slots <- struct{}{}
			p.acked(c, producers.Position{Offset: offset}, nil)
			offset++
		}
		if ahead := p.sent - p.last; ahead < 145 || ahead > 155 { // with a margin of a third
			t.Errorf("expected as many to be let in as make 150 that wait, but %d were let in and %d wait", let, ahead)
		}
		p.hear(offset - 1)
		p.mustEnter(t)
	})
}

// The log is 5 s long, because others have filled it. When the only command from here is answered nobody waits any more, which is no
// reason to let everybody in: one goes first, and the others follow when it is answered in time.
func TestAfterALateAnswerOneGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := lonely()
		p.acked(p.mustEnter(t), producers.Position{Offset: 0}, nil)
		time.Sleep(5 * time.Second)
		p.hear(0)
		refused := func() {
			t.Helper()
			if c, late, _, _ := p.enter(time.Now(), 2*time.Second); c != nil || late != 5*time.Second {
				t.Fatalf("expected a refusal for 5 s, but got %v, %s", c, late)
			}
		}
		p.acked(p.mustEnter(t), producers.Position{Offset: 1000}, nil)
		refused()
		time.Sleep(time.Second)
		refused()
		p.hear(1000)
		p.mustEnter(t)
		p.mustEnter(t)
	})
}

// When the broker acknowledges nothing the partition is late, too.
func TestSilentBrokerMakesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := lonely()
		p.mustEnter(t)
		time.Sleep(3 * time.Second)
		if c, late, _, _ := p.enter(time.Now(), 2*time.Second); c != nil || late != 3*time.Second {
			t.Errorf("expected a refusal after 3 s, but got %v after %s", c, late)
		}
	})
}

func TestEarlyAnswersAreBounded(t *testing.T) {
	p := lonely()
	c := p.mustEnter(t)
	for i := range int64(earlyMax + 10) {
		p.hear(i)
	}
	if len(p.early) != earlyMax {
		t.Errorf("expected %d to be kept, but got %d", earlyMax, len(p.early))
	}
	p.acked(c, producers.Position{Offset: 5}, nil)
	if unheard, ok := errors.AsType[*Unheard](c.err); !ok || unheard.Offset != 5 {
		t.Errorf("expected to be told that the answer was missed, but got %v", c.err)
	}
}

func TestQueueOfAbandonedCallsIsSwept(t *testing.T) {
	p := lonely()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	stays := p.mustEnter(t)
	p.acked(stays, producers.Position{Offset: 0}, nil)
	for i := range int64(20_000) {
		c := p.mustEnter(t)
		p.acked(c, producers.Position{Offset: i + 1}, nil)
		p.abandon(ctx, c)
	}
	if len(p.waiting) > 4096 {
		t.Errorf("expected the queue to stay short, but it has %d", len(p.waiting))
	}
	p.hear(0)
	if stays.err != nil || stays.rec == nil {
		t.Errorf("expected the one that stays to be answered, but got %v", stays.err)
	}
}

// sealed makes n valid records that continue chain.
func sealed(chain *schemas.Chain, n int) []*kgo.Record {
	records := make([]*kgo.Record, n)
	for i := range records {
		e := operation.Event{Kind: operation.BecameDue, Org: "acme", ID: operation.ID(fmt.Sprint("op-", chain.Next)), At: 1}
		at := chain.Next
		records[i] = schemas.EncodeEvent(&e, []byte("key"), 0)
		chain.Seal(records[i])
		records[i].Offset = at
	}
	return records
}

func TestFollowerFromTheBeginningBelievesNobody(t *testing.T) {
	at, f := startAt(0, lookBack)
	if at != 0 {
		t.Fatalf("expected to begin at 0, but got %d", at)
	}
	foreign := schemas.Chain{Sum: [32]byte{1}}
	for _, rec := range sealed(&foreign, 3) {
		if ok, err := f.valid(rec); ok || err != nil {
			t.Errorf("expected a record that does not continue the beginning to be void, but got %t, %v", ok, err)
		}
	}
}

func TestFollowerInTheMiddle(t *testing.T) {
	var truth schemas.Chain
	before := sealed(&truth, 200)
	at, f := startAt(0, truth.Next)
	if at != 200-lookBack {
		t.Fatalf("expected to begin %d before the end, but got %d", lookBack, at)
	}
	for _, rec := range before[at:] {
		if ok, err := f.valid(rec); !ok || err != nil {
			t.Fatalf("expected offset %d to be valid, but got %t, %v", rec.Offset, ok, err)
		}
	}
	// Settled by now: another history is void, however long.
	stale := schemas.Chain{Next: truth.Next, Sum: [32]byte{1}}
	for _, rec := range sealed(&stale, 300) {
		if ok, _ := f.valid(rec); ok {
			t.Fatalf("expected offset %d to be void", rec.Offset)
		}
	}
	truth.Next = stale.Next
	for _, rec := range sealed(&truth, 3) {
		if ok, err := f.valid(rec); !ok || err != nil {
			t.Fatalf("expected offset %d to be valid, but got %t, %v", rec.Offset, ok, err)
		}
	}
}

// The first record seen may be a stale writer's: the history that goes on is believed.
func TestFollowerChangesOver(t *testing.T) {
	var truth schemas.Chain
	sealed(&truth, 100)
	_, f := startAt(0, 100)
	f.chain.Next = 100 // nothing of what was before is seen
	stale := schemas.Chain{Next: 100, Sum: [32]byte{1}}
	for _, rec := range sealed(&stale, 1) {
		if ok, _ := f.valid(rec); !ok {
			t.Fatal("expected the first record to be believed")
		}
	}
	truth.Next = stale.Next
	var got []bool
	for _, rec := range sealed(&truth, 4) {
		ok, err := f.valid(rec)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, ok)
	}
	if want := []bool{false, true, true, true}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("expected %v, but got %v", want, got)
	}
}

// Do refuses what comes to a late partition; Begin waits until it has moved, or the caller's time ends.
func TestPatientCallersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := lonely()
		c := &Client{cfg: Config{InFlightMax: 3, LagMax: 2 * time.Second}, slots: make(chan struct{}, 3)}
		p.slots = c.slots
		first, err := c.enter(t.Context(), p, false)
		if err != nil {
			t.Fatal(err)
		}
		p.acked(first, producers.Position{Offset: 0}, nil)
		time.Sleep(3 * time.Second)
		overload, _ := errors.AsType[*command.OverloadError](second(c.enter(t.Context(), p, false)))
		if overload == nil || overload.RetryAfter != 3*time.Second {
			t.Errorf("expected a refusal for 3 s, but got %v", overload)
		}
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := second(c.enter(impatient, p, true)); !errors.Is(err, producers.ErrRetry) {
			t.Errorf("expected a refusal when the time has ended, but got %v", err)
		}
		entered := make(chan error, 1)
		go func() { entered <- second(c.enter(t.Context(), p, true)) }()
		synctest.Wait()
		if len(entered) != 0 || len(c.slots) != 2 {
			t.Errorf("expected the caller to wait with a slot, but %d have entered with %d slots taken", len(entered), len(c.slots))
		}
		p.hear(0)
		if err := <-entered; err != nil || len(c.slots) != 1 {
			t.Errorf("expected the caller to go on when the answer came, but got %v with %d slots taken", err, len(c.slots))
		}
	})
}

func second(_ *call, err error) error { return err }

func TestPassedOverWhileTheOffsetWasUnknown(t *testing.T) {
	p := lonely()
	c := p.mustEnter(t)
	p.hear(8)
	p.acked(c, producers.Position{Offset: 7}, nil)
	select {
	case <-c.done:
		if unheard, ok := errors.AsType[*Unheard](c.err); !ok || unheard.Offset != 7 {
			t.Errorf("expected to be told that there will be no answer, but got %v", c.err)
		}
	default:
		t.Error("expected the call to end at once: later commands have been answered")
	}
}

// Whoever pours commands in has few under way, be the scheduler fast or slow, so that others find room and are answered soon.
func TestPouredCommandsLeaveRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := lonely()
		c := &Client{cfg: Config{InFlightMax: 3, LagMax: 2 * time.Second}, slots: make(chan struct{}, 3), poured: make(chan struct{}, 1)}
		p.slots = c.slots
		first, err := c.pour(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		p.acked(first, producers.Position{Offset: 0}, nil)
		poured := make(chan error, 1)
		go func() { poured <- second(c.pour(t.Context(), p)) }()
		synctest.Wait()
		if len(poured) != 0 || len(c.slots) != 1 {
			t.Errorf("expected the second to wait without one of the %d slots taken, but %d have entered", len(c.slots), len(poured))
		}
		single, err := c.enter(t.Context(), p, false)
		if err != nil {
			t.Errorf("expected room for who has one command to give, but got %v", err)
		}
		p.acked(single, producers.Position{Offset: 1}, nil)
		p.hear(0)
		if err := <-poured; err != nil {
			t.Errorf("expected the second to go on when the first was answered, but got %v", err)
		}
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := second(c.pour(impatient, p)); !errors.Is(err, producers.ErrRetry) {
			t.Errorf("expected a refusal when the time has ended, but got %v", err)
		}
	})
}

package scheduler

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/internal/kafkaclient"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// recover builds the engine from the newest complete checkpoint and the journal after it.
func (a *actor) recover(ctx context.Context) error {
	a.engine = partition.New(a.s.cfg.Engine)
	topics := a.s.cfg.Topics
	var sets checkpointSets
	if _, err := a.s.read(ctx, topics.Checkpoints(), a.p, 0, sets.add); err != nil {
		return fmt.Errorf("checkpoints: %w", err)
	}
	effects := operation.Place(0)
	if newest := sets.newest(); newest != nil {
		for _, set := range newest {
			a.engine.Restore(set.checkpoint())
		}
		last := newest[len(newest)-1].position
		a.chain, effects = last.Chain, last.Effects
		a.engine.Restored()
	}
	// Signals since the mark are sent again, so the journal is read from there; its events before the checkpoint are
	// in the engine already.
	from := a.chain.Next
	anchor := a.chain // what the checkpoint says of the journal must still be there
	anchored := anchor.Sum == [32]byte{}
	begin := min(int64(effects), from)
	if !anchored {
		begin = min(begin, anchor.Last)
	}
	missing := int64(-1) // the first offset since the last valid event at which there is no record
	start, err := a.s.read(ctx, topics.Journal(), a.p, begin, func(rec *kgo.Record) error {
		if rec.Offset >= from {
			if missing < 0 && rec.Offset > a.chain.Next {
				missing = a.chain.Next
			}
			valid, err := a.replay(rec)
			if valid {
				missing = -1 // it continues the history: what is not there was none of it
			}
			return err
		}
		if rec.Offset == anchor.Last && !anchored {
			if anchored = sealedAs(rec, anchor.Sum); !anchored {
				return fmt.Errorf("%w: the event at %d is not the one that the last checkpoint knows", errShorter, rec.Offset)
			}
		}
		if rec.Offset < int64(effects) {
			return nil
		}
		// Whether the record counts was checked by whoever set the mark; a void one in between does harm to nobody, since
		// its receiver knows what it has had.
		if ev, err := schemas.DecodeEvent(rec); err == nil {
			a.sendAgain(&ev, rec.Offset)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if !anchored {
		return fmt.Errorf("%w: the last checkpoint knows an event at %d, but the journal ends before", errShorter, anchor.Last)
	}
	// A stale writer leaves a history of its own only beside a record that won its place. Where there is no record, and what
	// stands behind is never continued, the history itself has a hole: events appended here would make void all that is behind it.
	if other := a.chain.AtEnd(); other != nil && missing >= 0 {
		return fmt.Errorf("%w: there is no record at %d, and nobody can tell what the events behind it follow from: %w", errShorter, missing, other)
	}
	a.chain.Next = max(a.chain.Next, start) // without a checkpoint and without a record, the partition begins here
	if start > 0 {
		// The work does not need what is gone, with a checkpoint; histories, new tables and the next checkpoint that is lost do.
		a.log.ErrorContext(ctx, "the journal has lost its beginning, without which tables cannot be made again nor histories be proved: opstream topics plan says how long it is to be kept", slog.Int64("first", start))
	}
	a.engine.Skip(operation.Place(a.chain.Next))
	if err := a.inputsReachThere(ctx); err != nil {
		return err
	}
	a.engine.Recovered()
	a.outbox = a.engine.Outbox()
	a.points = checkpoints{since: max(a.engine.Now(), a.s.cfg.now())}
	a.points.events = int(a.chain.Next - from)
	return nil
}

// errShorter keeps an actor from writing: what it would append would continue a history that nobody can read.
var errShorter = errors.New("the journal has lost records, or is another one; restore it from a copy; the runbook says what is left to do if there is none")

// errInputs keeps an actor from reading: what comes next on that input would stand at offsets that were read before, and be passed over as
// known.
var errInputs = errors.New("an input has lost records, or is another one; restore it from a copy, or follow the runbook")

// inputsReachThere makes sure that no input ends before what the journal has read of it.
func (a *actor) inputsReachThere(ctx context.Context) error {
	t, read := a.s.cfg.Topics, a.engine.Positions()
	ends, err := a.s.admin.ListEndOffsets(ctx, t.Requests(), t.Reports(), t.Signals())
	if err != nil {
		return fmt.Errorf("ends of the inputs: %w", err)
	}
	for _, input := range []struct {
		topic string
		read  int64
	}{{t.Requests(), read.Requests}, {t.Reports(), read.Reports}, {t.Signals(), read.Signals}} {
		end, ok := ends.Lookup(input.topic, a.p)
		if !ok || end.Err != nil {
			return fmt.Errorf("end of %s/%d: %w", input.topic, a.p, errors.Join(end.Err, errNoOffsets))
		}
		if end.Offset < input.read {
			return fmt.Errorf("%w: the journal has read %s/%d up to %d, but it ends at %d", errInputs, input.topic, a.p, input.read, end.Offset)
		}
	}
	return nil
}

// sealedAs says whether a record carries this hash.
func sealedAs(rec *kgo.Record, sum [32]byte) bool {
	for i := range rec.Headers {
		if rec.Headers[i].Key == schemas.HeaderChain {
			return string(rec.Headers[i].Value) == base64.RawURLEncoding.EncodeToString(sum[:])
		}
	}
	return false
}

// replay applies one record of the journal, if it is valid.
func (a *actor) replay(rec *kgo.Record) (valid bool, err error) {
	verdict, err := a.chain.Check(rec)
	switch verdict {
	case schemas.Broken:
		return false, fmt.Errorf("the journal was changed at offset %d, and nothing after it can be trusted; restore it or stop this partition: %w", rec.Offset, err)
	case schemas.Void:
		a.s.counters.Void.Add(1)
		a.engine.Skip(operation.Place(rec.Offset + 1))
		return false, nil
	}
	ev, err := schemas.DecodeEvent(rec)
	if err != nil {
		return false, fmt.Errorf("a valid event cannot be read, perhaps it is of a newer version; bring this scheduler up to date: %w", err)
	}
	a.engine.Replay(&ev, operation.Place(rec.Offset))
	a.sendAgain(&ev, rec.Offset)
	return true, nil
}

// sendAgain remembers a forwarded request, whose signal may not have been sent.
func (a *actor) sendAgain(ev *operation.Event, offset int64) {
	if ev.Kind == operation.Forwarded {
		a.unsent = append(a.unsent, appended{kind: ev.Kind, place: operation.Place(offset), cause: ev.Cause, to: ev.To, body: ev.Body})
	}
}

// bounds finds out where the log of a partition begins and ends.
func bounds(ctx context.Context, admin *kadm.Client, topic string, p int32) (start, end int64, err error) {
	starts, err := admin.ListStartOffsets(ctx, topic)
	if err != nil {
		return 0, 0, err
	}
	ends, err := admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return 0, 0, err
	}
	first, ok1 := starts.Lookup(topic, p)
	next, ok2 := ends.Lookup(topic, p)
	if err := errors.Join(first.Err, next.Err); err != nil || !ok1 || !ok2 {
		return 0, 0, fmt.Errorf("offsets of %s/%d: %w", topic, p, errors.Join(err, errNoOffsets))
	}
	return first.Offset, next.Offset, nil
}

// read gives fn the records of a partition from an offset, or from the log's start if that is later, to its present end. It returns where
// the log starts.
func (s *Scheduler) read(ctx context.Context, topic string, p int32, from int64, fn func(*kgo.Record) error) (begin int64, err error) {
	start, end, err := bounds(ctx, s.admin, topic, p)
	if err != nil {
		return 0, err
	}
	from = max(from, start)
	if from >= end {
		return start, nil
	}
	client, err := kafkaclient.Within(ctx, append(s.cfg.Client[:len(s.cfg.Client):len(s.cfg.Client)],
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {p: kgo.NewOffset().At(from)}}),
		kgo.FetchMaxBytes(32<<20), kgo.FetchMaxPartitionBytes(16<<20),
		// Without these the end is never reached where a stranger's transaction has left one, nor would its place be known.
		kgo.KeepControlRecords(),
	)...)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	for next := from; next < end; {
		fetches := client.PollRecords(ctx, 20_000)
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		if errs := fetches.Errors(); len(errs) > 0 {
			return 0, fmt.Errorf("reading %s/%d at %d: %w", topic, p, next, errs[0].Err)
		}
		for it := fetches.RecordIter(); !it.Done(); {
			rec := it.Next()
			if rec.Offset >= end {
				return start, nil
			}
			if err := fn(rec); err != nil {
				return 0, err
			}
			next = rec.Offset + 1
		}
	}
	return start, nil
}

var errNoOffsets = errors.New("the broker named none")

// errNoRequest says that the journal has no such request, as opposed to that it could not be read.
var errNoRequest = errors.New("the journal does not hold the request")

var errFound = errors.New("found")

// requestAt reads the request that the event at place holds.
func (a *actor) requestAt(ctx context.Context, place operation.Place) (req *operation.Request, err error) {
	_, err = a.s.read(ctx, a.s.cfg.Topics.Journal(), a.p, int64(place), func(rec *kgo.Record) error {
		if rec.Offset != int64(place) {
			return fmt.Errorf("%w: expected a record at %d, but the next one is at %d", errNoRequest, place, rec.Offset)
		}
		ev, err := schemas.DecodeEvent(rec)
		if err != nil {
			return fmt.Errorf("%w: %w", errNoRequest, err)
		}
		if req = ev.Request; req == nil {
			return fmt.Errorf("%w: expected a request at %d, but there is an event %s", errNoRequest, place, ev.Kind)
		}
		return errFound
	})
	if errors.Is(err, errFound) {
		return req, nil
	}
	if err == nil {
		err = fmt.Errorf("%w: the journal ends before %d", errNoRequest, place)
	}
	return nil, err
}

// checkpointSet is one set as far as it was read.
type checkpointSet struct {
	id       schemas.Set
	ops      []*operation.State
	gone     []schemas.Gone
	known    []schemas.Known
	records  int64
	position *schemas.Position // nil while it is not complete
}

// checkpointSets sorts the records of a partition's checkpoints by writer and set. Those of several writers may be mixed.
type checkpointSets struct {
	byID  map[schemas.Set]*checkpointSet
	order []*checkpointSet // complete ones, in the order of their position records
}

func (c *checkpointSets) add(rec *kgo.Record) error {
	if rec.Attrs.IsControl() {
		return nil
	}
	r, err := schemas.DecodeCheckpoint(rec)
	if err != nil {
		return fmt.Errorf("a checkpoint cannot be read, perhaps it is of a newer version; bring this scheduler up to date: %w", err)
	}
	if c.byID == nil {
		c.byID = make(map[schemas.Set]*checkpointSet)
	}
	set := c.byID[r.Set]
	if set == nil {
		set = &checkpointSet{id: r.Set}
		c.byID[r.Set] = set
	}
	switch {
	case r.Position != nil:
		if r.Position.Records == set.records && set.position == nil {
			set.position = r.Position
			c.order = append(c.order, set)
		}
		return nil
	case r.State != nil:
		set.ops = append(set.ops, r.State)
	}
	set.gone = append(set.gone, r.Gone...)
	set.known = append(set.known, r.Known...)
	set.records++
	return nil
}

// newest returns the base and the increments that lead to the newest place, or nil when there is no complete base.
func (c *checkpointSets) newest() []*checkpointSet {
	var best []*checkpointSet
	for _, last := range c.order {
		if best != nil && last.position.Chain.Next <= best[len(best)-1].position.Chain.Next {
			continue
		}
		var sets []*checkpointSet
		for set := last; set != nil && set.position != nil; set = c.byID[set.position.Builds] {
			sets = append(sets, set)
			if set.position.Base {
				slices.Reverse(sets)
				best = sets
				break
			}
		}
	}
	return best
}

func (s *checkpointSet) checkpoint() *partition.Checkpoint {
	cp := &partition.Checkpoint{
		Base: s.position.Base, Now: s.position.Now, End: operation.Place(s.position.Chain.Next),
		Pos: partition.Positions{Requests: s.position.Requests, Reports: s.position.Reports, Signals: s.position.Signals},
	}
	for _, state := range s.ops {
		if state.Status.Terminal() {
			cp.Failed = append(cp.Failed, state)
		} else {
			cp.Ops = append(cp.Ops, state)
		}
	}
	for _, ref := range s.gone {
		cp.Gone = append(cp.Gone, partition.Ref{Org: ref.Org, ID: ref.ID})
	}
	for _, k := range s.known {
		cp.Known = append(cp.Known, partition.Known{Hash: k.Hash, Body: k.Body, Status: k.Status})
	}
	return cp
}

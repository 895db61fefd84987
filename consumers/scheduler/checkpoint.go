package scheduler

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/internal/kafkaclient"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// checkpoints writes what recovery begins with: a base, and then increments, each closed by a position record that counts
// its records. A set that is not complete, or whose base is not there, does not count, so nothing here has to succeed.
type checkpoints struct {
	events int            // of the journal since the last set
	since  operation.Time // of the last set
	last   schemas.Set    // the one before; zero before the first
	size   int            // records of the base
	grown  int            // records of the increments since

	failed  atomic.Bool  // a record was not written
	pending atomic.Int64 // records that are not acknowledged
}

func (c *checkpoints) grew(n int) { c.events += n }

func (c *checkpoints) dirty() bool { return c.events > 0 }

// due says whether a set should be written now.
func (c *checkpoints) due(a *actor, t operation.Time) bool {
	if c.events == 0 || c.pending.Load() > 0 {
		return false
	}
	return c.events >= a.s.cfg.CheckpointEvents || t >= c.since.Add(a.s.cfg.CheckpointEvery)
}

// next is when the next set is due, or 0 when nothing has happened.
func (c *checkpoints) next(a *actor) operation.Time {
	if c.events == 0 || c.pending.Load() > 0 {
		return 0
	}
	return c.since.Add(a.s.cfg.CheckpointEvery)
}

// leastBase keeps small partitions from writing a base each time.
const leastBase = 1000

// write sends a set. No append may be in flight: a checkpoint tells of committed events only.
func (c *checkpoints) write(a *actor, t operation.Time) {
	base := c.last == schemas.Set{} || c.failed.Swap(false) || c.grown > max(c.size, leastBase)
	cp := a.engine.Checkpoint(base)
	set := schemas.Set{Writer: a.opened, Number: c.last.Number + 1}
	var records []*kgo.Record
	put := func(r schemas.Checkpoint) {
		r.Set = set
		records = append(records, schemas.EncodeCheckpoint(a.s.cfg.Topics, a.p, &r))
	}
	for _, s := range cp.Ops {
		put(schemas.Checkpoint{State: s})
	}
	for _, s := range cp.Failed {
		put(schemas.Checkpoint{State: s})
	}
	for ids := range slices.Chunk(cp.Gone, batchOfIDs) {
		put(schemas.Checkpoint{Gone: gone(ids)})
	}
	for ids := range slices.Chunk(cp.Known, batchOfIDs) {
		put(schemas.Checkpoint{Known: known(ids)})
	}
	n := len(records)
	closing := &schemas.Position{
		Base: base, Records: int64(n), Chain: a.chain, Now: cp.Now, Effects: a.mark.through(cp.End),
		Requests: cp.Pos.Requests, Reports: cp.Pos.Reports, Signals: cp.Pos.Signals,
	}
	if !base {
		closing.Builds = c.last
	}
	put(schemas.Checkpoint{Position: closing})
	if base {
		c.size, c.grown = n, 0
	} else {
		c.grown += n
	}
	c.last, c.events, c.since = set, 0, t
	c.pending.Add(int64(len(records)))
	a.s.counters.Sets.Add(1)
	var first int64
	for i, rec := range records {
		last := i == len(records)-1
		a.s.out.Produce(a.s.ctx, rec, func(rec *kgo.Record, err error) {
			if i == 0 {
				first = rec.Offset
			}
			if err != nil {
				c.failed.Store(true)
				if last {
					a.s.unsaved.Warn(rec.Topic, slog.Int("partition", int(a.p)), slog.Any("err", kafkaclient.Explain(err)))
				}
			} else if last && base && !c.failed.Load() {
				a.s.trim(a.s.ctx, a.p, first)
			}
			if c.pending.Add(-1) == 0 {
				a.signal()
			}
		})
	}
}

const batchOfIDs = 1000

func gone(refs []partition.Ref) []schemas.Gone {
	out := make([]schemas.Gone, len(refs))
	for i, r := range refs {
		out[i] = schemas.Gone{Org: r.Org, ID: r.ID}
	}
	return out
}

func known(entries []partition.Known) []schemas.Known {
	out := make([]schemas.Known, len(entries))
	for i, k := range entries {
		out[i] = schemas.Known{Hash: k.Hash, Body: k.Body, Status: k.Status}
	}
	return out
}

// flush waits until the set is written, or ctx ends.
func (c *checkpoints) flush(ctx context.Context, a *actor) {
	for c.pending.Load() > 0 && a.wait(ctx, nil) == nil {
		// woken by the last acknowledgement, and by others
	}
}

// trim deletes the checkpoints before a complete base. A stale writer may delete newer ones than its own: then recovery
// begins with an older, as true, statement.
func (s *Scheduler) trim(ctx context.Context, p int32, before int64) {
	topic := s.cfg.Topics.Checkpoints()
	go func() {
		var offsets kadm.Offsets
		offsets.Add(kadm.Offset{Topic: topic, Partition: p, At: before, LeaderEpoch: -1})
		answers, err := s.admin.DeleteRecords(ctx, offsets)
		if err == nil {
			err = answers.Error()
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("old checkpoints were not deleted; they only take space, and the next base deletes them", "topic", topic, "partition", p, "err", err)
		}
	}()
}

package scheduler

import (
	"sync/atomic"
	"time"

	"github.com/opstream/opstream/domain/operation"
)

// Counters tell what a Scheduler has done since it was made. They only go up.
type Counters struct {
	Appended   atomic.Uint64 // events sent to the journal
	Displaced  atomic.Uint64 // times that an append did not land where it was decided for
	Void       atomic.Uint64 // void records met in recoveries
	Recoveries atomic.Uint64 // of a partition, that succeeded
	Recovering atomic.Int64  // time that they took, in nanoseconds
	Failed     atomic.Uint64 // recoveries, and stays with a partition, that ended with an error
	Sets       atomic.Uint64 // checkpoints sent
	Buried     atomic.Uint64 // inputs that could not be read
	Unowned    atomic.Uint64 // times that the group was asked to distribute partitions anew which it had given to nobody
}

// Status tells what the scheduler knows of a partition, for people, health checks and metrics.
type Status struct {
	Partition int32
	Live      int // operations that have not ended
	End       operation.Place
	Active    bool  // recovered and at work
	Fault     error // why it is not, nil if it only begins

	Waiting map[operation.Wait]int // live operations that do not run, by reason; those that are ready wait for resources
	// Backlog is the ready operations of types that a living session serves: work that will be done, only not yet.
	Backlog int
	// Undecided is the requests on the log that are not decided yet, as of the last fetch of them. While too many wait in memory none
	// are fetched, and it does not grow.
	Undecided int64
	// Oldest is when the first of them was sent, by its sender's clock; zero when none waits.
	Oldest time.Time
	// SinceCheckpoint is the events since the last checkpoint, and CheckpointAge how long ago it was while there are any: what a
	// recovery would have to read.
	SinceCheckpoint int
	CheckpointAge   time.Duration
}

// status is what an actor shows of itself; it outlives single actors of a partition.
type status struct {
	live, end, backlog atomic.Int64
	active             atomic.Bool
	fault              atomic.Pointer[error] // what ended the last actor
	waits              [operation.WaitServicePaused + 1]atomic.Int64

	undecided, oldest atomic.Int64 // requests that wait, and when the first was sent, Unix milliseconds; 0 when none does
	events            atomic.Int64 // since the last checkpoint
	since             atomic.Int64 // time of the last checkpoint, operation.Time
}

// set stores what has changed: a load is cheaper than a store, and most has not.
func set(to *atomic.Int64, v int64) {
	if to.Load() != v {
		to.Store(v)
	}
}

// show tells how the actor stands, once for each turn of its loop.
func (s *status) show(a *actor) {
	e := a.engine
	set(&s.live, int64(e.Live()))
	set(&s.end, int64(e.End()))
	backlog, _ := e.Backlog()
	set(&s.backlog, int64(backlog))
	for why := operation.WaitNone + 1; why <= operation.WaitServicePaused; why++ {
		set(&s.waits[why], int64(e.Waiting(why)))
	}
	undecided, oldest := a.undecided()
	set(&s.undecided, undecided)
	set(&s.oldest, oldest)
	set(&s.events, int64(a.points.events))
	set(&s.since, int64(a.points.since))
}

func (s *status) get(p int32, now operation.Time) Status {
	out := Status{
		Partition: p, Live: int(s.live.Load()), End: operation.Place(s.end.Load()), Active: s.active.Load(),
		Waiting: make(map[operation.Wait]int, len(s.waits)), Backlog: int(s.backlog.Load()),
		Undecided:       s.undecided.Load(),
		SinceCheckpoint: int(s.events.Load()),
	}
	if fault := s.fault.Load(); fault != nil && !out.Active {
		out.Fault = *fault
	}
	if ms := s.oldest.Load(); ms != 0 {
		out.Oldest = time.UnixMilli(ms)
	}
	for why := operation.WaitNone + 1; why <= operation.WaitServicePaused; why++ {
		out.Waiting[why] = int(s.waits[why].Load())
	}
	if since := operation.Time(s.since.Load()); out.SinceCheckpoint > 0 && since != 0 {
		out.CheckpointAge = max(now.Sub(since), 0)
	}
	return out
}

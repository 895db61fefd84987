package scheduler

import (
	"sync/atomic"

	"github.com/opstream/opstream/domain/operation"
)

// status is what an actor shows of itself; it outlives single actors of a partition.
type status struct {
	live, end atomic.Int64
	active    atomic.Bool
}

func (s *status) get(p int32) Status {
	return Status{Partition: p, Live: int(s.live.Load()), End: operation.Place(s.end.Load()), Active: s.active.Load()}
}

package scheduler

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
)

// Inspect recovers a partition twice, from its checkpoints and from the journal alone, and returns both states as of the same
// place as text. They must be the same: it is for checks of a whole installation, and changes nothing.
func Inspect(ctx context.Context, cfg Config, p int32) (fromCheckpoints, fromJournal string, err error) {
	s, err := New(cfg)
	if err != nil {
		return "", "", err
	}
	defer s.out.Close()
	if s.cfg.Engine.Partitions, err = s.partitions(ctx); err != nil {
		return "", "", err
	}
	s.ctx = ctx
	quick := newActor(s, p, &status{}, s.log)
	if err := quick.recover(ctx); err != nil {
		return "", "", fmt.Errorf("recovery from checkpoints: %w", err)
	}
	whole := newActor(s, p, &status{}, s.log)
	whole.engine = partition.New(s.cfg.Engine)
	end := quick.chain.Next // others may go on writing
	if _, err := s.read(ctx, s.cfg.Topics.Journal(), p, 0, func(rec *kgo.Record) error {
		if rec.Offset >= end {
			return errFound
		}
		_, err := whole.replay(rec)
		return err
	}); err != nil && !errors.Is(err, errFound) {
		return "", "", fmt.Errorf("recovery from the journal: %w", err)
	}
	whole.engine.Skip(operation.Place(end))
	whole.engine.Recovered()
	return fmt.Sprintf("%s\n%s", quick.chain, quick.engine.Dump()), fmt.Sprintf("%s\n%s", whole.chain, whole.engine.Dump()), nil
}

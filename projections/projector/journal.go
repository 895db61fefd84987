package projector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/kafkaclient"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/schemas"
)

// Journal reads the journal from its beginning, for [projections.Verify].
type Journal struct {
	Client []kgo.Opt
	Topics schemas.Topics
}

var _ projections.Source = Journal{}

func sortByPartition(s []PartitionStatus) {
	slices.SortFunc(s, func(a, b PartitionStatus) int { return cmp.Compare(a.Partition, b.Partition) })
}

// Ends returns the end of every partition.
func (j Journal) Ends(ctx context.Context) (map[int32]int64, error) {
	topic := j.Topics.Journal()
	client, err := kafkaclient.Within(ctx, j.Client...)
	if err != nil {
		return nil, fmt.Errorf("make a client to ask for the end of %s: %w", topic, err)
	}
	defer client.Close()
	offsets, err := kadm.NewClient(client.Client).ListEndOffsets(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("ask for the end of %s: %w", topic, err)
	}
	if err := offsets.Error(); err != nil {
		return nil, fmt.Errorf("ask for the end of %s: %w", topic, err)
	}
	ends := make(map[int32]int64, len(offsets[topic]))
	for n, o := range offsets[topic] {
		ends[n] = o.Offset
	}
	if len(ends) == 0 {
		return nil, fmt.Errorf("expected the topic %s to have partitions, but there is none; create the topics", topic)
	}
	return ends, nil
}

// Read shows the valid events of a partition that stand before the given offset.
func (j Journal) Read(ctx context.Context, partition int32, to int64, show func(projections.Entry) error) (projections.Position, error) {
	topic := j.Topics.Journal()
	var chain schemas.Chain
	var at operation.Time
	ends, err := j.Ends(ctx)
	if err != nil {
		return projections.Position{}, err
	}
	end := ends[partition]
	to = min(to, end)
	if to == 0 {
		return projections.Position{Partition: partition}, nil
	}
	client, err := kafkaclient.Within(ctx, append(slices.Clone(j.Client),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().At(0)}}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.KeepControlRecords(),
	)...)
	if err != nil {
		return projections.Position{}, fmt.Errorf("make a client to read %s: %w", topic, err)
	}
	defer client.Close()
	got := chain // where it stands at to
	// If what was read ends in another history, it is to be known whether the valid one goes on behind it.
	for chain.Next < to || chain.Alt > 0 && chain.Next < end {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return projections.Position{}, err
		}
		var failed error
		fetches.EachError(func(_ string, _ int32, err error) { failed = errors.Join(failed, err) })
		if failed != nil {
			return projections.Position{}, fmt.Errorf("read %s from its beginning: %w", topic, failed)
		}
		for records := fetches.RecordIter(); !records.Done() && (chain.Next < to || chain.Alt > 0); {
			rec := records.Next()
			if rec.Offset >= to && chain.Next < to {
				chain.Next = to
				got = chain
				if chain.Alt == 0 {
					break
				}
			}
			entry, ok, err := judge(&chain, rec)
			if err != nil {
				return projections.Position{}, err
			}
			if rec.Offset >= to {
				continue
			}
			got = chain
			if !ok {
				continue
			}
			at = entry.Event.At
			if err := show(entry); err != nil {
				return projections.Position{}, err
			}
		}
	}
	if err := chain.AtEnd(); err != nil {
		return projections.Position{}, err
	}
	return position(partition, &got, at), nil
}

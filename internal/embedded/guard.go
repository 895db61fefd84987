package embedded

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// transactionsRefused carries a code that clients treat as final and show to people, instead of retrying for ever.
var transactionsRefused = &kerr.Error{
	Message: "TRANSACTIONAL_ID_AUTHORIZATION_FAILED: the embedded broker has no transactions, because it could not keep them whole over a " +
		"crash; use an idempotent producer without a transactional id, or a real Kafka",
	Code: kerr.TransactionalIDAuthorizationFailed.Code,
}

// guard refuses what kfake would do but not do safely. Faults are used where they suffice: they are looked at on the goroutine that
// serves the requests anyway, while a control costs a goroutine per request and remembers every connection.
func guard(cluster *kfake.Cluster, config Config) {
	transactional := &transactionalProduce{}
	cluster.Fault(
		kfake.Fault{
			Keys:  []kmsg.Key{kmsg.InitProducerID},
			Count: -1,
			Err:   transactionsRefused,
			When: func(req kmsg.Request) bool {
				init, ok := req.(*kmsg.InitProducerIDRequest)
				return ok && init.TransactionalID != nil
			},
		},
		kfake.Fault{
			Keys: []kmsg.Key{
				kmsg.AddPartitionsToTxn, kmsg.AddOffsetsToTxn, kmsg.EndTxn, kmsg.TxnOffsetCommit, kmsg.WriteTxnMarkers,
			},
			Count: -1,
			Err:   transactionsRefused,
		},
		kfake.Fault{
			Keys:  []kmsg.Key{kmsg.Produce},
			Count: -1,
			Err:   transactionsRefused,
			When:  transactional.is,
		},
		kfake.Fault{
			// Settings of the broker decide that the cleaner never runs, so no client may change them.
			Keys:  []kmsg.Key{kmsg.AlterConfigs, kmsg.IncrementalAlterConfigs},
			Count: -1,
			Err:   kerr.PolicyViolation,
			When:  altersBroker,
		},
	)
	if config.FreeBytes != nil {
		space := newSpace(config)
		cluster.Fault(kfake.Fault{
			Keys:  []kmsg.Key{kmsg.Produce},
			Count: -1,
			Err:   space.refused,
			When:  func(kmsg.Request) bool { return space.low() },
		})
	}
	keepLastRecord(cluster)
}

// transactionalProduce tells a produce request with a transactional batch. kfake takes such a batch from a producer that never
// began a transaction, and then no reader of committed records gets past it. The answer is asked once per topic and partition of
// a request, so the last one is kept.
type transactionalProduce struct {
	last   kmsg.Request
	answer bool
}

func (t *transactionalProduce) is(req kmsg.Request) bool {
	if req != t.last {
		t.last, t.answer = req, isTransactionalProduce(req)
	}
	return t.answer
}

func isTransactionalProduce(req kmsg.Request) bool {
	produce, ok := req.(*kmsg.ProduceRequest)
	if !ok {
		return false
	}
	if produce.TransactionID != nil {
		return true
	}
	const (
		attributesLow = 22 // low byte of the attributes in a batch of format 2, after offset, length, epoch, magic and checksum
		transactional = 0x10
	)
	for i := range produce.Topics {
		for j := range produce.Topics[i].Partitions {
			batch := produce.Topics[i].Partitions[j].Records
			if len(batch) > attributesLow && batch[attributesLow]&transactional != 0 {
				return true
			}
		}
	}
	return false
}

func altersBroker(req kmsg.Request) bool {
	switch req := req.(type) {
	case *kmsg.AlterConfigsRequest:
		for i := range req.Resources {
			if req.Resources[i].ResourceType == kmsg.ConfigResourceTypeBroker {
				return true
			}
		}
	case *kmsg.IncrementalAlterConfigsRequest:
		for i := range req.Resources {
			if req.Resources[i].ResourceType == kmsg.ConfigResourceTypeBroker {
				return true
			}
		}
	}
	return false
}

// keepLastRecord takes a DeleteRecords that would empty a partition back by one record. kfake drops the files of an emptied
// partition, and at the next start has nothing to tell it the end from but records, so it would hand out offsets from 0 again.
//
// It needs a control, because a fault cannot ask for the end of a partition. No other request is served between the question and
// the deletion. The control replaces itself each time: kfake keeps every connection that a control ever saw.
func keepLastRecord(cluster *kfake.Cluster) {
	cluster.ControlKey(int16(kmsg.DeleteRecords), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.DropControl()
		keepLastRecord(cluster)
		del, ok := req.(*kmsg.DeleteRecordsRequest)
		if !ok {
			return nil, nil, false
		}
		for i := range del.Topics {
			for j := range del.Topics[i].Partitions {
				p := &del.Topics[i].Partitions[j]
				info := cluster.PartitionInfo(del.Topics[i].Topic, p.Partition)
				if info == nil || info.HighWatermark == info.LogStartOffset {
					continue // unknown, or nothing to keep
				}
				if p.Offset == -1 || p.Offset == info.HighWatermark {
					p.Offset = info.HighWatermark - 1
				}
			}
		}
		return nil, nil, false
	})
}

// space knows whether the disk has room. It is used by the one goroutine that serves requests, and by Open before that.
type space struct {
	dir     string
	min     uint64
	measure func(string) (uint64, error)
	logger  *slog.Logger
	refused *kerr.Error

	checked time.Time
	isLow   bool
	failing bool
}

// spaceInterval is the least time between two looks at the disk. What a broker can write meanwhile is what MinFreeBytes must be
// enough for.
const spaceInterval = time.Second

// newSpace refuses with NOT_ENOUGH_REPLICAS: it says that nothing was appended, so a producer sends the same batch with the same
// sequence again and may still give up cleanly, and every client knows it as temporary.
func newSpace(config Config) *space {
	s := &space{
		dir:     config.Dir,
		min:     config.MinFreeBytes,
		measure: config.FreeBytes,
		logger:  config.Logger,
		refused: &kerr.Error{
			Message: fmt.Sprintf("NOT_ENOUGH_REPLICAS: the disk of the embedded broker's data directory %s has less than %d bytes free; "+
				"make room and the append goes on by itself", config.Dir, config.MinFreeBytes),
			Code:      kerr.NotEnoughReplicas.Code,
			Retriable: true,
		},
	}
	s.low()
	return s
}

// low goes on with the last answer for a second, and takes a disk that cannot be measured for one with room: the append itself
// will fail if it must.
func (s *space) low() bool {
	now := time.Now()
	if !s.checked.IsZero() && now.Sub(s.checked) < spaceInterval {
		return s.isLow
	}
	s.checked = now
	free, err := s.measure(s.dir)
	if err != nil {
		if !s.failing {
			s.logger.Warn("embedded broker cannot measure free space and appends without that guard", "dir", s.dir, "err", err)
		}
		s.failing, s.isLow = true, false
		return false
	}
	s.failing = false
	low := free < s.min
	switch {
	case low && !s.isLow:
		s.logger.Error("embedded broker refuses appends for want of free space: make room, and it goes on by itself",
			"dir", s.dir, "free_bytes", free, "free_bytes_min", s.min)
	case !low && s.isLow:
		s.logger.Info("embedded broker takes appends again", "dir", s.dir, "free_bytes", free, "free_bytes_min", s.min)
	}
	s.isLow = low
	return low
}

package embedded

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/opstream/opstream/internal/kafkatest"
)

func TestNoTransactionForAFranzClient(t *testing.T) {
	b := open(t, Config{Topics: []Topic{{Name: "a", Partitions: 1}}})
	for range 3 { // refused for everybody and always, not once
		client := kafkatest.Client(t, b.Addrs(), kgo.TransactionalID("mine"))
		err := client.BeginTransaction()
		if err == nil {
			err = client.ProduceSync(deadline(t), &kgo.Record{Topic: "a"}).FirstErr()
		}
		if !errors.Is(err, kerr.TransactionalIDAuthorizationFailed) {
			t.Fatalf("expected TRANSACTIONAL_ID_AUTHORIZATION_FAILED, but got %v", err)
		}
	}
	produce(t, producer(t, b.Addrs()), &kgo.Record{Topic: "a", Value: []byte("idempotent")})
	if records := readAll(t, b, "a")[0]; len(records) != 1 || string(records[0].Value) != "idempotent" {
		t.Fatalf("expected the idempotent record alone, but got %v", records)
	}
}

func TestEveryTransactionRequestIsRefused(t *testing.T) {
	b := open(t, Config{Topics: []Topic{{Name: "a", Partitions: 1}}})
	client := kafkatest.Client(t, b.Addrs())
	want := kerr.TransactionalIDAuthorizationFailed.Code
	check := func(name string, code int16) {
		t.Helper()
		if code != want {
			t.Errorf("%s: expected code %d, but got %d", name, want, code)
		}
	}

	init := kmsg.NewPtrInitProducerIDRequest()
	init.TransactionalID, init.TransactionTimeoutMillis = kmsg.StringPtr("mine"), 1000
	check("InitProducerID", request[*kmsg.InitProducerIDResponse](t, client, init).ErrorCode)

	partitions := kmsg.NewPtrAddPartitionsToTxnRequest()
	partitions.TransactionalID, partitions.ProducerID = "mine", 1
	topic := kmsg.NewAddPartitionsToTxnRequestTopic()
	topic.Topic, topic.Partitions = "a", []int32{0}
	partitions.Topics = append(partitions.Topics, topic)
	check("AddPartitionsToTxn", request[*kmsg.AddPartitionsToTxnResponse](t, client, partitions).Topics[0].Partitions[0].ErrorCode)

	offsets := kmsg.NewPtrAddOffsetsToTxnRequest()
	offsets.TransactionalID, offsets.ProducerID, offsets.Group = "mine", 1, "g"
	check("AddOffsetsToTxn", request[*kmsg.AddOffsetsToTxnResponse](t, client, offsets).ErrorCode)

	end := kmsg.NewPtrEndTxnRequest()
	end.TransactionalID, end.ProducerID, end.Commit = "mine", 1, true
	check("EndTxn", request[*kmsg.EndTxnResponse](t, client, end).ErrorCode)

	commit := kmsg.NewPtrTxnOffsetCommitRequest()
	commit.TransactionalID, commit.Group, commit.ProducerID = "mine", "g", 1
	commitTopic := kmsg.NewTxnOffsetCommitRequestTopic()
	commitTopic.Topic, commitTopic.TopicID = "a", b.Cluster().TopicInfo("a").TopicID
	commitTopic.Partitions = append(commitTopic.Partitions, kmsg.NewTxnOffsetCommitRequestTopicPartition())
	commit.Topics = append(commit.Topics, commitTopic)
	check("TxnOffsetCommit", request[*kmsg.TxnOffsetCommitResponse](t, client, commit).Topics[0].Partitions[0].ErrorCode)

	markers := kmsg.NewPtrWriteTxnMarkersRequest()
	marker := kmsg.NewWriteTxnMarkersRequestMarker()
	marker.ProducerID, marker.Committed = 1, true
	markerTopic := kmsg.NewWriteTxnMarkersRequestMarkerTopic()
	markerTopic.Topic, markerTopic.Partitions = "a", []int32{0}
	marker.Topics = append(marker.Topics, markerTopic)
	markers.Markers = append(markers.Markers, marker)
	check("WriteTxnMarkers", request[*kmsg.WriteTxnMarkersResponse](t, client, markers).Markers[0].Topics[0].Partitions[0].ErrorCode)

	for _, attributes := range []int16{0, 0x10} {
		produce(t, client, &kgo.Record{Topic: "a"}) // the answer for one request is not that for the next
		write := kmsg.NewPtrProduceRequest()
		write.Version, write.Acks = 9, -1
		if attributes == 0 {
			write.TransactionID = kmsg.StringPtr("mine")
		}
		batch := (&kmsg.RecordBatch{Length: 49, Magic: 2, Attributes: attributes}).AppendTo(nil)
		writeTopic := kmsg.NewProduceRequestTopic()
		writeTopic.Topic, writeTopic.TopicID = "a", b.Cluster().TopicInfo("a").TopicID
		partition := kmsg.NewProduceRequestTopicPartition()
		partition.Records = batch
		writeTopic.Partitions = append(writeTopic.Partitions, partition)
		write.Topics = append(write.Topics, writeTopic)
		answer := request[*kmsg.ProduceResponse](t, client, write).Topics[0].Partitions[0]
		check(fmt.Sprintf("Produce with attributes %#x", attributes), answer.ErrorCode)
		if answer.ErrorMessage == nil || !strings.Contains(*answer.ErrorMessage, "no transactions") {
			t.Errorf("expected a message that says why, but got %v", answer.ErrorMessage)
		}
	}
	if end := b.Cluster().PartitionInfo("a", 0).HighWatermark; end != 2 {
		t.Errorf("expected the two plain records in the log, but it ends at %d", end)
	}
}

// TestDeleteRecordsKeepsTheEnd fails without the guard in every case, since kfake then starts again at offset 0.
func TestDeleteRecordsKeepsTheEnd(t *testing.T) {
	for _, to := range []int64{-1, 5} {
		for _, how := range []string{"closed", "killed"} {
			t.Run(fmt.Sprintf("to %d, %s", to, how), func(t *testing.T) {
				dir := t.TempDir()
				b := open(t, Config{Dir: dir, Topics: []Topic{{Name: "a", Partitions: 2}}})
				client := producer(t, b.Addrs())
				for i := range 5 {
					produce(t, client, &kgo.Record{Topic: "a", Value: fmt.Append(nil, i)})
				}
				for range 2 { // the guard stays
					req := kmsg.NewPtrDeleteRecordsRequest()
					topic := kmsg.NewDeleteRecordsRequestTopic()
					topic.Topic = "a"
					for p := range int32(2) {
						partition := kmsg.NewDeleteRecordsRequestTopicPartition()
						partition.Partition, partition.Offset = p, to
						if p == 1 {
							partition.Offset = -1 // an empty partition has nothing to keep and is no error
						}
						topic.Partitions = append(topic.Partitions, partition)
					}
					req.Topics = append(req.Topics, topic)
					answers := request[*kmsg.DeleteRecordsResponse](t, client, req).Topics[0].Partitions
					for _, answer := range answers {
						want := map[int32]int64{0: 4, 1: 0}[answer.Partition]
						if answer.ErrorCode != 0 || answer.LowWatermark != want {
							t.Fatalf("expected partition %d to begin at %d, but got %d, code %d",
								answer.Partition, want, answer.LowWatermark, answer.ErrorCode)
						}
					}
				}
				client.Close()
				reopen := dir
				if how == "killed" { // what is on disk while the broker runs is what a kill leaves
					reopen = t.TempDir()
					if err := os.CopyFS(reopen, os.DirFS(dir)); err != nil {
						t.Fatal(err)
					}
				}
				closeBroker(t, b)
				b = open(t, Config{Dir: reopen})
				again := &kgo.Record{Topic: "a", Value: []byte("next")}
				produce(t, producer(t, b.Addrs()), again)
				if again.Offset != 5 {
					t.Fatalf("expected the next record at offset 5, but it is at %d", again.Offset)
				}
			})
		}
	}
}

// TestAppendsWaitForSpace runs on a virtual network and a virtual clock, as simulations do.
func TestAppendsWaitForSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		network := &kfake.VirtualNetwork{}
		var free atomic.Uint64
		var asked atomic.Int64
		free.Store(1000)
		b := open(t, Config{
			Addr:         "127.0.0.1:9092",
			Topics:       []Topic{{Name: "a", Partitions: 4}},
			MinFreeBytes: 1000,
			FreeBytes: func(string) (uint64, error) {
				asked.Add(1)
				return free.Load(), nil
			},
			Options: []kfake.Opt{kfake.ListenFn(network.Listen)},
		})
		began := time.Now()
		client := producer(t, b.Addrs(), kgo.Dialer(network.DialContext))
		send := func(i int, promise func(*kgo.Record, error)) {
			client.Produce(ctx, &kgo.Record{Topic: "a", Partition: int32(i % 4), Value: fmt.Append(nil, i)}, promise)
		}
		var errs []error
		sync := func(from, to int) {
			for i := from; i < to; i++ {
				send(i, func(_ *kgo.Record, err error) {
					if err != nil {
						errs = append(errs, err)
					}
				})
			}
		}
		sync(0, 400)
		if err := client.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		id, epoch, err := client.ProducerID(ctx)
		if err != nil {
			t.Fatal(err)
		}

		free.Store(999)
		time.Sleep(spaceInterval) // virtual: the last answer is out of date
		sync(400, 800)
		time.Sleep(time.Minute)
		synctest.Wait()
		var end int64
		for _, info := range b.Cluster().PartitionInfos("a") {
			end += info.HighWatermark
		}
		if end != 400 || client.BufferedProduceRecords() != 400 {
			t.Fatalf("expected 400 records stored and 400 waiting, but %d are stored and %d wait", end, client.BufferedProduceRecords())
		}

		free.Store(1000)
		recovering := time.Now()
		if err := client.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(recovering); took > 5*time.Second {
			t.Errorf("expected appends to go on within 5 s of space being back, but it took %v", took)
		}
		if len(errs) > 0 {
			t.Errorf("expected no record to fail, but %d did, first: %v", len(errs), errs[0])
		}
		if id2, epoch2, err := client.ProducerID(ctx); id2 != id || epoch2 != epoch || err != nil {
			t.Errorf("expected the producer to keep its id %d and epoch %d, but got %d, %d, %v", id, epoch, id2, epoch2, err)
		}
		if most := int64(2 + time.Since(began)/spaceInterval); asked.Load() > most {
			t.Errorf("expected at most %d looks at the disk in %v, but there were %d", most, time.Since(began), asked.Load())
		}
		client.Close()

		consumer := kafkatest.Client(t, b.Addrs(), kgo.Dialer(network.DialContext), kgo.ConsumeTopics("a"))
		next := map[int32]int{0: 0, 1: 1, 2: 2, 3: 3}
		for n := 0; n < 800; {
			fetches := consumer.PollFetches(ctx)
			if err := fetches.Err(); err != nil {
				t.Fatal(err)
			}
			fetches.EachRecord(func(r *kgo.Record) {
				if string(r.Value) != fmt.Sprint(next[r.Partition]) {
					t.Fatalf("partition %d offset %d: expected %d, but got %s", r.Partition, r.Offset, next[r.Partition], r.Value)
				}
				next[r.Partition] += 4
				n++
			})
		}
		consumer.Close()
		closeBroker(t, b)
		synctest.Wait()
	})
}

func TestSpaceOfTheRealDisk(t *testing.T) {
	dir := t.TempDir()
	free, err := freeBytes(dir)
	if err != nil || free == 0 {
		t.Fatalf("expected some free space at %s, but got %d, %v", dir, free, err)
	}
	b := open(t, Config{Dir: dir, Topics: []Topic{{Name: "a", Partitions: 1}}, MinFreeBytes: math.MaxUint64})
	client := producer(t, b.Addrs(), kgo.RecordRetries(0))
	err = client.ProduceSync(deadline(t), &kgo.Record{Topic: "a"}).FirstErr()
	if !errors.Is(err, kerr.NotEnoughReplicas) {
		t.Fatalf("expected NOT_ENOUGH_REPLICAS, but got %v", err)
	}
}

func TestSpaceThatCannotBeMeasuredDoesNotStopAppends(t *testing.T) {
	b := open(t, Config{
		Topics:    []Topic{{Name: "a", Partitions: 1}},
		FreeBytes: func(string) (uint64, error) { return 0, errors.New("no such thing") },
	})
	produce(t, producer(t, b.Addrs()), &kgo.Record{Topic: "a"})
}

package scheduler

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/schemas"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestCheckpointsLeadToTheStateOfTheJournal recovers one partition twice: from checkpoints and what follows them, and from the
// journal's beginning alone.
func TestCheckpointsLeadToTheStateOfTheJournal(t *testing.T) {
	each(t, 1, testCheckpointsLeadToTheStateOfTheJournal)
}

func testCheckpointsLeadToTheStateOfTheJournal(t *testing.T, on service) {
	stop := start(t, on, "one", func(c *Config) { c.CheckpointEvery, c.CheckpointEvents = 20*time.Millisecond, 40 })
	w := newSession(t, on, "w1")
	go w.serve(t.Context(), func(it *schemas.Item) *operation.Command {
		if it.ID[len(it.ID)-1] == '7' {
			return &operation.Command{Kind: operation.Fail, Failure: &operation.Failure{Code: "no"}}
		}
		if it.ID[len(it.ID)-1] == '3' {
			return nil // is never heard of
		}
		return &operation.Command{Kind: operation.Succeed}
	})
	j := watch(t, on)
	const n = 600
	for part := range slices.Chunk(ids(n), 100) { // several checkpoints
		var records []*kgo.Record
		for _, i := range part {
			records = append(records, schemas.EncodeRequest(on.topics, request(t, "org", fmt.Sprintf("op%d", i), fmt.Sprintf("chain%d", i%200))))
		}
		produce(t, on, records...)
		j.until(func() bool { return len(j.states) > part[len(part)-1]+1 })
	}
	stop()

	cfg := Config{Client: on.client, Topics: on.topics, Owner: "reader", Engine: partition.Config{Lease: 3 * time.Second}}
	quick, whole, err := Inspect(t.Context(), cfg, 0)
	if err != nil {
		t.Fatal(err)
	}
	if quick != whole {
		t.Errorf("expected the same state, but from checkpoints it is\n%s\nand from the journal\n%s", quick, whole)
	}
	if strings.Contains(quick, " live 0\n") {
		t.Error("expected live operations to compare")
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.out.Close()
	var sets checkpointSets
	if _, err := s.read(t.Context(), on.topics.Checkpoints(), 0, 0, sets.add); err != nil {
		t.Fatal(err)
	}
	newest := sets.newest()
	if newest == nil {
		t.Fatal("expected a complete checkpoint")
	}
	t.Logf("%d complete sets, the newest state from %d of them, up to place %d", len(sets.order), len(newest), newest[len(newest)-1].position.Chain.Next)
}

// TestCheckpointsAreTrimmedAndWhatIsLeftIsEnough lets increments outweigh their base, so that a new one is written and what stood
// before it is deleted on the broker.
func TestCheckpointsAreTrimmedAndWhatIsLeftIsEnough(t *testing.T) {
	each(t, 1, testCheckpointsAreTrimmedAndWhatIsLeftIsEnough)
}

func testCheckpointsAreTrimmedAndWhatIsLeftIsEnough(t *testing.T, on service) {
	stop := start(t, on, "one", func(c *Config) { c.CheckpointEvery, c.CheckpointEvents = 20*time.Millisecond, 40 })
	j := watch(t, on)
	admin, err := kgo.NewClient(on.client...)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	begins := func() int64 {
		starts, err := kadm.NewClient(admin).ListStartOffsets(t.Context(), on.topics.Checkpoints())
		if err != nil {
			t.Fatal(err)
		}
		at, _ := starts.Lookup(on.topics.Checkpoints(), 0)
		return at.Offset
	}
	// Nobody serves them, so all stay live, and each is in the increment after its request.
	n := 0
	for begins() == 0 {
		if n >= 20*leastBase {
			t.Fatalf("expected old checkpoints to be deleted when increments outweigh the base, but after %d live operations the first is still there", n)
		}
		var records []*kgo.Record
		for range 100 {
			records = append(records, schemas.EncodeRequest(on.topics, request(t, "org", fmt.Sprintf("op%d", n), "")))
			n++
		}
		produce(t, on, records...)
		j.until(func() bool { return len(j.states) > n })
	}
	stop()
	t.Logf("%d live operations; the checkpoints begin at %d", n, begins())
	quick, whole, err := Inspect(t.Context(), Config{Client: on.client, Topics: on.topics, Owner: "reader", Engine: partition.Config{Lease: 3 * time.Second}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if quick != whole {
		t.Errorf("expected the same state, but from checkpoints it is\n%s\nand from the journal\n%s", quick, whole)
	}
}

// TestAJournalThatIsShorterThanItsCheckpointIsNotWrittenOn: whatever an actor appended there would continue a history that
// nobody can read.
func TestAJournalThatIsShorterThanItsCheckpointIsNotWrittenOn(t *testing.T) {
	for name, records := range map[string]int{"nothing is left": 0, "some are missing": 4, "other ones stand there": 20} {
		t.Run(name, func(t *testing.T) {
			each(t, 1, func(t *testing.T, on service) {
				var chain schemas.Chain
				var journal []*kgo.Record
				for i := range records {
					rec := schemas.EncodeEvent(&operation.Event{Kind: operation.Opened, At: operation.Time(i + 1), Owner: "other"}, nil, 0)
					rec.Topic = on.topics.Journal()
					chain.Seal(rec)
					journal = append(journal, rec)
				}
				set := schemas.Set{Writer: 0, Number: 1}
				known := schemas.Chain{Next: 10, Last: 9, Sum: [32]byte{1}}
				produce(t, on, append(journal, schemas.EncodeCheckpoint(on.topics, 0, &schemas.Checkpoint{
					Set: set, Position: &schemas.Position{Base: true, Chain: known, Effects: 10},
				}))...)
				s, err := New(Config{Client: on.client, Topics: on.topics, Owner: "reader"})
				if err != nil {
					t.Fatal(err)
				}
				defer s.out.Close()
				if err := newActor(s, 0, &status{}, slog.Default()).recover(t.Context()); !errors.Is(err, errShorter) {
					t.Errorf("expected to be told that the journal has lost records, but got %v", err)
				}
			})
		})
	}
}

// TestAnInputThatIsShorterThanWhatWasReadIsNotReadOn: what is sent next would stand where something else stood, and nobody would look
// at it.
func TestAnInputThatIsShorterThanWhatWasReadIsNotReadOn(t *testing.T) {
	each(t, 1, func(t *testing.T, on service) {
		var chain schemas.Chain
		ev := &operation.Event{Kind: operation.Rejected, At: 1, Org: "org", ID: "op", Command: operation.Cancel, Code: operation.NotFound, Cause: operation.Cause{Topic: schemas.TopicRequests, Offset: 1}}
		rec := schemas.EncodeEvent(ev, nil, 0)
		rec.Topic = on.topics.Journal()
		chain.Seal(rec)
		produce(t, on, rec, schemas.EncodeRequest(on.topics, request(t, "org", "one", "")))
		s, err := New(Config{Client: on.client, Topics: on.topics, Owner: "reader", Engine: partition.Config{Partitions: 1}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.out.Close()
		recovered := func() error { return newActor(s, 0, &status{}, slog.Default()).recover(t.Context()) }
		if err := recovered(); !errors.Is(err, errInputs) {
			t.Errorf("expected to be told that requests ends before offset 2, but got %v", err)
		}
		produce(t, on, schemas.EncodeRequest(on.topics, request(t, "org", "two", "")))
		if err := recovered(); err != nil {
			t.Errorf("expected the partition to go on when the input reaches there, but got %v", err)
		}
	})
}

// TestPartitionsThatSomebodyAddsAreToldOf: the group gives them to a scheduler, which has no journal for them.
func TestPartitionsThatSomebodyAddsAreToldOf(t *testing.T) {
	each(t, 1, func(t *testing.T, on service) {
		var log said
		s, err := New(Config{
			Client: append(on.client, kgo.MetadataMaxAge(100*time.Millisecond)), Topics: on.topics, Owner: "one",
			Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		run(t, s)
		untilStatus(t, s, "one partition", func(st Status) bool { return st.Active })
		if _, err := s.admin.UpdatePartitions(t.Context(), 2, on.topics.Requests()); err != nil {
			t.Fatal(err)
		}
		untilStatus(t, s, "what is wrong with the other", func(st Status) bool {
			return st.Partition == 1 && st.Fault != nil && strings.Contains(st.Fault.Error(), "somebody has added more")
		})
		if text := log.String(); strings.Count(text, "somebody has added more") != 1 {
			t.Errorf("expected one line about it, but got\n%s", text)
		}
		for _, st := range s.Status() {
			if st.Partition == 0 && !st.Active {
				t.Error("expected the partition that was there to go on")
			}
		}
	})
}

// TestAJournalWithoutItsBeginningIsToldOf: a partition goes on from its checkpoint, and says what is gone.
func TestAJournalWithoutItsBeginningIsToldOf(t *testing.T) {
	each(t, 1, func(t *testing.T, on service) {
		var chain schemas.Chain
		var records []*kgo.Record
		for i := range 3 {
			rec := schemas.EncodeEvent(&operation.Event{Kind: operation.Opened, At: operation.Time(i + 1), Owner: "other"}, nil, 0)
			rec.Topic = on.topics.Journal()
			chain.Seal(rec)
			records = append(records, rec)
		}
		produce(t, on, append(records, schemas.EncodeCheckpoint(on.topics, 0, &schemas.Checkpoint{
			Set: schemas.Set{Number: 1}, Position: &schemas.Position{Base: true, Chain: chain, Effects: 3},
		}))...)
		s, err := New(Config{Client: on.client, Topics: on.topics, Owner: "reader"})
		if err != nil {
			t.Fatal(err)
		}
		defer s.out.Close()
		said := func() string {
			t.Helper()
			var log bytes.Buffer
			if err := newActor(s, 0, &status{}, slog.New(slog.NewTextHandler(&log, nil))).recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			return log.String()
		}
		const loss = "the journal has lost its beginning"
		if got := said(); strings.Contains(got, loss) {
			t.Errorf("expected nothing to be missed, but got %s", got)
		}
		offsets := kadm.Offsets{}
		offsets.AddOffset(on.topics.Journal(), 0, 2, -1)
		if deleted, err := s.admin.DeleteRecords(t.Context(), offsets); err != nil || deleted.Error() != nil {
			t.Fatal(err, deleted.Error())
		}
		if got := said(); !strings.Contains(got, loss) || !strings.Contains(got, "first=2") {
			t.Errorf("expected to be told that the first record is at 2, but got %s", got)
		}
	})
}

// TestAJournalWithAHoleIsNotWrittenOn: without a checkpoint nobody knows what the events behind it follow from, and the first one that
// is appended makes them void for good. What a stale writer leaves looks alike but for the hole.
func TestAJournalWithAHoleIsNotWrittenOn(t *testing.T) {
	each(t, 1, func(t *testing.T, on service) {
		var chain schemas.Chain
		sealed := func(n int) (records []*kgo.Record) {
			for range n {
				rec := schemas.EncodeEvent(&operation.Event{Kind: operation.Opened, At: operation.Time(chain.Next + 1), Owner: "other"}, nil, 0)
				rec.Topic = on.topics.Journal()
				chain.Seal(rec)
				records = append(records, rec)
			}
			return records
		}
		s, err := New(Config{Client: on.client, Topics: on.topics, Owner: "reader"})
		if err != nil {
			t.Fatal(err)
		}
		defer s.out.Close()
		recovered := func() (*actor, error) {
			a := newActor(s, 0, &status{}, slog.New(slog.DiscardHandler))
			return a, a.recover(t.Context())
		}
		deleteBefore := func(offset int64) {
			t.Helper()
			offsets := kadm.Offsets{}
			offsets.AddOffset(on.topics.Journal(), 0, offset, -1)
			if deleted, err := s.admin.DeleteRecords(t.Context(), offsets); err != nil || deleted.Error() != nil {
				t.Fatal(err, deleted.Error())
			}
		}

		produce(t, on, sealed(3)...)
		chain.Sum[0]++ // a stale writer, whose first append was lost to another's
		produce(t, on, sealed(2)...)
		if a, err := recovered(); err != nil || a.chain.Next != 5 || a.chain.Last != 2 {
			t.Fatalf("expected a stale writer's records to be passed over, but got %v and %v", a.chain, err)
		}

		// Of the holes that a log can have, the one that a test can make.
		deleteBefore(1)
		if _, err := recovered(); !errors.Is(err, errShorter) {
			t.Errorf("expected to be told that the journal has lost records, but got %v", err)
		}

		deleteBefore(5) // what is behind the hole is given up
		if a, err := recovered(); err != nil || a.chain != (schemas.Chain{Next: 5}) || a.engine.End() != 5 {
			t.Errorf("expected the partition to begin anew at its end, but got %v and %v", a.chain, err)
		}
	})
}

// TestATransactionOfAStrangerDoesNotStopAPartition: its end is an offset at which a client gets no record unless it asks for them.
func TestATransactionOfAStrangerDoesNotStopAPartition(t *testing.T) {
	each(t, 1, func(t *testing.T, on service) {
		for _, topic := range []string{on.topics.Journal(), on.topics.Checkpoints()} {
			stranger, err := kgo.NewClient(append(on.client[:len(on.client):len(on.client)], kgo.TransactionalID("stranger-"+topic))...)
			if err != nil {
				t.Fatal(err)
			}
			defer stranger.Close()
			if err := stranger.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			// What stands in checkpoints must be one, or nothing is begun.
			rec := schemas.EncodeCheckpoint(on.topics, 0, &schemas.Checkpoint{Gone: []schemas.Gone{{Org: "org", ID: "op"}}})
			rec.Topic = topic
			if err := stranger.ProduceSync(t.Context(), rec).FirstErr(); err != nil {
				t.Fatal(err)
			}
			if err := stranger.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
				t.Fatal(err)
			}
		}
		start(t, on, "one")
		w := newSession(t, on, "w1")
		go w.serve(t.Context(), succeed)
		produce(t, on, schemas.EncodeRequest(on.topics, request(t, "org", "op", "")))
		j := watch(t, on)
		j.until(func() bool {
			s := j.states[partition.Ref{Org: "org", ID: "op"}]
			return s != nil && s.Status == operation.StatusSucceeded
		})
	})
}

func ids(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func TestOnlyCompleteSetsOfOneWriterCount(t *testing.T) {
	var topics schemas.Topics
	encode := func(c schemas.Checkpoint) *kgo.Record { return schemas.EncodeCheckpoint(topics, 0, &c) }
	state := func(set schemas.Set, id string) *kgo.Record {
		return encode(schemas.Checkpoint{Set: set, State: &operation.State{Org: "o", ID: operation.ID(id), Status: operation.StatusReady, Request: request(t, "o", id, "")}})
	}
	closing := func(set schemas.Set, p schemas.Position, next int64) *kgo.Record {
		p.Chain.Next = next
		return encode(schemas.Checkpoint{Set: set, Position: &p})
	}
	set := func(writer operation.Place, n uint64) schemas.Set { return schemas.Set{Writer: writer, Number: n} }
	tests := []struct {
		name    string
		records []*kgo.Record
		want    int64 // place of the newest state; 0 for none
		sets    int
	}{
		{"nothing", nil, 0, 0},
		{"a base", []*kgo.Record{state(set(1, 1), "a"), closing(set(1, 1), schemas.Position{Base: true, Records: 1}, 10)}, 10, 1},
		{"a base that lacks a record", []*kgo.Record{closing(set(1, 1), schemas.Position{Base: true, Records: 1}, 10)}, 0, 0},
		{"a base that is not closed", []*kgo.Record{state(set(1, 1), "a")}, 0, 0},
		{"an increment", []*kgo.Record{
			state(set(1, 1), "a"), closing(set(1, 1), schemas.Position{Base: true, Records: 1}, 10),
			state(set(1, 2), "b"), closing(set(1, 2), schemas.Position{Builds: set(1, 1), Records: 1}, 20),
		}, 20, 2},
		{"an increment after a gap", []*kgo.Record{
			closing(set(1, 1), schemas.Position{Base: true}, 10),
			closing(set(1, 3), schemas.Position{Builds: set(1, 2)}, 30),
		}, 10, 1},
		{"an increment whose base was trimmed", []*kgo.Record{closing(set(1, 2), schemas.Position{Builds: set(1, 1)}, 20)}, 0, 0},
		{"a stale writer's leavings among a newer one's", []*kgo.Record{
			state(set(1, 1), "a"), state(set(5, 1), "a"), state(set(1, 1), "b"), state(set(5, 1), "b"),
			closing(set(5, 1), schemas.Position{Base: true, Records: 2}, 30),
			closing(set(1, 1), schemas.Position{Base: true, Records: 2}, 20),
		}, 30, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var sets checkpointSets
			for _, rec := range tt.records {
				rec.Topic = topics.Checkpoints()
				if err := sets.add(rec); err != nil {
					t.Fatal(err)
				}
			}
			newest := sets.newest()
			got := int64(0)
			if newest != nil {
				got = newest[len(newest)-1].position.Chain.Next
			}
			if got != tt.want || len(newest) != tt.sets {
				t.Errorf("expected %d sets up to place %d, but got %d up to %d", tt.sets, tt.want, len(newest), got)
			}
		})
	}
}

func TestRebalanceMovesPartitionsWithoutLoss(t *testing.T) {
	each(t, 6, testRebalanceMovesPartitionsWithoutLoss)
}

func testRebalanceMovesPartitionsWithoutLoss(t *testing.T, on service) {
	stopOne := start(t, on, "one")
	w := newSession(t, on, "w1")
	go w.serve(t.Context(), succeed)
	j := watch(t, on)
	n := 0
	send := func(count int) {
		var records []*kgo.Record
		for range count {
			records = append(records, schemas.EncodeRequest(on.topics, request(t, "org", fmt.Sprintf("op%d", n), fmt.Sprintf("chain%d", n%60))))
			n++
		}
		produce(t, on, records...)
	}
	owners := func() int {
		names := map[string]bool{}
		for _, ev := range j.events {
			if ev.Kind == operation.Opened {
				names[ev.Owner] = true
			}
		}
		return len(names)
	}
	send(600)
	start(t, on, "two") // takes its part of the partitions, while work goes on
	for owners() < 2 {
		send(50)
		j.until(j.ended(n))
	}
	send(600)
	stopOne() // hands its part over
	send(600)
	j.until(j.ended(n))
	for ref, s := range j.states {
		if ref.ID != "" && s.Status != operation.StatusSucceeded {
			t.Errorf("%s is %s", ref.ID, s.Status)
		}
	}
	opened := map[string]int{}
	for _, ev := range j.events {
		if ev.Kind == operation.Opened {
			opened[ev.Owner]++
		}
	}
	t.Logf("%d operations; partitions opened by each owner: %v; %d void records", n, opened, j.void)
	// Cooperative: what stays with an owner is not opened anew.
	if opened["one"] > 7 {
		t.Errorf("expected partitions that stay to go on, but the first owner opened %d", opened["one"])
	}
}

package embedded

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	victimDir   = "OPSTREAM_EMBEDDED_VICTIM_DIR"
	victimRound = "OPSTREAM_EMBEDDED_VICTIM_ROUND"
	victimSync  = "OPSTREAM_EMBEDDED_VICTIM_SYNC"

	killTopic      = "killed"
	killPartitions = 4
	killRounds     = 16
)

// killTopics has segments small enough to be full several times within the test, so that kills also meet a change of segments.
func killTopics() []Topic {
	return []Topic{{Name: killTopic, Partitions: killPartitions, Configs: map[string]string{"segment.bytes": "262144"}}}
}

// killRecord is the one value that a round's process sends as number n on a partition: its coordinates and a body that follows
// from them, so that a reader can tell any byte that was never sent.
func killRecord(round, partition, n uint64) []byte {
	value := binary.BigEndian.AppendUint64(nil, round)
	value = binary.BigEndian.AppendUint64(value, partition)
	value = binary.BigEndian.AppendUint64(value, n)
	body := rand.New(rand.NewPCG(round<<32|partition, n))
	for range body.IntN(150) {
		value = binary.BigEndian.AppendUint64(value, body.Uint64())
	}
	return value
}

// beVictim is the process that gets killed: it appends as fast as it can and says on its standard output, a line each, what was
// acknowledged: partition, number, offset. It never ends by itself, unless something fails.
func beVictim(dir string) {
	fail := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
		os.Exit(3)
	}
	round, err := strconv.ParseUint(os.Getenv(victimRound), 10, 64)
	if err != nil {
		fail("round: %v", err)
	}
	ctx := context.Background()
	b, err := Open(ctx, Config{Dir: dir, Topics: killTopics(), Sync: os.Getenv(victimSync) != "", Logger: quiet()})
	if err != nil {
		fail("open: %v", err)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(b.Addrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0), kgo.MaxBufferedRecords(200), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		fail("client: %v", err)
	}
	for n := uint64(0); ; n++ {
		for p := range uint64(killPartitions) {
			record := &kgo.Record{Topic: killTopic, Partition: int32(p), Value: killRecord(round, p, n)}
			client.Produce(ctx, record, func(r *kgo.Record, err error) {
				if err != nil {
					fail("produce: %v", err)
				}
				if _, err := fmt.Fprintf(os.Stdout, "%d %d %d\n", r.Partition, n, r.Offset); err != nil {
					os.Exit(3) // the test has gone
				}
			})
		}
	}
}

// acknowledged is what one killed process said: by partition and number, the offset.
type acknowledged [killPartitions]map[uint64]int64

// victim runs one process until it has acknowledged so many records, or, where that is 0, for so long, kills it, and returns all
// that it said until it was dead.
func victim(t *testing.T, dir string, round uint64, sync bool, acks int, after time.Duration) acknowledged {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), executable)
	command.Env = append(os.Environ(), victimDir+"="+dir, victimRound+"="+strconv.FormatUint(round, 10))
	if sync {
		command.Env = append(command.Env, victimSync+"=1")
	}
	var stderr bytes.Buffer
	command.Stderr = &stderr
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() {
		if err := command.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("round %d: kill: %v", round, err)
		}
	}
	if acks == 0 {
		time.AfterFunc(after, kill)
	}
	var said acknowledged
	for p := range said {
		said[p] = make(map[uint64]int64)
	}
	lines := bufio.NewReader(stdout)
	count := 0
	for {
		line, err := lines.ReadString('\n')
		if err == io.EOF {
			break // and a part of a line is no acknowledgement
		}
		if err != nil {
			t.Fatalf("round %d: read acknowledgements: %v", round, err)
		}
		var partition int
		var n uint64
		var offset int64
		if _, err := fmt.Sscanf(line, "%d %d %d\n", &partition, &n, &offset); err != nil {
			t.Fatalf("round %d: line %q: %v", round, line, err)
		}
		said[partition][n] = offset
		if count++; count == acks {
			kill()
		}
	}
	err = command.Wait()
	if status, ok := command.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("round %d: expected the process to die of the kill, but it ended with %v after %d acknowledgements: %s",
			round, err, count, stderr.String())
	}
	return said
}

func TestKilledAtAnyMoment(t *testing.T) {
	const seed = 1
	chance := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	var rounds []acknowledged
	for round := range uint64(killRounds) {
		sync, acks, after := round%4 == 3, 1+chance.IntN(4000), time.Duration(chance.IntN(60))*time.Millisecond
		switch {
		case sync:
			acks = 1 + chance.IntN(400)
		case round%2 == 0: // while it starts, the first of all included, or soon after
			acks = 0
		}
		rounds = append(rounds, victim(t, dir, round, sync, acks, after))
		// Every other time on average the next process meets the files as the kill left them, else as a clean close did.
		look := dir
		if chance.IntN(2) == 0 {
			look = filepath.Join(t.TempDir(), "copy")
			if err := os.CopyFS(look, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
		}
		b := open(t, Config{Dir: look, Topics: killTopics()})
		total := checkKilled(t, readAll(t, b, killTopic), rounds)
		closeBroker(t, b)
		if t.Failed() {
			t.Fatalf("round %d of seed %d, killed after %d acknowledgements or %v, sync %v", round, seed, acks, after, sync)
		}
		t.Logf("round %d: killed after %d acknowledgements or %v, sync %v, %d records in the log", round, acks, after, sync, total)
	}
}

// checkKilled wants, on each partition, offsets without a gap, the rounds one after the other, each with its records 0, 1, 2 and so
// on in the very bytes that were sent, none twice, and none of the acknowledged ones missing or at another offset.
func checkKilled(t *testing.T, log map[int32][]*kgo.Record, rounds []acknowledged) (total int) {
	t.Helper()
	for p := range uint64(killPartitions) {
		var round, next uint64
		found := make([]uint64, len(rounds)) // how many records of each round are there
		for i, r := range log[int32(p)] {
			if r.Offset != int64(i) {
				t.Errorf("partition %d: expected offset %d, but got %d", p, i, r.Offset)
				return total
			}
			if len(r.Value) < 24 {
				t.Errorf("partition %d offset %d: a record that was never sent: %x", p, i, r.Value)
				return total
			}
			theirs, n := binary.BigEndian.Uint64(r.Value), binary.BigEndian.Uint64(r.Value[16:])
			if theirs != round {
				if theirs < round || theirs >= uint64(len(rounds)) {
					t.Errorf("partition %d offset %d: round %d after round %d", p, i, theirs, round)
					return total
				}
				round, next = theirs, 0
			}
			if n != next || !bytes.Equal(r.Value, killRecord(round, p, n)) {
				t.Errorf("partition %d offset %d: expected record %d of round %d, but got number %d, %d bytes", p, i, next, round, n, len(r.Value))
				return total
			}
			if offset, ok := rounds[round][p][n]; ok && offset != r.Offset {
				t.Errorf("partition %d: record %d of round %d was acknowledged at %d, but is at %d", p, n, round, offset, r.Offset)
			}
			next++
			found[round] = next
			total++
		}
		for round, said := range rounds {
			for n, offset := range said[p] {
				if n >= found[round] {
					t.Errorf("partition %d: record %d of round %d was acknowledged at offset %d, but is lost", p, n, round, offset)
				}
			}
		}
	}
	return total
}

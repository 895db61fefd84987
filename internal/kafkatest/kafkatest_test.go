package kafkatest_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/schemas"
)

func TestRecordGoesRound(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, b *kafkatest.Broker) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		words := b.Prefix + "words"
		b.Create(t, schemas.Spec{Name: words, Partitions: 3, MaxBytes: 1 << 20})
		producer := kafkatest.Client(t, b.Seeds, kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err := producer.ProduceSync(ctx, &kgo.Record{Topic: words, Partition: 2, Value: []byte("hello")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		consumer := kafkatest.Client(t, b.Seeds, kgo.ConsumeTopics(words))
		fetches := consumer.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		records := fetches.Records()
		if len(records) != 1 || string(records[0].Value) != "hello" || records[0].Partition != 2 {
			t.Fatalf("expected hello on partition 2, but got %v", records)
		}
	})
}

// ownerEnv makes this test binary one that starts a Kafka and is then killed.
const ownerEnv = "OPSTREAM_KAFKATEST_OWNER"

func TestMain(m *testing.M) {
	if os.Getenv(ownerEnv) != "" {
		_ = os.Unsetenv(kafkatest.SeedsEnv)
	}
	os.Exit(m.Run())
}

// TestOwner is the part of TestKafkaEndsWithItsOwner that dies.
func TestOwner(t *testing.T) {
	if os.Getenv(ownerEnv) == "" {
		t.Skip("it is run by TestKafkaEndsWithItsOwner")
	}
	fmt.Println("seeds", strings.Join(kafkatest.Real(t), ","))
	<-t.Context().Done() // until it is killed
}

// TestKafkaEndsWithItsOwner kills a test binary that has started a broker.
func TestKafkaEndsWithItsOwner(t *testing.T) {
	kafkatest.Real(t) // where there is none this test has nothing to say
	owner := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOwner$")
	owner.Env = append(os.Environ(), ownerEnv+"=1", kafkatest.RequireEnv+"=1", "TMPDIR="+t.TempDir())
	stdout, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	seed := ""
	for lines := bufio.NewScanner(stdout); seed == "" && lines.Scan(); {
		seed, _ = strings.CutPrefix(lines.Text(), "seeds ")
	}
	if !strings.HasPrefix(seed, "127.0.0.1:") {
		t.Fatalf("expected a broker, but got %q", seed)
	}
	conn, err := net.Dial("tcp", seed)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait() // it was killed
	// The kernel closes what a killed process had open one after the other, connections before the socket that listens: until that
	// is closed too, one can still connect, and is told at its end.
	deadline := time.Now().Add(30 * time.Second)
	for {
		if err := conn.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Fatalf("expected the broker to end with who started it, but a connection stayed for 30 s: %v", err)
		}
		again, err := net.Dial("tcp", seed)
		if err != nil {
			return // nobody listens any more
		}
		defer again.Close()
		conn = again
	}
}

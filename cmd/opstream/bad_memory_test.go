package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/schemas"
)

// peak is the most memory that a process has had resident so far, in MiB.
func peak(t testing.TB, pid int) int {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Skipf("SKIPPED, NOTHING WAS MEASURED: only Linux tells the peak of a process's memory: %v", err)
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.Atoi(strings.Fields(text)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n >> 10
		}
	}
	t.Fatalf("expected VmHWM in the status of process %d, but got %s", pid, status)
	return 0
}

// TestMemoryStaysBoundedUnderBadInput sends a whole process 200 bad inputs of 1 MiB at once, on each way in. What they take
// is bounded: peakMax for the process with its broker, its tables and all roles, of which an idle one has some 30 MiB.
func TestMemoryStaysBoundedUnderBadInput(t *testing.T) {
	const n, size, peakMax = 200, 1 << 20, 640 // MiB: the records themselves once (200), as dead letters (200), and what is under way
	broker := freePort(t)
	p := spawn(t, "dev", "--data", t.TempDir(), "--kafka", broker, "--listen", "127.0.0.1:0")
	before := peak(t, p.cmd.Process.Pid)

	bad := []byte(with("x", `"data":"`+strings.Repeat("x", size-100)+"\xff\""))
	// Refused in their last bytes, all at once.
	post := func(path, contentType string, body string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.url+path, strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		req.Header.Set("Content-Type", contentType)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest && resp.StatusCode != http.StatusOK {
			t.Errorf("%s: expected the bad body to be refused, but got %s", path, resp.Status)
		}
	}
	var posted sync.WaitGroup
	for range n {
		posted.Go(func() { post("/v1/operations", "application/json", string(bad[:size-1])) })
	}
	posted.Wait()
	afterPosts := peak(t, p.cmd.Process.Pid)
	posted.Go(func() {
		post("/v1/operations:batch", "application/jsonl", strings.Repeat(string(bad[:size-1])+"\n", n))
	})
	posted.Wait()
	afterBatch := peak(t, p.cmd.Process.Pid)

	// Undecodable, as large as a record may be, on every partition.
	client, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(schemas.MaxBatchBytes),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.MaxBufferedRecords(n+1))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var sent sync.WaitGroup
	for i := range n {
		rec := binaryMode("x", "")
		rec.Value, rec.Partition = bad, int32(i%devPartitions)
		sent.Add(1)
		client.Produce(t.Context(), rec, func(_ *kgo.Record, err error) {
			if err != nil {
				t.Errorf("produce: %v", err)
			}
			sent.Done()
		})
	}
	sent.Wait()
	letters, err := openDeadLetters(t.Context(), []string{broker}, "")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() (bool, string) {
		spans, err := letters.spans(t.Context(), time.Time{})
		if err != nil {
			return false, err.Error()
		}
		return spans[0].to-spans[0].from == n, fmt.Sprintf("%d of %d dead letters", spans[0].to-spans[0].from, n)
	})
	total := peak(t, p.cmd.Process.Pid)
	t.Logf("peak of memory: %d MiB at first, %d after single bodies, %d after a batch, %d after Kafka", before, afterPosts, afterBatch, total)
	if total > peakMax {
		t.Errorf("expected the process to stay below %d MiB, but it had %d", peakMax, total)
	}

	var good strings.Builder
	for i := range 50 {
		good.WriteString(with(fmt.Sprint("good-", i), "") + "\n")
	}
	run(t, good.String(), "op", "submit", "--server", p.url, "--from", "-", "--wait").expect(t, exitOK, "succeeded 50")
}

package embedded

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

var writeGolden = flag.Bool("write-golden", false, "write the golden data directories of the present format, if there are none yet")

// golden holds data directories as earlier builds left them, one folder a format, closed cleanly and killed, with their records
// as text. They are only ever added: users have such directories.
func golden(version int, name ...string) string {
	return filepath.Join(append([]string{"testdata", fmt.Sprintf("format%d", version)}, name...)...)
}

// TestGoldenDirectoriesOpen is what decides whether kfake may be upgraded.
func TestGoldenDirectoriesOpen(t *testing.T) {
	if *writeGolden {
		makeGolden(t)
	}
	for version := 1; version <= FormatVersion; version++ {
		want, err := os.ReadFile(golden(version, "records.txt"))
		if err != nil {
			t.Fatalf("every format has its golden directories; write those of a new one with -write-golden: %v", err)
		}
		for _, how := range []string{"closed", "killed"} {
			t.Run(fmt.Sprintf("format %d, %s", version, how), func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "data")
				if err := os.CopyFS(dir, os.DirFS(golden(version, how))); err != nil {
					t.Fatal(err)
				}
				b := open(t, Config{Dir: dir, Topics: goldenTopics()})
				if got := goldenText(t, b); got != string(want) {
					t.Fatalf("expected the records\n%s\nbut got\n%s", want, got)
				}
				next := &kgo.Record{Topic: "journal", Partition: 1, Value: []byte("appended")}
				produce(t, producer(t, b.Addrs()), next)
				if next.Offset != 9 {
					t.Fatalf("expected the next record at offset 9, but it is at %d", next.Offset)
				}
				closeBroker(t, b)
				b = open(t, Config{Dir: dir, Topics: goldenTopics()})
				if got := goldenText(t, b); !strings.Contains(got, "appended") || strings.Count(got, "\n") != strings.Count(string(want), "\n")+1 {
					t.Fatalf("expected the same records and the one appended, but got\n%s", got)
				}
			})
		}
	}
}

func goldenTopics() []Topic {
	return []Topic{{Name: "journal", Partitions: 3}, {Name: "reports", Partitions: 1}}
}

func goldenText(t *testing.T, b *Broker) string {
	t.Helper()
	var text strings.Builder
	for _, topic := range goldenTopics() {
		log := readAll(t, b, topic.Name)
		for p := range topic.Partitions {
			for _, r := range log[p] {
				fmt.Fprintf(&text, "%s %d %d %s %q %q", topic.Name, p, r.Offset, r.Timestamp.UTC().Format(time.RFC3339Nano), r.Key, r.Value)
				for _, h := range r.Headers {
					fmt.Fprintf(&text, " %s=%q", h.Key, h.Value)
				}
				text.WriteByte('\n')
			}
		}
	}
	return text.String()
}

// makeGolden writes one batch of each compression to two partitions of the journal, leaving the first one empty, and single
// records to the reports.
func makeGolden(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(golden(FormatVersion)); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("expected no golden directories of format %d, but %s is there, err %v: a format that users have is never written "+
			"anew; raise FormatVersion", FormatVersion, golden(FormatVersion), err)
	}
	dir := t.TempDir()
	b := open(t, Config{Dir: dir, Topics: goldenTopics()})
	at := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)
	record := func(topic string, partition int32, n int) *kgo.Record {
		return &kgo.Record{
			Topic: topic, Partition: partition, Timestamp: at.Add(time.Duration(n) * time.Second),
			Key: fmt.Appendf(nil, "key-%d", n), Value: fmt.Appendf(nil, `{"n":%d,"text":"%s"}`, n, strings.Repeat("ab", n*5)),
			Headers: []kgo.RecordHeader{{Key: "ce_type", Value: []byte("opstream.golden.v1")}},
		}
	}
	for i, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.SnappyCompression(), kgo.ZstdCompression()} {
		client := producer(t, b.Addrs(), kgo.ProducerBatchCompression(codec))
		for p := range int32(2) {
			produce(t, client, record("journal", p+1, 3*i), record("journal", p+1, 3*i+1), record("journal", p+1, 3*i+2))
		}
		produce(t, client, record("reports", 0, i))
		client.Close()
	}
	save := func(how string) {
		t.Helper()
		err := os.CopyFS(golden(FormatVersion, how), os.DirFS(dir))
		if err == nil {
			err = os.Remove(golden(FormatVersion, how, lockFile))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	save("killed")
	text := goldenText(t, b)
	closeBroker(t, b)
	save("closed")
	if err := os.WriteFile(golden(FormatVersion, "records.txt"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestGoldenDirectoriesAreWhole notices a checkout that lost files, for instance to a rule that ignores *.log.
func TestGoldenDirectoriesAreWhole(t *testing.T) {
	var files []string
	err := filepath.WalkDir(golden(1), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			files = append(files, filepath.ToSlash(strings.TrimPrefix(path, golden(1)+string(filepath.Separator))))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"closed", "killed"} {
		for _, file := range []string{
			"VERSION", "log/meta.json", "log/topics.json", "log/pids.log", "log/groups.log",
			"log/partitions/journal-1/0.dat", "log/partitions/journal-1/0.idx", "log/partitions/reports-0/0.dat",
		} {
			if want := how + "/" + file; !slices.Contains(files, want) {
				t.Errorf("expected %s among the golden files, but there are only %v", want, files)
			}
		}
	}
}

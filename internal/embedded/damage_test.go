package embedded

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestDamagedSegmentsAreKeptAndToldOf: kfake cuts a segment off at the first batch that it cannot read. Who only looks must not have
// that done, and nobody may have it done without a word and without a copy.
func TestDamagedSegmentsAreKeptAndToldOf(t *testing.T) {
	for name, harm := range map[string]func([]byte) []byte{
		"a byte":        func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"the last byte": func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"a length":      func(b []byte) []byte { b[8] ^= 1; return b },
		"the end":       func(b []byte) []byte { return b[:len(b)-1] },
		"the beginning": func(b []byte) []byte { return b[1:] },
		"everything":    func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			config := Config{Dir: t.TempDir(), Topics: []Topic{{Name: "t", Partitions: 1}}}
			b := open(t, config)
			client := producer(t, b.Addrs())
			for range 5 { // five batches
				produce(t, client, &kgo.Record{Topic: "t", Value: bytes.Repeat([]byte("x"), 100)})
			}
			client.Close()
			closeBroker(t, b)
			segment := filepath.Join(config.Dir, logDir, "partitions", "t-0", "0.dat")
			content, err := os.ReadFile(segment)
			if err != nil {
				t.Fatal(err)
			}
			harmed := harm(content)
			if err := os.WriteFile(segment, harmed, 0o644); err != nil {
				t.Fatal(err)
			}

			whole := config
			whole.Whole = true
			whole.Logger = quiet()
			var damaged *DamagedError
			if b, err := Open(context.Background(), whole); !errors.As(err, &damaged) {
				if err == nil {
					closeBroker(t, b)
				}
				t.Fatalf("expected the damaged log to be refused, but got %v", err)
			}
			if now, err := os.ReadFile(segment); err != nil || !bytes.Equal(now, harmed) {
				t.Fatalf("expected the segment to be left alone, but it has %d bytes of %d (%v)", len(now), len(harmed), err)
			}

			var log bytes.Buffer
			config.Logger = slog.New(slog.NewTextHandler(&log, nil))
			closeBroker(t, open(t, config))
			if kept, err := os.ReadFile(filepath.Join(config.Dir, damagedDir, "t-0-0.dat")); err != nil || !bytes.Equal(kept, harmed) {
				t.Errorf("expected a copy of the damaged segment, but got %d bytes of %d (%v)", len(kept), len(harmed), err)
			}
			if !bytes.Contains(log.Bytes(), []byte("the log is damaged")) || !bytes.Contains(log.Bytes(), []byte(filepath.Join("t-0", "0.dat"))) {
				t.Errorf("expected a line about the damage, but got %s", &log)
			}
			log.Reset()
			closeBroker(t, open(t, config))
			if bytes.Contains(log.Bytes(), []byte("damaged")) {
				t.Errorf("expected the damage to be told of once, but got %s", &log)
			}
		})
	}
}

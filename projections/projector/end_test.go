package projector

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/schemas"
)

// TestEndOfAnotherHistory: what a stale writer leaves at the end is no alarm when its partition's new owner writes behind it, and one when
// nobody does.
func TestEndOfAnotherHistory(t *testing.T) {
	for name, owned := range map[string]bool{"an owner follows": true, "nobody follows": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				p := &Projector{config: Config{Log: slog.New(slog.NewTextHandler(&log, nil))}}
				part := &partition{}
				p.partitions = map[int32]*partition{0: part}
				end := int64(0)
				read := func(by schemas.Chain) (after schemas.Chain) {
					rec := &kgo.Record{Offset: end, Value: []byte("an event")}
					by.Next = end
					by.Seal(rec)
					end++
					if _, err := part.chain.Check(rec); err != nil {
						t.Fatal(err)
					}
					p.judgeEnd(0, part, end)
					return by
				}
				good := read(schemas.Chain{})
				stale := read(schemas.Chain{Sum: [32]byte{1}})
				read(stale)
				time.Sleep(strangeFor / 2)
				if owned {
					read(good)
				}
				time.Sleep(strangeFor)
				synctest.Wait()
				if alarm := strings.Contains(log.String(), "records are missing"); alarm == owned {
					t.Errorf("expected an alarm when nobody follows, and only then, but got %q", log.String())
				}
				if stopped := p.Status().Partitions[0].Stopped; (stopped == nil) != owned {
					t.Errorf("expected readiness and metrics to tell of it as well, but they tell of %v", stopped)
				}
				read(good) // be it late
				if stopped := p.Status().Partitions[0].Stopped; stopped != nil {
					t.Errorf("expected it to be over when the history goes on, but got %v", stopped)
				}
			})
		})
	}
}

package command_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/internal/api/apitest"
	"github.com/opstream/opstream/producers/command"
)

// FuzzBatch: whatever a batch holds, each of its lines that is not blank is answered, in order, and the numbers at its end are
// right.
func FuzzBatch(f *testing.F) {
	f.Add([]byte(small+"\n"+small), uint16(0))
	f.Add([]byte("\n\r\n \xff\n{}\nnull"), uint16(3))
	f.Add([]byte("{"+strings.Repeat("x", 100)+"\n"+small), uint16(20_000))
	h := api.Handler(slog.New(slog.DiscardHandler), command.Routes(command.Config{Journal: newJournal()})...)
	f.Fuzz(func(t *testing.T, body []byte, times uint16) {
		if len(body)*int(times) > 2*api.BodyMax {
			times = 0
		}
		body = append(bytes.Repeat(body[:min(len(body), 100)], int(times)), body...)
		got := apitest.Do(t, h, "POST", "/v1/operations:batch", string(body), "Content-Type", "application/jsonl")
		var want []int
		for i, line := range bytes.Split(body, []byte("\n")) {
			if len(bytes.TrimSpace(line)) > 0 || len(line) > api.BodyMax {
				want = append(want, i+1)
			}
		}
		accepted := 0
		for line := range bytes.Lines(got.Body) {
			var a api.BatchLine
			if err := json.Unmarshal(line, &a); err != nil {
				t.Fatalf("expected JSON, but got %q: %v", line, err)
			}
			if a.End != nil {
				if len(want) > 0 || a.End.Accepted != accepted || a.End.Refused != a.End.Lines-accepted {
					t.Errorf("expected the end behind the last line, with %d accepted, but got %s", accepted, line)
				}
				return
			}
			if len(want) == 0 || a.Line != want[0] || a.Accepted != (a.Problem == nil) {
				t.Fatalf("expected an answer to line %v, but got %s", want, line)
			}
			if want = want[1:]; a.Accepted {
				accepted++
			} else if _, ok := api.KindOf(a.Problem.Code); !ok || a.Problem.Status >= 500 {
				t.Errorf("expected a problem of the caller, but got %s", line)
			}
		}
		t.Errorf("expected the end of the answer, but got %q", got.Body)
	})
}

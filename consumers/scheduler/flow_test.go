package scheduler

import (
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
)

// TestFlow lets requests pour in for some seconds and hands operations out at some rate, in steps of ten milliseconds.
func TestFlow(t *testing.T) {
	const step = 10 * time.Millisecond
	for _, tt := range []struct {
		name        string
		requests    int64 // on the log from the beginning on
		rate        int   // handed out a second
		after       time.Duration
		taken, left [2]int64 // between which the requests taken in, and those on the log, are by then
	}{
		{"few are all taken in", 400, 0, 100 * time.Millisecond, [2]int64{400, 400}, [2]int64{0, 0}},
		{"fast work is taken in as it is done", 20_000, 5000, 2 * time.Second, [2]int64{9_000, 12_000}, [2]int64{8_000, 11_000}},
		{"what fast work cannot do soon is taken in", 100_000, 5000, 2 * time.Second, [2]int64{86_000, 94_000}, [2]int64{6_000, 14_000}},
		{"slow work is taken in at once", 20_000, 10, time.Second, [2]int64{19_900, 20_000}, [2]int64{0, 100}},
		{"nobody works", 20_000, 0, time.Second, [2]int64{20_000, 20_000}, [2]int64{0, 0}},
		{"a few stay out for a moment only", 700, 1, 700 * time.Millisecond, [2]int64{690, 700}, [2]int64{0, 10}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var f flow
			now := operation.Time(time.Hour / time.Microsecond)
			lag, backlog, taken, owed := tt.requests, 0, int64(0), 0.0
			for range tt.after / step {
				owed += float64(tt.rate) * step.Seconds()
				n := min(int(owed), backlog)
				owed -= float64(n)
				backlog -= n
				f.handed += n
				for range 20 { // the actor looks again while there is something to take
					n := min(f.allowed(backlog, lag, now), requestsAtOnce, lag)
					f.took(int(n))
					lag, backlog, taken = lag-n, backlog+int(n), taken+n
				}
				now = now.Add(step)
			}
			if taken < tt.taken[0] || taken > tt.taken[1] || lag < tt.left[0] || lag > tt.left[1] {
				t.Errorf("expected %v taken in and %v on the log, but got %d and %d", tt.taken, tt.left, taken, lag)
			}
		})
	}
}

// TestFlowBegins forgets what it knew when no requests wait any more: the next flood may be another one.
func TestFlowBegins(t *testing.T) {
	var f flow
	now := operation.Time(time.Hour / time.Microsecond)
	for range 2 {
		if got := f.allowed(holdMin+1, 100_000, now); got != 0 {
			t.Fatalf("expected requests to wait while it is measured, but %d were taken in", got)
		}
		now = now.Add(holdLook)
		if got := f.allowed(holdMin+1, 100_000, now); got != 100_000 {
			t.Fatalf("expected everything to be taken in when nothing is handed out, but got %d", got)
		}
		if got := f.allowed(holdMin+1, 0, now); got != 0 || f != (flow{}) {
			t.Fatalf("expected nothing to be remembered, but got %d and %+v", got, f)
		}
	}
}

package simulation

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"
)

func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1)   // fewer orders in which a seed can run
	debug.SetGCPercent(400) // a world is small and short: garbage is cheaper kept
	os.Exit(m.Run())
}

func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("expected %s to be a number, but got %q", name, text)
	}
	return n
}

// TestSeeds runs as many seeds as fit into the time. OPSTREAM_SIM_SECONDS gives it more, OPSTREAM_SIM_SEEDS bounds their number,
// OPSTREAM_SIM_FIRST says where to begin and OPSTREAM_SIM_STEP how to go on, so that several processes can share the seeds, and
// OPSTREAM_SIM_SEED runs one and shows its history.
func TestSeeds(t *testing.T) {
	if os.Getenv("OPSTREAM_SIM_SEED") != "" {
		simulate(t, uint64(number(t, "OPSTREAM_SIM_SEED", 0)), true)
		return
	}
	seconds := number(t, "OPSTREAM_SIM_SECONDS", 20)
	first, step, most := number(t, "OPSTREAM_SIM_FIRST", 1), number(t, "OPSTREAM_SIM_STEP", 1), number(t, "OPSTREAM_SIM_SEEDS", 1<<30)
	began, ran := time.Now(), 0
	var total Stats
	for ; ran < most && time.Since(began) < time.Duration(seconds)*time.Second; ran++ {
		s := simulate(t, uint64(first+ran*step), false)
		total.Virtual += s.Virtual
		total.Operations += s.Operations
		total.Calls += s.Calls
		total.Answers += s.Answers
		total.Handlers += s.Handlers
		total.Events += s.Events
		total.Void += s.Void
		total.Recovered += s.Recovered
		total.Asked += s.Asked
		total.Reads += s.Reads
		total.Heard += s.Heard
		total.Drained = max(total.Drained, s.Drained)
	}
	t.Logf("%d seeds from %d to %d in %s: %+v", ran, first, first+(ran-1)*step, time.Since(began).Round(time.Millisecond), total)
}

func simulate(t *testing.T, seed uint64, show bool) (stats Stats) {
	t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
		// Outside of the bubble, where time is real.
		watch := time.AfterFunc(time.Minute, func() {
			debug.SetTraceback("all")
			panic(fmt.Sprintf("seed %d does not go on: look for a goroutine of its bubble that waits for a mutex", seed))
		})
		defer watch.Stop()
		cryptotest.SetGlobalRandom(t, seed)
		synctest.Test(t, func(t *testing.T) {
			res, err := Run(t.Context(), NewPlan(seed, os.Getenv("OPSTREAM_SIM_CLOCKS") != "0"))
			if res != nil {
				stats = res.Stats
			}
			if show || err != nil || res == nil || len(res.Violations) > 0 {
				if res != nil {
					res.Write(os.Stdout)
				}
			}
			if err != nil {
				t.Errorf("seed %d could not be run: %v", seed, err)
			}
			if res != nil && len(res.Violations) > 0 {
				for _, v := range res.Violations {
					t.Error(v)
				}
				t.Errorf("seed %d: run it again with OPSTREAM_SIM_SEED=%d go test ./cmd/opstream/simulation -run TestSeeds", seed, seed)
			}
		})
	})
	return stats
}

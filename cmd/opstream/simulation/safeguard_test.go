//go:build simulation

package simulation

import (
	"testing"
	"testing/cryptotest"
	"testing/synctest"

	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/internal/safeguard"
)

// TestTheCheckerSeesWhatIsBroken switches single safeguards off. Each time some seed must find the damage; if none does, the
// safeguard is not needed, or this package does not look where it should.
func TestTheCheckerSeesWhatIsBroken(t *testing.T) {
	flag := func(f *bool) func(bool) { return func(off bool) { *f = off } }
	for _, tt := range []struct {
		name string
		set  func(off bool)
	}{
		{"place and chain", flag(&safeguard.NoPlace)},
		{"reading after an unanswered append", flag(&safeguard.NoReread)},
		{"effects after the commit", flag(&safeguard.Early)},
		{"effects sent again", flag(&safeguard.NoResend)},
		{"memory of the session", flag(&safeguard.NoMemory)},
		{"fence of the worker", flag(&safeguard.NoFence)},
		{"positions in the batch's transaction", flag(&safeguard.Split)},
		{"ids that are known", partition.ForgetIDs},
	} {
		t.Run(tt.name, func(t *testing.T) {
			try := func(seed uint64, off bool) string {
				tt.set(off)
				defer tt.set(false)
				found := ""
				cryptotest.SetGlobalRandom(t, seed)
				synctest.Test(t, func(t *testing.T) {
					res, err := Run(t.Context(), NewPlan(seed, true))
					switch {
					case err != nil:
						t.Errorf("seed %d could not be run: %v", seed, err)
					case len(res.Violations) > 0:
						found = res.Violations[0]
					}
				})
				return found
			}
			first, most := number(t, "OPSTREAM_SIM_FIRST", 1), number(t, "OPSTREAM_SIM_SEEDS", 300)
			for ran := range most {
				seed := uint64(first + ran)
				found := try(seed, true)
				if found == "" {
					continue
				}
				if real := try(seed, false); real != "" {
					t.Errorf("seed %d finds something with the safeguard on, too: %s", seed, real)
					continue
				}
				again := 0
				for range 5 {
					if try(seed, true) != "" {
						again++
					}
				}
				t.Logf("found by seed %d, the %d. that was tried, and again in %d of 5 more runs of it: %.300s", seed, ran+1, again, found)
				return
			}
			t.Errorf("expected one of %d seeds to find the damage, but none did", most)
		})
	}
}

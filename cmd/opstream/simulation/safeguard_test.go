//go:build simulation

package simulation

import (
	"slices"
	"testing"
	"testing/cryptotest"
	"testing/synctest"

	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/internal/safeguard"
)

// TestTheCheckerSeesWhatIsBroken switches single safeguards off. Each time some seed must find the damage; if none does, the
// safeguard is not needed, or this package does not look where it should.
//
// The seeds that are known to find it come first. OPSTREAM_SIM_FIRST says where the search goes on, OPSTREAM_SIM_SEEDS bounds it, and
// OPSTREAM_SIM_AGAIN asks how often the seed that was found finds it again. OPSTREAM_SIM_COUNT=40 counts instead how many of the first
// forty seeds find it.
func TestTheCheckerSeesWhatIsBroken(t *testing.T) {
	flag := func(f *bool) func(bool) { return func(off bool) { *f = off } }
	for _, tt := range []struct {
		name  string
		set   func(off bool)
		known []uint64 // seeds that have found the damage before, and do so more often than not
	}{
		{"place and chain", flag(&safeguard.NoPlace), []uint64{2}},
		{"reading after an unanswered append", flag(&safeguard.NoReread), []uint64{17}},
		{"effects after the commit", flag(&safeguard.Early), []uint64{2}},
		{"effects sent again", flag(&safeguard.NoResend), []uint64{24}},
		{"memory of the session", flag(&safeguard.NoMemory), []uint64{3}},
		{"fence of the worker", flag(&safeguard.NoFence), []uint64{8}},
		{"positions in the batch's transaction", flag(&safeguard.Split), []uint64{12}},
		{"ids that are known", partition.ForgetIDs, []uint64{1}},
		{"reads wait for positions", flag(&impatient), []uint64{1}},
		{"as of what the tables have", flag(&boastful), []uint64{16}},
		{"changes are told", flag(&forgetful), []uint64{1}},
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
			if n := number(t, "OPSTREAM_SIM_COUNT", 0); n > 0 {
				finds := 0
				for seed := range n {
					if try(uint64(seed+1), true) != "" {
						finds++
					}
				}
				t.Logf("%d of the first %d seeds find it", finds, n)
				return
			}
			seeds := slices.Clone(tt.known)
			first, most := number(t, "OPSTREAM_SIM_FIRST", 1), number(t, "OPSTREAM_SIM_SEEDS", 300)
			for i := range most {
				seeds = append(seeds, uint64(first+i))
			}
			for ran, seed := range seeds {
				found := try(seed, true)
				if found == "" {
					continue
				}
				if real := try(seed, false); real != "" {
					t.Errorf("seed %d finds something with the safeguard on, too: %s", seed, real)
					continue
				}
				again, times := 0, number(t, "OPSTREAM_SIM_AGAIN", 0)
				for range times {
					if try(seed, true) != "" {
						again++
					}
				}
				t.Logf("found by seed %d, the %d. that was tried, and again in %d of %d more runs of it: %.300s", seed, ran+1, again, times, found)
				return
			}
			t.Errorf("expected one of %d seeds to find the damage, but none did", most)
		})
	}
}

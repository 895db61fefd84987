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
			tt.set(true)
			defer tt.set(false)
			first, most := number(t, "OPSTREAM_SIM_FIRST", 1), number(t, "OPSTREAM_SIM_SEEDS", 300)
			for ran := range most {
				seed := uint64(first + ran)
				var found string
				cryptotest.SetGlobalRandom(t, seed)
				synctest.Test(t, func(t *testing.T) {
					res, err := Run(t.Context(), NewPlan(seed, false))
					if err != nil {
						t.Errorf("seed %d could not be run: %v", seed, err)
					} else if len(res.Violations) > 0 {
						found = res.Violations[0]
					}
				})
				if found != "" {
					t.Logf("found by seed %d, the %d. that was tried: %.300s", seed, ran+1, found)
					return
				}
			}
			t.Errorf("expected one of %d seeds to find the damage, but none did", most)
		})
	}
}

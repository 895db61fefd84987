package retry_test

import (
	"testing"
	"time"

	"github.com/opstream/opstream/domain/retry"
)

func TestSchedule(t *testing.T) {
	p := retry.Policy{MaxAttempts: 6, Initial: time.Second, Max: 5 * time.Second, Multiplier: 2}
	for failures, want := range []int{0, 1, 2, 4, 5, 5} {
		if failures == 0 {
			continue
		}
		if wait, more := p.Next(failures, 1); !more || wait != time.Duration(want)*time.Second {
			t.Errorf("after %d failures: expected %ds, but got %v %v", failures, want, wait, more)
		}
	}
	if _, more := p.Next(6, 1); more {
		t.Error("expected no seventh attempt of six, but there is one")
	}
}

func TestJitter(t *testing.T) {
	p := retry.Policy{MaxAttempts: 2, Initial: 100 * time.Second, Multiplier: 1, Jitter: 0.2}
	low, high := time.Hour, time.Duration(0)
	for i := range uint32(1000) {
		seed := retry.Seed("operation", i)
		wait, _ := p.Next(1, seed)
		if again, _ := p.Next(1, seed); again != wait {
			t.Fatalf("expected the same seed to give the same wait, but got %v and %v", wait, again)
		}
		low, high = min(low, wait), max(high, wait)
	}
	if low < 80*time.Second || high > 120*time.Second || low > 82*time.Second || high < 118*time.Second {
		t.Errorf("expected waits all over 80s to 120s, but got %v to %v", low, high)
	}
	if retry.Seed("a", 1) == retry.Seed("b", 1) || retry.Seed("a", 1) == retry.Seed("a", 2) {
		t.Error("expected id and attempt to make another seed")
	}
}

func TestClassNames(t *testing.T) {
	for c := retry.Unknown; c <= retry.Suspend; c++ {
		if got, ok := retry.ParseClass(c.String()); !ok || got != c {
			t.Errorf("expected %q to be %d, but got %d %v", c, c, got, ok)
		}
	}
	if _, ok := retry.ParseClass("later"); ok {
		t.Error("expected no class of that name")
	}
}

package projector

import (
	"testing"
	"time"
)

func TestPauseGrowsWithTheLoad(t *testing.T) {
	c := Config{}.withDefaults()
	for _, tt := range []struct {
		records int
		passed  time.Duration
		want    time.Duration
	}{
		{4, 2 * time.Millisecond, c.Pause},
		{small, time.Millisecond, c.Pause}, // few at once are no flood
		{small + 1, 50 * time.Millisecond, c.BusyPause},
		{5999, 300 * time.Millisecond, c.BusyPause},
		{6000, 300 * time.Millisecond, c.FloodPause},
		{c.MaxBatch/2 - 1, time.Second, c.BusyPause},
		{c.MaxBatch / 2, time.Hour, 0}, // behind: at once
		{c.MaxBatch, 300 * time.Millisecond, 0},
	} {
		if got := c.pause(tt.records, tt.passed); got != tt.want {
			t.Errorf("expected a pause of %v after %d records in %v, but got %v", tt.want, tt.records, tt.passed, got)
		}
	}
}

package operation_test

import (
	"math"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
)

// Who waits for the year 9999 must not be told that it is over.
func TestTimesFarApart(t *testing.T) {
	far := operation.TimeOf(time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC))
	old := operation.TimeOf(time.Date(1601, 1, 1, 0, 0, 0, 0, time.UTC))
	now := operation.TimeOf(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
	for _, c := range []struct {
		a, b operation.Time
		want time.Duration
	}{
		{far, now, math.MaxInt64},
		{now, far, math.MinInt64},
		{now, old, math.MaxInt64},
		{old, now, math.MinInt64},
		{far, old, math.MaxInt64},
		{now.Add(time.Hour), now, time.Hour},
		{now, now.Add(time.Hour), -time.Hour},
		{now, now, 0},
	} {
		if got := c.a.Sub(c.b); got != c.want {
			t.Errorf("expected %s - %s to be %s, but got %s", c.a.Go(), c.b.Go(), c.want, got)
		}
	}
}

package worker

import (
	"context"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
)

// A session that says it is there must be able to take work: what is sent to it at once must not wait for a time.
func TestFirstItemOfASessionIsTakenAtOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, r *rig) {
		_, stop := r.start(Config{Handlers: handlers(func(context.Context, *Operation) (any, error) { return nil, nil })})
		hb := r.beat()
		r.give(hb, r.work(hb, "first", 1))
		got := r.report()
		if got.Kind != operation.Succeed || r.cluster != nil && got.at-hb.at > 10*time.Millisecond {
			t.Errorf("expected the first item to be done at once, but after %s there is %s", got.at-hb.at, got)
		}
		t.Logf("beat at %s, done at %s", hb.at, got.at)
		stop()
	})
}

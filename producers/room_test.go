package producers

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Many come and go, some lose patience; in the end all room is there again, and never more was taken than there was.
func TestRoomIsNeitherLostNorOverdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(3, 100)
		var all sync.WaitGroup
		inside, gaveUp := 0, 0
		var mu sync.Mutex
		for i := range 200 {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%40)*time.Millisecond)
				defer cancel()
				size := 1 + i%150 // some are larger than all there is, and get in alone
				if err := r.enter(ctx, size); err != nil {
					mu.Lock()
					gaveUp++
					mu.Unlock()
					return
				}
				mu.Lock()
				if inside++; inside > 3 {
					t.Errorf("expected at most 3 inside, but got %d", inside)
				}
				mu.Unlock()
				time.Sleep(time.Millisecond)
				mu.Lock()
				inside--
				mu.Unlock()
				r.leave(size)
			})
		}
		all.Wait()
		if r.records != 3 || r.bytes != 100 || len(r.waiting) != 0 {
			t.Errorf("expected room for 3 records and 100 bytes, but got %d and %d with %d waiting", r.records, r.bytes, len(r.waiting))
		}
		if gaveUp == 0 || gaveUp == 200 {
			t.Errorf("expected some to get in and some to give up, but %d of 200 gave up", gaveUp)
		}
	})
}

func TestClosedRoomTurnsEverybodyAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(1, 10)
		if err := r.enter(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		turned := make(chan error, 1)
		go func() { turned <- r.enter(t.Context(), 1) }()
		synctest.Wait()
		if !r.close() || r.close() {
			t.Error("expected only the first call to close the room")
		}
		if err := <-turned; !errors.Is(err, errRoomClosed) {
			t.Errorf("expected who waits to be turned away, but got %v", err)
		}
		if err := r.enter(t.Context(), 1); !errors.Is(err, errRoomClosed) {
			t.Errorf("expected who comes to be turned away, but got %v", err)
		}
	})
}

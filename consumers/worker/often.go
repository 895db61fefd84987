package worker

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// oftenEvery is the time between two lines about the same.
const oftenEvery = 10 * time.Second

// often logs what may go wrong many times a second while a broker refuses: the first time at once, then every oftenEvery at
// most, with how often it has happened since the line before.
type often struct {
	log  *slog.Logger
	text string

	mu      sync.Mutex
	last    time.Time
	skipped int
}

func (o *often) warn(attrs ...slog.Attr) {
	o.mu.Lock()
	now := time.Now()
	if !o.last.IsZero() && now.Sub(o.last) < oftenEvery {
		o.skipped++
		o.mu.Unlock()
		return
	}
	if o.skipped > 0 {
		attrs = append(attrs, slog.Int("times", o.skipped+1))
	}
	o.last, o.skipped = now, 0
	o.mu.Unlock()
	o.log.LogAttrs(context.Background(), slog.LevelWarn, o.text, attrs...)
}

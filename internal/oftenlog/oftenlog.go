// Package oftenlog logs what may go wrong many times a second.
package oftenlog

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Every is the time between two lines about the same subject.
const Every = 10 * time.Second

// Warner logs one kind of fault of several subjects: the first of a subject at once, then after Every at the earliest, with how often it
// has happened since the line before. Any number of goroutines may use it.
type Warner struct {
	log       *slog.Logger
	text, key string

	mu       sync.Mutex
	subjects map[string]*line
}

type line struct {
	at      time.Time
	skipped int
}

// New returns a Warner that logs this text, and the subject under this key.
func New(log *slog.Logger, text, key string) *Warner {
	return &Warner{log: log, text: text, key: key, subjects: map[string]*line{}}
}

// Warn tells of one fault. The subjects are few: each is remembered.
func (w *Warner) Warn(subject string, attrs ...slog.Attr) {
	now := time.Now()
	w.mu.Lock()
	last := w.subjects[subject]
	if last != nil && now.Sub(last.at) < Every {
		last.skipped++
		w.mu.Unlock()
		return
	}
	all := append([]slog.Attr{slog.String(w.key, subject)}, attrs...)
	if last != nil && last.skipped > 0 {
		all = append(all, slog.Int("times", last.skipped+1))
	}
	w.subjects[subject] = &line{at: now}
	w.mu.Unlock()
	w.log.LogAttrs(context.Background(), slog.LevelWarn, w.text, all...)
}

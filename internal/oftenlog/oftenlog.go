// Package oftenlog logs what may go wrong many times a second.
package oftenlog

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Every is the time between two lines about the same topic.
const Every = 10 * time.Second

// Warner logs one kind of fault of topics: the first of a topic at once, then after Every at the earliest, with how often it has
// happened since the line before. Any number of goroutines may use it.
type Warner struct {
	log  *slog.Logger
	text string

	mu     sync.Mutex
	topics map[string]*line
}

type line struct {
	at      time.Time
	skipped int
}

// New returns a Warner that logs this text.
func New(log *slog.Logger, text string) *Warner {
	return &Warner{log: log, text: text, topics: map[string]*line{}}
}

// Warn tells of one fault. The topics are few: each is remembered.
func (w *Warner) Warn(topic string, attrs ...slog.Attr) {
	now := time.Now()
	w.mu.Lock()
	last := w.topics[topic]
	if last != nil && now.Sub(last.at) < Every {
		last.skipped++
		w.mu.Unlock()
		return
	}
	all := append([]slog.Attr{slog.String("topic", topic)}, attrs...)
	if last != nil && last.skipped > 0 {
		all = append(all, slog.Int("times", last.skipped+1))
	}
	w.topics[topic] = &line{at: now}
	w.mu.Unlock()
	w.log.LogAttrs(context.Background(), slog.LevelWarn, w.text, all...)
}

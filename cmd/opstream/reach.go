package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// awayAfter is how long no broker may have answered, while requests fail, until a process says that Kafka is away. It is above what a
// new leader and a connection that was cut take.
const awayAfter = 3 * time.Second

// reach knows whether Kafka's brokers answer. The clients try again by themselves, and fetches say nothing while they do; so it listens
// to all of a process's clients.
type reach struct {
	log *slog.Logger

	mu       sync.Mutex
	answered time.Time // when a broker last did
	fault    error     // the last one since then; nil for none
	away     bool      // which has been logged
}

var (
	_ kgo.HookBrokerConnect = (*reach)(nil)
	_ kgo.HookBrokerE2E     = (*reach)(nil)
)

func newReach(log *slog.Logger) *reach { return &reach{log: log, answered: time.Now()} }

// OnBrokerConnect hears of every connection, or of why there is none.
func (r *reach) OnBrokerConnect(meta kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	if err != nil {
		r.failed(meta, err)
	}
}

// OnBrokerE2E hears of every request and its answer.
func (r *reach) OnBrokerE2E(meta kgo.BrokerMetadata, _ int16, e kgo.BrokerE2E) {
	if err := e.Err(); err != nil {
		r.failed(meta, err)
		return
	}
	r.mu.Lock()
	away := r.away
	silent := time.Since(r.answered)
	r.answered, r.fault, r.away = time.Now(), nil, false
	r.mu.Unlock()
	if away {
		r.log.Warn("Kafka answers again", "after", silent.Round(time.Millisecond))
	}
}

func (r *reach) failed(meta kgo.BrokerMetadata, err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, kgo.ErrClientClosed) {
		return // by this process itself
	}
	r.mu.Lock()
	r.fault = fmt.Errorf("%s:%d: %w", meta.Host, meta.Port, err)
	said := r.away
	gone := r.gone()
	r.away = gone != nil
	r.mu.Unlock()
	if gone != nil && !said {
		r.log.Warn("Kafka is away; everything waits for it and goes on by itself", "err", gone)
	}
}

// err says since when no broker has answered, and why; nil when all is well.
func (r *reach) err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gone()
}

// gone is err under the lock.
func (r *reach) gone() error {
	silent := time.Since(r.answered)
	if r.fault == nil || silent < awayAfter {
		return nil
	}
	return fmt.Errorf("no broker of Kafka has answered for %s, the last fault: %w", silent.Round(100*time.Millisecond), r.fault)
}

package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func TestReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		r := newReach(slog.New(slog.NewTextHandler(&said, nil)))
		broker := kgo.BrokerMetadata{Host: "kafka-1", Port: 9092}
		refused := errors.New("connection refused")
		is := func(away bool, lines int) {
			t.Helper()
			if err := r.err(); (err != nil) != away || away && !strings.Contains(err.Error(), "kafka-1:9092: connection refused") {
				t.Errorf("expected away to be %v, but got %v", away, err)
			}
			if n := strings.Count(said.String(), "\n"); n != lines {
				t.Errorf("expected %d lines, but got:\n%s", lines, &said)
			}
		}
		time.Sleep(time.Hour) // nothing was asked
		is(false, 0)
		r.OnBrokerE2E(broker, 1, kgo.BrokerE2E{})
		r.OnBrokerConnect(broker, 0, nil, refused)
		time.Sleep(awayAfter - 1)
		r.OnBrokerConnect(broker, 0, nil, refused)
		is(false, 0)
		r.OnBrokerE2E(broker, 1, kgo.BrokerE2E{}) // another one answers
		time.Sleep(awayAfter)
		is(false, 0)
		r.OnBrokerConnect(broker, 0, nil, context.Canceled) // this process stops a client
		is(false, 0)
		for range 3 {
			r.OnBrokerE2E(broker, 1, kgo.BrokerE2E{ReadErr: refused})
			is(true, 1) // said once
			time.Sleep(time.Second)
		}
		r.OnBrokerE2E(broker, 1, kgo.BrokerE2E{})
		is(false, 2)
	})
}

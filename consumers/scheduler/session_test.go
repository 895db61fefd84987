package scheduler

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
)

// said collects what a scheduler logs.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// Where the brokers do not allow so short a session as is wanted, a longer one must do.
func TestSessionIsAsLongAsTheBrokersWantIt(t *testing.T) {
	each(t, 1, func(t *testing.T, on service) {
		var log said
		start(t, on, "one", func(c *Config) {
			c.GroupSession = 500 * time.Millisecond // less than any of them allows
			c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
		j := watch(t, on)
		j.until(func() bool { return len(j.events) > 0 }) // it has opened its partition
		if text := log.String(); !strings.Contains(text, "group.min.session.timeout.ms") || !strings.Contains(text, "session=500ms") {
			t.Errorf("expected the scheduler to say that the session is longer than wanted, but it said\n%s", text)
		}
	})
}

func TestSessionThatIsTooLongIsAnError(t *testing.T) {
	each(t, 1, func(t *testing.T, on service) {
		s, err := New(Config{Client: on.client, Topics: on.topics, Owner: "one", GroupSession: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context()); !errors.Is(err, kerr.InvalidSessionTimeout) || !strings.Contains(err.Error(), "group.max.session.timeout.ms") {
			t.Errorf("expected an error that names the brokers' setting, but got %v", err)
		}
	})
}

package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/producers"
)

// kafkaInstallation is a process for each role, and two schedulers, over an Apache Kafka that is there. One of the processes creates
// the topics.
func kafkaInstallation(t testing.TB, b *kafkatest.Broker) *installation {
	in := newInstallation(t, t.TempDir())
	in.broker, in.topics = strings.Join(b.Seeds, ","), b.Topics()
	role := func(name, roles string, args ...string) *daemon {
		return daemonOf(t, name, append([]string{
			"serve", "--roles", roles, "--brokers", in.broker, "--topic-prefix", b.Prefix, "--log", "warn", "--lease", "3s",
		}, args...)...)
	}
	in.parts = []*daemon{
		role("scheduler-1", "scheduler", "--create-topics"),
		role("scheduler-2", "scheduler"),
		role("worker", "worker"),
		role("api", "projector,api", "--database", in.tables, "--listen", strings.TrimPrefix(in.url, "http://")),
	}
	return in.start()
}

// TestKafkaRolesUnderFire kills every role; the broker stays.
func TestKafkaRolesUnderFire(t *testing.T) {
	underFire(kafkaInstallation(t, kafkatest.OnReal(t, kafkatest.Real(t))), killSeconds(t)/2)
}

// TestKafkaUnderFire kills brokers, one at a time, and starts them again, for half of the time that there is, but once at least. What a
// broker had acknowledged is in the system's memory at least, so nothing may be lost; and no role may end. With one broker everything
// waits for it; with OPSTREAM_KILL_BROKERS=3, of which two have a copy of everything, work must go on.
func TestKafkaUnderFire(t *testing.T) {
	brokers := 1
	if text := os.Getenv("OPSTREAM_KILL_BROKERS"); text != "" {
		var err error
		if brokers, err = strconv.Atoi(text); err != nil || brokers != 1 && brokers != 3 {
			t.Fatalf("expected OPSTREAM_KILL_BROKERS to be 1 or 3, but it is %q", text)
		}
	}
	kafka := kafkatest.StartLocal(t, brokers)
	in := kafkaInstallation(t, kafkatest.OnReal(t, kafka.Seeds()))
	in.underLoad(func(seed uint64) {
		chance := rand.New(rand.NewPCG(seed, 0))
		in.probe("before") // it works
		for i, end := 1, time.Now().Add(killSeconds(t)/2); i == 1 || time.Now().Before(end); i++ {
			<-after(time.Duration(chance.IntN(2000)) * time.Millisecond) // the moment of death is what chance decides
			n := 1 + chance.IntN(brokers)
			killed := time.Now()
			if err := kafka.Kill(n); err != nil {
				t.Fatal(err)
			}
			if brokers > 1 {
				took := in.probe(fmt.Sprintf("without-%d", i))
				t.Logf("kill %d, of broker %d: with the others a new operation ended %s after it was requested", i, n, took.Round(time.Millisecond))
			}
			if err := kafka.Start(n); err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			took := in.probe(fmt.Sprintf("after-%d", i))
			t.Logf("kill %d, of broker %d: it served again after %s; a new operation ended %s later",
				i, n, back.Sub(killed).Round(time.Millisecond), took.Round(time.Millisecond))
			for _, d := range in.parts {
				if d.ended() {
					t.Fatalf("expected %s to live on without the broker, but it ended: %v\n%s", d.name, d.err, d.log)
				}
			}
		}
	})
}

// probe requests an operation on its own partition key, and returns how long it takes until the tables have its end.
func (in *installation) probe(id string) time.Duration {
	in.t.Helper()
	began := time.Now()
	in.ask(&producers.Request{ID: id, Organization: "probe", Type: "noop"}, func() {})
	eventually(in.t, time.Minute, func() (bool, string) {
		op, err := in.api.Get(in.t.Context(), "probe", id, api.Call{})
		if err != nil {
			return false, fmt.Sprintf("%s: %v", id, err)
		}
		return op.Status == operation.StatusSucceeded.String(), fmt.Sprintf("%s is %s", id, op.Status)
	})
	return time.Since(began)
}

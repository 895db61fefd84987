package main

import (
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/opstream/opstream/internal/embedded"
	"github.com/opstream/opstream/internal/faultproxy"
	"github.com/opstream/opstream/internal/pgtest"
)

// elsewhere is a listener that says it listens at another address, which is what a broker tells its clients.
type elsewhere struct {
	net.Listener
	address net.Addr
}

func (l elsewhere) Addr() net.Addr { return l.address }

// brokerBehind is the embedded broker in the test's process, which all clients reach through a proxy alone.
func brokerBehind(t *testing.T, proxy *faultproxy.Proxy, in *installation) {
	t.Helper()
	said, err := net.ResolveTCPAddr("tcp", proxy.Address())
	if err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var topics []embedded.Topic
	for _, spec := range in.topics.Specs(devPartitions, devInboxes) {
		topics = append(topics, embedded.Topic{Name: spec.Name, Partitions: spec.Partitions})
	}
	broker, err := embedded.Open(t.Context(), embedded.Config{
		Dir: filepath.Join(t.TempDir(), "log"), Addr: "127.0.0.1:0", Topics: topics,
		Options: []kfake.Opt{kfake.ListenFn(func(string, string) (net.Listener, error) { return elsewhere{listener, said}, nil })},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := broker.Close(); err != nil {
			t.Error(err)
		}
	})
	proxy.SetTarget(listener.Addr().String())
}

// TestStopWithoutAnAnswer stops every role while no broker answers it: not those that run, under load, and not those that start.
// Each ends in time and with 0, and says what it could not tell; and when the brokers answer again, also what they were told by
// processes that have ended long ago, nothing is lost and nothing is done twice.
func TestStopWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	roles := map[string]string{"scheduler-1": "scheduler", "scheduler-2": "scheduler", "worker": "worker", "api": "projector,api"}
	for _, outage := range []struct {
		name       string
		begin, end func(*faultproxy.Proxy) error
		roles      map[string]string
	}{
		{
			name:  "silent",
			begin: func(p *faultproxy.Proxy) error { p.Stall(faultproxy.Both); return nil },
			end:   func(p *faultproxy.Proxy) error { p.Resume(faultproxy.Both); return nil },
			roles: roles,
		},
		{
			name:  "deaf", // what was told arrives, and its answers do not
			begin: func(p *faultproxy.Proxy) error { p.Stall(faultproxy.ToClient); return nil },
			end:   func(p *faultproxy.Proxy) error { p.Resume(faultproxy.ToClient); return nil },
			roles: roles,
		},
		{
			name:  "refuses",
			begin: func(p *faultproxy.Proxy) error { p.Refuse(); p.Cut(); return nil },
			end:   func(p *faultproxy.Proxy) error { return p.Admit() },
			roles: roles,
		},
		{
			name:  "silent for all roles in one process",
			begin: func(p *faultproxy.Proxy) error { p.Stall(faultproxy.Both); return nil },
			end:   func(p *faultproxy.Proxy) error { p.Resume(faultproxy.Both); return nil },
			roles: map[string]string{"all": strings.Join(allRoles, ",")},
		},
	} {
		t.Run(outage.name, func(t *testing.T) {
			t.Parallel()
			in, proxy := newInstallation(t, t.TempDir()), proxied(t, "")
			brokerBehind(t, proxy, in)
			in.broker, in.rate = proxy.Address(), 150
			for name, roles := range outage.roles {
				args := []string{"serve", "--roles", roles, "--brokers", in.broker, "--log", "warn", "--lease", "3s"}
				if strings.Contains(roles, roleAPI) {
					args = append(args, "--database", in.tables, "--listen", strings.TrimPrefix(in.url, "http://"))
				}
				in.parts = append(in.parts, daemonOf(t, name, args...))
			}
			in.start().underLoad(func(uint64) {
				in.probe("before")
				in.stopsUnanswered(func() error { return outage.begin(proxy) }, func() error { return outage.end(proxy) }, func(moment time.Duration) {
					if moment == 0 && outage.name != "refuses" { // later they know that they have nothing left to give back
						in.says("scheduler", "could not be told that this one leaves; nothing is lost")
						in.says("worker", "stops before the brokers have taken all reports; nothing is lost", "could not say that its session has ended; nothing is lost", "the lease of the session is lost")
					}
				})
			})
		})
	}
}

// stopsUnanswered stops all parts while nobody answers them, when they are at work and when they start, and has them work again. Stopped is
// called when those at work have ended.
func (in *installation) stopsUnanswered(begin, end func() error, stopped func(moment time.Duration)) {
	t := in.t
	t.Helper()
	defer end()                                                  //nolint:errcheck // when the test gives up, for what waits
	for _, moment := range []time.Duration{0, 3 * time.Second} { // the answers to what is under way are missing; nothing has come for long
		if err := begin(); err != nil {
			t.Fatal(err)
		}
		<-after(moment)
		in.stopAll("at work, "+moment.String(), false)
		stopped(moment)
		for _, d := range in.parts {
			d.launch()
		}
		<-after(time.Second) // they wait for an answer
		in.stopAll("starting", true)
		if err := end(); err != nil {
			t.Fatal(err)
		}
		for _, d := range in.parts {
			d.launch()
		}
		for _, d := range in.parts {
			d.up()
		}
		took := in.probe("after " + moment.String())
		t.Logf("started again; an operation ended after %s", took.Round(time.Millisecond))
	}
}

// TestStopWithoutADatabase is the same for the tables.
func TestStopWithoutADatabase(t *testing.T) {
	t.Parallel()
	for _, outage := range []struct {
		name       string
		begin, end func(*faultproxy.Proxy) error
	}{
		{
			name:  "silent",
			begin: func(p *faultproxy.Proxy) error { p.Stall(faultproxy.Both); return nil },
			end:   func(p *faultproxy.Proxy) error { p.Resume(faultproxy.Both); return nil },
		},
		{
			name:  "refuses",
			begin: func(p *faultproxy.Proxy) error { p.Refuse(); p.Cut(); return nil },
			end:   func(p *faultproxy.Proxy) error { return p.Admit() },
		},
	} {
		t.Run(outage.name, func(t *testing.T) {
			t.Parallel()
			address, err := url.Parse(pgtest.Postgres(t))
			if err != nil {
				t.Fatal(err)
			}
			proxy, dir := proxied(t, address.Host), t.TempDir()
			address.Host = proxy.Address()
			in := newInstallation(t, dir)
			in.tables, in.rate = address.String(), 150
			broker := daemonOf(t, "broker", "serve", "--roles", "broker", "--data", dir, "--kafka", in.broker, "--log", "warn")
			for name, roles := range map[string]string{"projector": "projector", "api": "api", "rest": "projector,api,scheduler,worker"} {
				args := []string{"serve", "--roles", roles, "--brokers", in.broker, "--log", "warn", "--database", in.tables}
				switch name {
				case "api":
					args = append(args, "--listen", strings.TrimPrefix(in.url, "http://"))
				case "rest":
					args = append(args, "--lease", "3s", "--listen", "127.0.0.1:0")
				}
				in.parts = append(in.parts, daemonOf(t, name, args...))
			}
			stopped := in.parts
			in.parts = append([]*daemon{broker}, in.parts...)
			in.start().underLoad(func(uint64) {
				in.probe("before")
				in.parts = stopped
				in.stopsUnanswered(func() error { return outage.begin(proxy) }, func() error { return outage.end(proxy) }, func(time.Duration) {})
				in.parts = append([]*daemon{broker}, stopped...)
			})
		})
	}
}

// says expects each process with this role to have logged one of these.
func (in *installation) says(role string, lines ...string) {
	in.t.Helper()
	for _, d := range in.parts {
		if !strings.Contains(d.args[2], role) {
			continue
		}
		said := d.log.String()
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(said, line) }) {
			in.t.Errorf("expected %s to say what it could not tell, one of %q, but it said\n%s", d.name, lines, said)
		}
	}
}

// stopAll sends SIGTERM to all parts at once and expects them to end cleanly. Of those that start, a signal may have come before the program
// had begun: many start at once here.
func (in *installation) stopAll(what string, starting bool) {
	limit := stopLimit
	if len(in.parts) == 1 {
		limit = stopLimitAll
	}
	in.t.Helper()
	began := time.Now()
	for _, d := range in.parts {
		d.signal(syscall.SIGTERM)
	}
	for _, d := range in.parts {
		code, _ := d.exits(limit - time.Since(began))
		in.t.Logf("%s: %s exited with %d after %s", what, d.name, code, time.Since(began).Round(time.Millisecond))
		if code != exitOK && !(starting && d.endedByDefault()) {
			in.t.Errorf("%s: expected %s to exit with 0, but got %d\n%s", what, d.name, code, d.log)
		}
	}
}

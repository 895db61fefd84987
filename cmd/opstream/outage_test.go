package main

import (
	"fmt"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/faultproxy"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/internal/pgtest"
	"github.com/opstream/opstream/projections"
)

// The tests here take something away from an installation under load, for the time of an outage, give it back, and measure how long it
// takes until all is well. OPSTREAM_OUTAGE_SECONDS says how long an outage is. What is judged is what is judged after kill -9.

// proxied is a proxy that ends with the test.
func proxied(t testing.TB, target string) *faultproxy.Proxy {
	t.Helper()
	p, err := faultproxy.Listen(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// alive says which part has ended, which none may because of what others do.
func (in *installation) alive() {
	in.t.Helper()
	for _, d := range in.parts {
		if d.ended() {
			in.t.Fatalf("expected %s to live on, but it ended: %v\n%s", d.name, d.err, d.log)
		}
	}
}

// restart stops processes as an operator would, all at once, and starts them again.
func (in *installation) restart(parts ...*daemon) {
	in.t.Helper()
	for _, d := range parts {
		d.signal(syscall.SIGTERM)
	}
	for _, d := range parts {
		if code, _ := d.exits(30 * time.Second); code != exitOK {
			in.t.Errorf("expected %s to stop cleanly, but it exited with %d\n%s", d.name, code, d.log)
		}
	}
	for _, d := range parts {
		d.launch()
	}
	for _, d := range parts {
		d.up()
	}
}

// databaseInstallation is a process for each role, and two schedulers, with the tables in a database.
func databaseInstallation(t testing.TB, b *kafkatest.Broker, database string) *installation {
	in := newInstallation(t, t.TempDir())
	in.broker, in.topics, in.tables = strings.Join(b.Seeds, ","), b.Topics(), database
	role := func(name, roles string, args ...string) *daemon {
		return daemonOf(t, name, append([]string{
			"serve", "--roles", roles, "--brokers", in.broker, "--topic-prefix", b.Prefix, "--log", "warn", "--lease", "3s",
		}, args...)...)
	}
	in.parts = []*daemon{
		role("scheduler-1", "scheduler", "--create-topics"),
		role("scheduler-2", "scheduler"),
		role("worker", "worker"),
		role("projector", "projector", "--database", database),
		role("api", "api", "--database", database, "--listen", strings.TrimPrefix(in.url, "http://")),
	}
	return in.start()
}

// TestDatabaseOutage takes the database away in four ways. Operations must go on as if it were there, also after a restart of all
// schedulers in the middle; reads say that they cannot be answered; and afterwards the tables catch up by themselves.
func TestDatabaseOutage(t *testing.T) {
	type way struct {
		server *pgtest.Local
		proxy  *faultproxy.Proxy
	}
	for _, outage := range []struct {
		name       string
		begin, end func(way) error
		readable   bool // while it lasts
	}{
		{
			name:  "silent",
			begin: func(w way) error { w.proxy.Stall(faultproxy.Both); return nil },
			end:   func(w way) error { w.proxy.Resume(faultproxy.Both); return nil },
		},
		{
			name:  "refuses",
			begin: func(w way) error { w.proxy.Refuse(); w.proxy.Cut(); return nil },
			end:   func(w way) error { return w.proxy.Admit() },
		},
		{
			name:  "stopped",
			begin: func(w way) error { return w.server.Stop() },
			end:   func(w way) error { return w.server.Start() },
		},
		{
			// The connections that were there are silent for good, and new ones are as they should be.
			name:     "stranded",
			begin:    func(w way) error { w.proxy.Strand(); return nil },
			end:      func(way) error { return nil },
			readable: true,
		},
	} {
		t.Run(outage.name, func(t *testing.T) {
			broker := kafkatest.OnReal(t, kafkatest.Real(t))
			server := pgtest.StartLocal(t)
			address, err := url.Parse(server.URL)
			if err != nil {
				t.Fatal(err)
			}
			w := way{server, proxied(t, address.Host)}
			address.Host = w.proxy.Address()
			in := databaseInstallation(t, broker, address.String())
			in.outage(func(m *pulse) {
				databaseOutage(in, m, func() error { return outage.begin(w) }, func() error { return outage.end(w) }, outage.readable)
			})
		})
	}
}

func databaseOutage(in *installation, m *pulse, begin, end func() error, readable bool) {
	t, length := in.t, outageTime(in.t)
	in.level(time.Now())
	reads := in.reads()
	began := time.Now()
	if err := begin(); err != nil {
		t.Fatal(err)
	}
	<-after(length / 2)
	half := time.Now()
	seen := m.between(began, half)
	row(t, "its first half", "%s", seen)
	if seen.done == 0 || seen.accepted == 0 {
		t.Errorf("expected operations to be accepted and to end without the database, but there was %s", seen)
	}
	in.restart(in.part("scheduler-1"), in.part("scheduler-2"))
	restarted := time.Now()
	row(t, "restart of both schedulers", "%s; the next operation done after %s, all of before after %s", restarted.Sub(half).Round(time.Millisecond),
		m.next(restarted).Round(time.Millisecond), m.flows(restarted).Round(time.Millisecond))
	if left := length - time.Since(began); left > 0 {
		<-after(left)
	}
	in.alive()
	if !readable { // a read that waits for an answer may take longer than the outage was to be
		eventually(t, 20*time.Second, func() (bool, string) { return reads.count("503") > 0, "no read was refused" })
	}
	reads.stop()
	row(t, "reads meanwhile", "%s", reads)
	reads.expect(t)
	lasted := time.Since(began)
	if err := end(); err != nil {
		t.Fatal(err)
	}
	ended := time.Now()
	row(t, "over, after "+lasted.Round(time.Second).String(), "the next operation done after %s, tables level after %s",
		m.next(ended).Round(time.Millisecond), in.level(ended).Round(time.Millisecond))
}

// TestSlowNetwork has everything that goes to Kafka and comes from it take 100 ms each way.
func TestSlowNetwork(t *testing.T) {
	length := outageTime(t)
	proxy := proxied(t, "")
	kafka := kafkatest.StartLocalBehind(t, proxy.Address())
	proxy.SetTarget(kafka.Seeds()[0])
	in := kafkaInstallation(t, kafkatest.OnReal(t, []string{proxy.Address()}))
	in.outage(func(m *pulse) {
		began := time.Now()
		proxy.Delay(100 * time.Millisecond)
		<-after(length)
		flowed := m.flows(time.Now())
		end := time.Now()
		took := in.probe("slow")
		seen := m.between(began, end)
		row(t, "100 ms each way, "+length.String(), "%s; at its end all were done after %s, one was visible after %s",
			seen, flowed.Round(time.Millisecond), took.Round(time.Millisecond))
		if len(seen.end) == 0 || seen.end[len(seen.end)/2] < 400*time.Millisecond {
			t.Errorf("expected an operation to take four ways of 100 ms at least, of its request, its item, its report and its end, but got %s; is the proxy passed by?", seen)
		}
		// A slow network that breaks: whatever is cut in the middle of an append is found out and done again.
		for i := range 10 {
			proxy.CutAfter([]faultproxy.Direction{faultproxy.ToTarget, faultproxy.ToClient}[i%2], int64(1+i*997))
			<-after(length / 10)
		}
		cut := time.Now()
		row(t, "and connections cut in appends", "%s; all done after %s", m.between(end, cut), m.flows(cut).Round(time.Millisecond))
		proxy.Delay(0)
		ended := time.Now()
		row(t, "", "afterwards: next operation done after %s, tables level after %s", m.next(ended).Round(time.Millisecond), in.level(ended).Round(time.Millisecond))
		in.alive()
	})
}

// opened is where a partition got a writer.
type opened struct {
	partition int32
	place     operation.Place
}

// owners reads who has opened partitions.
func (in *installation) owners() map[opened]string {
	in.t.Helper()
	all := map[opened]string{}
	journal := in.journal()
	ends, err := journal.Ends(in.t.Context())
	if err != nil {
		in.t.Fatal(err)
	}
	for p, end := range ends {
		if _, err := journal.Read(in.t.Context(), p, end, func(e projections.Entry) error {
			if e.Event.Kind == operation.Opened {
				all[opened{p, e.Place}] = e.Event.Owner
			}
			return nil
		}); err != nil {
			in.t.Fatal(err)
		}
	}
	return all
}

// groupSession is how long a scheduler keeps its partitions while it is silent.
const groupSession = 6 * time.Second

// pausedOwners stops schedulers in the middle of their work with SIGSTOP, for longer than their session, so that others take over, and
// wakes them. What they then write is void: the whole history, which is judged, is one machine's.
func pausedOwners(t *testing.T, in *installation) {
	length := max(outageTime(t), groupSession+2*time.Second)
	in.outage(func(m *pulse) {
		for i, name := range []string{"scheduler-1", "scheduler-2", "scheduler-1"} {
			d := in.part(name)
			mine := fmt.Sprintf("/%d/", d.cmd.Process.Pid)
			held := in.owners()
			d.signal(syscall.SIGSTOP)
			paused := time.Now()
			<-after(length)
			flowed := m.flows(time.Now()) // on all partitions, without it
			others := 0
			for at, owner := range in.owners() {
				if held[at] == "" && !strings.Contains(owner, mine) {
					others++
				}
			}
			d.signal(syscall.SIGCONT)
			woken := time.Now()
			next, all := m.next(woken), m.flows(woken.Add(time.Second))
			in.level(woken)
			in.alive()
			row(t, fmt.Sprintf("%s paused for %s", name, woken.Sub(paused).Round(time.Second)),
				"%s; partitions opened by others meanwhile: %d, all flowed after %s; woken: next done after %s, all of its first second after %s",
				m.between(paused, woken), others, flowed.Round(time.Millisecond), next.Round(time.Millisecond), all.Round(time.Millisecond))
			if others == 0 {
				t.Errorf("pause %d: expected another scheduler to take over partitions from the one that was silent, but none was opened", i+1)
			}
		}
	})
}

func TestPausedOwner(t *testing.T) {
	t.Parallel()
	pausedOwners(t, splitInstallation(t))
}

func TestKafkaPausedOwner(t *testing.T) {
	pausedOwners(t, kafkaInstallation(t, kafkatest.OnReal(t, kafkatest.Real(t))))
}

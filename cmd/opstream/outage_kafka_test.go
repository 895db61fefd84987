package main

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/internal/kafkatest"
)

// leaders are the leaders of an installation's partitions, seen by an administrator.
type leaders struct {
	in    *installation
	admin *kadm.Client
}

func (in *installation) leaders() *leaders {
	in.t.Helper()
	client, err := kgo.NewClient(in.client()...)
	if err != nil {
		in.t.Fatal(err)
	}
	in.t.Cleanup(client.Close)
	return &leaders{in, kadm.NewClient(client)}
}

func (l *leaders) partitions(ctx context.Context) []kadm.PartitionDetail {
	l.in.t.Helper()
	topics, err := l.admin.ListTopics(ctx)
	if err != nil {
		l.in.t.Fatalf("list topics: %v", err)
	}
	var all []kadm.PartitionDetail
	for name, topic := range topics {
		if strings.HasPrefix(name, l.in.topics.Prefix) {
			all = append(all, topic.Partitions.Sorted()...)
		}
	}
	if len(all) == 0 {
		l.in.t.Fatalf("expected topics that begin with %s, but there are none", l.in.topics.Prefix)
	}
	return all
}

// move has the next replica of every partition lead it: the order of the replicas is turned by one, and then the first of each is
// elected.
func (l *leaders) move(ctx context.Context) {
	t := l.in.t
	t.Helper()
	turned, elected := kadm.AlterPartitionAssignmentsReq{}, kadm.TopicsSet{}
	for _, p := range l.partitions(ctx) {
		turned.Assign(p.Topic, p.Partition, append(slices.Clone(p.Replicas[1:]), p.Replicas[0]))
		elected.Add(p.Topic, p.Partition)
	}
	answers, err := l.admin.AlterPartitionAssignments(ctx, turned)
	if err = errors.Join(err, answers.Error()); err != nil {
		t.Fatalf("turn the replicas: %v", err)
	}
	// Partitions whose new first replica is not in sync just now stay where they are, which their answers say.
	if _, err := l.admin.ElectLeaders(ctx, kadm.ElectPreferredReplica, elected); err != nil {
		t.Fatalf("elect leaders: %v", err)
	}
}

// epochs is how often the partitions have got leaders, all together.
func (l *leaders) epochs(ctx context.Context) int {
	n := 0
	for _, p := range l.partitions(ctx) {
		n += int(p.LeaderEpoch)
	}
	return n
}

// most is the broker that leads most partitions of the journal.
func (l *leaders) most(ctx context.Context) int {
	led := map[int32]int{}
	for _, p := range l.partitions(ctx) {
		if p.Topic == l.in.topics.Journal() {
			led[p.Leader]++
		}
	}
	best := int32(0)
	for broker, n := range led {
		if cmp.Or(cmp.Compare(n, led[best]), cmp.Compare(best, broker)) > 0 {
			best = broker
		}
	}
	return int(best)
}

// TestKafkaLeadersMove has three brokers. First every partition gets another leader, again and again, while appends are on their way to
// the old ones: nobody dies, which is how it goes when brokers are restarted in turn. Then the broker that leads most of the journal is
// killed.
func TestKafkaLeadersMove(t *testing.T) {
	length := outageTime(t)
	kafka := kafkatest.StartLocal(t, 3)
	in := kafkaInstallation(t, kafkatest.OnReal(t, kafka.Seeds()))
	in.rate = outageRate / 2 // three brokers take their part of the cores
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute+4*length)
	defer cancel()
	in.outage(func(m *pulse) {
		l := in.leaders()
		before, moves := l.epochs(ctx), 0
		began := time.Now()
		for ; time.Since(began) < length; moves++ {
			l.move(ctx)
			<-after(time.Duration(200+moves*137%800) * time.Millisecond)
		}
		ended := time.Now()
		changes := l.epochs(ctx) - before
		row(t, "leaders moved", "%d times, %d changes of leaders: %s; then the next done after %s, all after %s, tables level after %s", moves, changes,
			m.between(began, ended), m.next(ended).Round(time.Millisecond), m.flows(ended).Round(time.Millisecond), in.level(ended).Round(time.Millisecond))
		if changes < moves {
			t.Errorf("expected leaders to change in each of %d rounds, but there were %d changes", moves, changes)
		}
		in.alive()
		for range max(1, int(length/(10*time.Second))) {
			n := l.most(ctx)
			killed := time.Now()
			if err := kafka.Kill(n); err != nil {
				t.Fatal(err)
			}
			next, all := m.next(killed), m.flows(killed.Add(time.Second))
			if err := kafka.Start(n); err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			row(t, "broker lost", "number %d: the next done after %s, all of its first second after %s; back after %s, then the next done after %s, tables level after %s", n,
				next.Round(time.Millisecond), (all + time.Second).Round(time.Millisecond), back.Sub(killed).Round(time.Millisecond),
				m.next(back).Round(time.Millisecond), in.level(back).Round(time.Millisecond))
			in.alive()
		}
	})
}

// smallDisk mounts a file system of this many MiB, which goes with the test.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	disk := t.TempDir()
	mount := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", disk)
	if out, err := mount.CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: a full disk needs the right to mount a tmpfs, which there is not; run the test as root: %v %s", err, out)
	}
	t.Cleanup(func() {
		// Lazily: who removes the broker's folder may be in it still.
		if out, err := exec.Command("umount", "-l", disk).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	})
	return disk
}

// TestKafkaDiskFull fills the disk of the only broker. Apache Kafka gives up a log folder that it cannot write, and ends when it has no
// other. Everything waits, says why, and goes on when the broker is back with room.
func TestKafkaDiskFull(t *testing.T) {
	length := outageTime(t)
	disk := smallDisk(t, "400m")
	kafka := kafkatest.StartLocalIn(t, disk, 1)
	in := kafkaInstallation(t, kafkatest.OnReal(t, kafka.Seeds()))
	in.outage(func(m *pulse) {
		filler := filepath.Join(disk, "filler")
		filled := time.Now()
		stop, stopped := make(chan struct{}), make(chan error, 1)
		go func() { stopped <- keepFull(filler, stop) }()
		eventually(t, 90*time.Second, func() (bool, string) { return !kafka.Runs(1), "the broker has not ended on a full disk" })
		gone := time.Now()
		close(stop)
		if err := <-stopped; !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("expected the disk to be full, but got %v", err)
		}
		if text, err := kafka.Log(1); err != nil || !strings.Contains(text, "No space left on device") && !strings.Contains(text, "unsafe memory access") {
			t.Errorf("expected the broker's log to tell of the full disk, but it does not (%v)", err)
		}
		<-after(length)
		in.alive()
		row(t, "disk full", "the broker ended after %s; until then %s", gone.Sub(filled).Round(time.Millisecond), m.between(filled, gone))
		const away = "Kafka is away"
		for _, d := range in.parts {
			eventually(t, time.Minute, func() (bool, string) {
				return strings.Contains(d.log.String(), away), d.name + " has not said that Kafka is away\n" + d.log.String()
			})
			row(t, "", "%s says: %s", d.name, lastLine(d.log.String()))
		}
		ready := readyz(t, in.url)
		row(t, "", "readyz of the API: %s", ready)
		if !strings.HasPrefix(ready, "503 ") || !strings.Contains(ready, "no broker of Kafka has answered") {
			t.Errorf("expected the API to say that it waits for Kafka, but got %s", ready)
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		if err := kafka.Start(1); err != nil {
			t.Fatal(err)
		}
		back := time.Now()
		row(t, "room again, after "+back.Sub(filled).Round(time.Second).String(), "the next done after %s, all of before after %s, tables level after %s",
			m.next(back).Round(time.Millisecond), m.flows(back).Round(time.Millisecond), in.level(back).Round(time.Millisecond))
	})
}

// keepFull fills what is left of a disk, and goes on for as long as somebody else gives room back.
func keepFull(name string, stop <-chan struct{}) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	var full error
	for size := 1 << 20; !isClosed(stop); {
		if _, err := f.Write(make([]byte, size)); err == nil {
			continue
		} else if full = err; size > 1 {
			size /= 2
			continue
		}
		select {
		case <-after(50 * time.Millisecond):
		case <-stop:
		}
	}
	return full
}

func readyz(t testing.TB, base string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/readyz", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err.Error()
	}
	return answer.Status + " " + strings.Join(strings.Fields(string(text)), " ")
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

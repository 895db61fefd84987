package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/projections/projector"
	"github.com/opstream/opstream/projections/sqlite"
	"github.com/opstream/opstream/schemas"
)

// journalOn is a journal on a broker in memory, and a writer of it.
type journalOn struct {
	t      *testing.T
	seeds  []string
	client *kgo.Client
	chains [2]schemas.Chain
	now    operation.Time
	topics schemas.Topics
}

func newJournalOn(t *testing.T) *journalOn {
	t.Helper()
	j := &journalOn{t: t, now: operation.TimeOf(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)), topics: schemas.Topics{Prefix: "test."}}
	j.seeds = kafkatest.Cluster(t, kafkatest.Topic{Name: j.topics.Journal(), Partitions: int32(len(j.chains))})
	j.client = kafkatest.Client(t, j.seeds, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	return j
}

func (j *journalOn) produce(rec *kgo.Record) {
	j.t.Helper()
	rec.Topic = j.topics.Journal()
	if err := j.client.ProduceSync(j.t.Context(), rec).FirstErr(); err != nil {
		j.t.Fatalf("append: %v", err)
	}
}

func (j *journalOn) encode(n int32, e *operation.Event) *kgo.Record {
	j.now = j.now.Add(time.Second)
	e.At = j.now
	rec := schemas.EncodeEvent(e, []byte(e.Org+"/"+string(e.ID)), n)
	rec.Partition = n
	return rec
}

// event appends a valid event, a second after the one before.
func (j *journalOn) event(n int32, e operation.Event) {
	j.t.Helper()
	rec := j.encode(n, &e)
	j.chains[n].Seal(rec)
	j.produce(rec)
}

// void appends what a stale writer would.
func (j *journalOn) void(n int32, e operation.Event) {
	j.t.Helper()
	rec := j.encode(n, &e)
	stale := schemas.Chain{Next: 7_000}
	stale.Seal(rec)
	j.produce(rec)
	j.chains[n].Next++
}

// forged appends an event whose bytes are not those that were sealed.
func (j *journalOn) forged(n int32, e operation.Event) {
	j.t.Helper()
	rec := j.encode(n, &e)
	j.chains[n].Seal(rec)
	rec.Key = []byte("another key")
	j.produce(rec)
}

// replaced appends an event of which only the offset is left: somebody has put another record there.
func (j *journalOn) replaced(n int32, e operation.Event) {
	j.t.Helper()
	j.chains[n].Seal(j.encode(n, &e))
	j.produce(&kgo.Record{Partition: n, Value: []byte("{}")})
}

func requested(org string, id operation.ID) operation.Event {
	q := &operation.Request{ID: id, Organization: org, Type: "bulk-email", Priority: operation.PriorityDefault}
	q.Raw = schemas.AppendRequest(nil, q)
	return operation.Event{Kind: operation.Requested, Org: org, ID: id, Request: q, CommandID: string(id), Cause: operation.Cause{Topic: "requests", Offset: 4}}
}

func ends(kind operation.EventKind, org string, id operation.ID) operation.Event {
	e := operation.Event{Kind: kind, Org: org, ID: id, Attempt: 1, Session: "s1", Cause: operation.Cause{Topic: "reports", Offset: 9}}
	if kind == operation.Failed {
		e.Failure = &operation.Failure{Code: "broken", Message: "it broke\x1b[2J"}
	}
	return e
}

func (j *journalOn) run(args ...string) result {
	j.t.Helper()
	return run(j.t, "", append(args, "--brokers", strings.Join(j.seeds, ","), "--topic-prefix", j.topics.Prefix)...)
}

// fill writes events of both partitions in turns: places 0 to 4 of partition 0, of which 2 is void, and 0 to 2 of partition 1.
func (j *journalOn) fill() {
	j.t.Helper()
	j.event(0, operation.Event{Kind: operation.Opened, Owner: "a scheduler"})
	j.event(1, operation.Event{Kind: operation.Opened, Owner: "a scheduler"})
	j.event(0, requested("contoso", "one"))
	j.event(1, requested("fabrikam", "one"))
	j.void(0, requested("contoso", "stale"))
	j.event(0, operation.Event{Kind: operation.Dispatched, Org: "contoso", ID: "one", Attempt: 1, Session: "s1"})
	j.event(1, operation.Event{Kind: operation.Dispatched, Org: "fabrikam", ID: "one", Attempt: 1, Session: "s1"})
	j.event(0, ends(operation.Failed, "contoso", "one"))
}

// places lists what was exported, as partition-place.
func places(t testing.TB, out string) string {
	t.Helper()
	var list []string
	for _, e := range lines[exported](t, out) {
		text := fmt.Sprintf("%d-%d", e.Partition, e.Place)
		if e.Void {
			text += "!"
		}
		list = append(list, text)
	}
	return strings.Join(list, " ")
}

func TestJournalExport(t *testing.T) {
	t.Parallel()
	j := newJournalOn(t)
	j.fill()
	for _, c := range []struct{ args, want string }{
		{"", "0-0 0-1 0-3 0-4 1-0 1-1 1-2"},
		{"--merge", "0-0 1-0 0-1 1-1 0-3 1-2 0-4"},
		{"--void", "0-0 0-1 0-2! 0-3 0-4 1-0 1-1 1-2"},
		{"--void --merge", "0-0 1-0 0-1 0-2! 1-1 0-3 1-2 0-4"},
		{"--partition 1", "1-0 1-1 1-2"},
		{"--from start --partition 0", "0-0 0-1 0-3 0-4"},
		{"--from 0-3", "0-3 0-4"},
		{"--from 0-2 --void", "0-2! 0-3 0-4"},
		{"--from 0-4,1-2", "0-4 1-2"},
		{"--from end", ""},
		{"--from 1-99", ""},
		{"--organization fabrikam", "1-1 1-2"},
		{"--id one --organization contoso", "0-1 0-3 0-4"},
		{"--id none", ""},
		{"--since 2030-01-01T00:00:06Z", "0-3 0-4 1-2"},
		{"--since 2031-01-01T00:00:00Z", ""},
	} {
		r := j.run(append([]string{"journal", "export"}, strings.Fields(c.args)...)...)
		r.expect(t, exitOK)
		if got := places(t, r.out); got != c.want {
			t.Errorf("expected %q to export %s, but got %s", c.args, c.want, r)
		}
	}

	r := j.run("journal", "export", "--chain", "--from", "0-4")
	want := `{"partition":0,"place":4,"time":"2030-01-01T00:00:08Z","type":"opstream.operation.failed.v1","organization":"contoso","id":"one","cause":{"topic":"reports","offset":9},"data":{`
	if !strings.HasPrefix(r.out, want) || !strings.Contains(r.out, `"key":"contoso/one","chain":"`) {
		t.Errorf("expected a line that begins with %s, but got %s", want, r)
	}
	shows(t, r.out)
	j.run("journal", "export", "--partition", "2").expect(t, exitUsage, "the journal, which has 2")
	j.run("journal", "export", "--partition", "0", "--from", "1-0").expect(t, exitUsage)
	run(t, "", "journal", "export", "--brokers", j.seeds[0]).expect(t, exitFailed, "there is no topic opstream.journal", "--topic-prefix")
}

func TestJournalTail(t *testing.T) {
	t.Parallel()
	j := newJournalOn(t)
	j.fill()
	for _, c := range []struct{ args, want string }{
		{"", "0-0 1-0 0-1 1-1 0-3 1-2 0-4"},
		{"-n 3", "0-3 1-2 0-4"},
		{"-n 7", "0-0 1-0 0-1 1-1 0-3 1-2 0-4"},
		{"-n 0", ""},
		{"-n 1 --organization fabrikam", "1-2"},
		{"--from start", "0-0 1-0 0-1 1-1 0-3 1-2 0-4"},
		{"--since 2030-01-01T00:00:07Z", "1-2 0-4"},
	} {
		r := j.run(append([]string{"journal", "tail", "-o", "json"}, strings.Fields(c.args)...)...)
		r.expect(t, exitOK)
		if got := places(t, r.out); got != c.want {
			t.Errorf("expected %q to show %s, but got %s", c.args, c.want, r)
		}
	}
	r := j.run("journal", "tail", "--void")
	r.expect(t, exitOK, "0-4 ", "failed", "contoso/one", `attempt 1, session s1, broken: it broke\x1b[2J`, "opened", "by a scheduler", "void", "bulk-email")
	shows(t, r.out)
}

func TestJournalWithABrokenChain(t *testing.T) {
	t.Parallel()
	j := newJournalOn(t)
	j.fill()
	j.forged(0, ends(operation.Retried, "contoso", "one"))
	j.event(0, ends(operation.Succeeded, "contoso", "one"))
	j.event(1, ends(operation.Succeeded, "fabrikam", "one"))
	for _, args := range []string{"export", "export --merge", "tail -o json", "tail -o json --from start"} {
		r := j.run(append([]string{"journal"}, strings.Fields(args)...)...)
		r.expect(t, exitFailed, "partition 0: THE CHAIN IS BROKEN at offset 5")
		if got := places(t, r.out); !strings.Contains(got, "0-4") || !strings.Contains(got, "1-3") || strings.Contains(got, "0-5") || strings.Contains(got, "0-6") {
			t.Errorf("expected %q to show what is before the fault, and all of the other partition, but got %s", args, got)
		}
	}
}

// TestJournalWithoutARecord takes a record out of the middle. What stands behind it is void then, and must not be left out without
// a word, nor must tables that were made from the rest be called right.
func TestJournalWithoutARecord(t *testing.T) {
	t.Parallel()
	j := newJournalOn(t)
	j.fill()
	j.replaced(1, operation.Event{Kind: operation.Started, Org: "fabrikam", ID: "one", Attempt: 1, Session: "s1", StartedAt: j.now})
	j.event(1, ends(operation.Succeeded, "fabrikam", "one"))
	j.event(1, requested("fabrikam", "two"))
	r := j.run("journal", "export")
	r.expect(t, exitFailed, "partition 1: THE CHAIN IS BROKEN at offset 3", "a record was removed, or moved")
	if got, want := places(t, r.out), "0-0 0-1 0-3 0-4 1-0 1-1 1-2"; got != want {
		t.Errorf("expected %s, but got %s", want, got)
	}
	path := filepath.Join(t.TempDir(), "tables.db")
	j.project(path)
	j.run("verify", "--database", path).expect(t, exitFailed, "THE CHAIN IS BROKEN", "at offset 3")
}

func TestJournalWithAnEventOfALaterVersion(t *testing.T) {
	t.Parallel()
	j := newJournalOn(t)
	j.fill()
	e := requested("contoso", "two")
	rec := j.encode(1, &e)
	for i := range rec.Headers {
		if rec.Headers[i].Key == schemas.HeaderType {
			rec.Headers[i].Value = []byte("opstream.operation.teleported.v9")
		}
	}
	j.chains[1].Seal(rec)
	j.produce(rec)
	j.event(1, ends(operation.Succeeded, "fabrikam", "one"))
	r := j.run("journal", "export", "--partition", "1")
	r.expect(t, exitFailed, "1-3: ", "a newer one", "opstream.operation.teleported.v9")
	if got := places(t, r.out); got != "1-0 1-1 1-2 1-3 1-4" {
		t.Errorf("expected all valid events, but got %s", got)
	}
	j.run("journal", "tail").expect(t, exitFailed, "unreadable")
}

// watched is an output that can be waited for.
type watched struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	news chan struct{}
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.buf.Write(p)
	poke(w.news)
	return n, err
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// until returns when the output holds the text.
func (w *watched) until(t *testing.T, text string) {
	t.Helper()
	late := time.After(20 * time.Second)
	for !strings.Contains(w.String(), text) {
		select {
		case <-w.news:
		case <-late:
			t.Fatalf("expected the output to hold %q within 20 s, but got %q", text, w.String())
		}
	}
}

func TestJournalTailFollows(t *testing.T) {
	t.Parallel()
	j := newJournalOn(t)
	j.fill()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, errOut := &watched{news: make(chan struct{}, 1)}, &watched{news: make(chan struct{}, 1)}
	code := make(chan int, 1)
	go func() {
		code <- execute(ctx, []string{"journal", "tail", "-f", "-n", "1", "--brokers", j.seeds[0], "--topic-prefix", "test."}, strings.NewReader(""), out, errOut)
	}()
	out.until(t, "0-4")
	j.void(1, requested("fabrikam", "stale"))
	j.event(1, ends(operation.Succeeded, "fabrikam", "one"))
	out.until(t, "1-4")
	j.forged(0, ends(operation.Retried, "contoso", "one"))
	errOut.until(t, "THE CHAIN IS BROKEN")
	j.event(1, requested("fabrikam", "two"))
	out.until(t, "1-5")
	cancel()
	if got := <-code; got != exitFailed {
		t.Errorf("expected exit code %d for a broken chain, but got %d", exitFailed, got)
	}
	if got := out.String(); strings.Contains(got, "stale") || strings.Contains(got, "0-5") || strings.Count(got, "\n") != 3 {
		t.Errorf("expected the three valid events, but got %q", got)
	}

	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	out = &watched{news: make(chan struct{}, 1)}
	go func() {
		code <- execute(ctx, []string{"journal", "tail", "-f", "-n", "1", "--partition", "1", "--brokers", j.seeds[0], "--topic-prefix", "test."}, strings.NewReader(""), out, errOut)
	}()
	out.until(t, "1-5")
	cancel()
	if got := <-code; got != exitOK {
		t.Errorf("expected exit code 0 after an interrupt, but got %d", got)
	}
}

func TestAnExportThatIsInterruptedSaysSo(t *testing.T) {
	t.Parallel()
	j := newJournalOn(t)
	j.fill()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errOut bytes.Buffer
	code := execute(ctx, []string{"journal", "export", "--brokers", j.seeds[0], "--topic-prefix", "test."}, strings.NewReader(""), &out, &errOut)
	result{code, out.String(), errOut.String()}.expect(t, exitFailed, "stopped by a signal")
}

func TestNoBroker(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"journal", "tail"}, {"journal", "export"}} {
		run(t, "", append(args, "--brokers", "127.0.0.1:1")...).expect(t, exitUnavailable, "127.0.0.1:1", "opstream dev --data DIR")
	}
}

// project makes the tables, or brings them up to date.
func (j *journalOn) project(path string) {
	t := j.t
	t.Helper()
	store, err := sqlite.Open(t.Context(), path, sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := projector.New(projector.Config{
		Store: store, Topics: j.topics, Client: []kgo.Opt{kgo.SeedBrokers(j.seeds...), kgo.FetchMaxWait(100 * time.Millisecond)},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	for n := range j.chains {
		waiting, stop := context.WithTimeout(t.Context(), 20*time.Second)
		if err := p.WaitFor(waiting, int32(n), operation.Place(j.chains[n].Next-1)); err != nil {
			t.Errorf("wait for the tables: %v", err)
		}
		stop()
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := store.Close(); err != nil {
		t.Error(err)
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	j := newJournalOn(t)
	j.fill()
	path := filepath.Join(t.TempDir(), databaseFile)
	j.project(path)
	j.run("verify", "--database", path).expect(t, exitOK, "verified in", "void records      1", "events            7", "operations        2")
	j.run("verify", "--database", "sqlite:"+path).expect(t, exitOK)
	r := j.run("verify", "--data", filepath.Dir(path), "-o", "json")
	r.expect(t, exitOK)
	if v := lines[verification](t, r.out)[0]; !v.Verified || v.Partitions != 2 || v.Events != 7 || v.Void != 1 || v.Operations != 2 || v.Behind != nil {
		t.Errorf("expected the numbers, but got %+v", v)
	}

	j.event(1, ends(operation.Succeeded, "fabrikam", "one"))
	j.run("verify", "--database", path).expect(t, exitOK, "the tables are 1 records behind the journal, in the partitions 1")

	cut := newJournalOn(t)
	cut.event(0, operation.Event{Kind: operation.Opened, Owner: "a scheduler"})
	cut.run("verify", "--database", path).expect(t, exitDiffers, "THE JOURNAL ENDS BEFORE THE TABLES", "by 7 records, in the partitions 0 1", "restore the journal")
	r = cut.run("verify", "--database", path, "-o", "json")
	r.expect(t, exitDiffers)
	if v := lines[verification](t, r.out)[0]; v.Lost["0"] != 4 || v.Lost["1"] != 3 {
		t.Errorf("expected to be told what the journal has lost, but got %+v", v)
	}
	j.project(path)

	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), "DELETE FROM operations WHERE key = (SELECT min(key) FROM operations)"); err != nil {
		t.Fatal(err)
	}
	j.run("verify", "--database", path).expect(t, exitDiffers, "DIFFERENT", "the operation is missing", "contoso", "0-1")
	r = j.run("verify", "--database", path, "-o", "json")
	r.expect(t, exitDiffers)
	if v := lines[verification](t, r.out)[0]; v.Verified || v.Differing == 0 || len(v.Differences) == 0 {
		t.Errorf("expected the differences, but got %+v", v)
	}

	j.forged(0, ends(operation.Succeeded, "contoso", "one"))
	j.run("verify", "--database", path).expect(t, exitDiffers) // the tables do not have it, so it is not read
	run(t, "", "verify", "--database", path, "--brokers", "127.0.0.1:1").expect(t, exitUnavailable)
}

// TestVerifySaysWhyAFolderCannotBeRead: the journal at the default broker is another one's, and says nothing about this folder's tables.
func TestVerifySaysWhyAFolderCannotBeRead(t *testing.T) {
	withoutOptions(t)
	dir := t.TempDir()
	for _, name := range []string{"log/topics.json", databaseFile} { // without VERSION
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755), os.WriteFile(filepath.Join(dir, name), nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "", "verify", "--data", dir).expect(t, exitFailed, "VERSION", "backup")
	var v verification
	r := run(t, "", "verify", "--data", dir, "-o", "json")
	if err := json.Unmarshal([]byte(r.out), &v); err != nil || v.Verified || !strings.Contains(v.Error, "VERSION") {
		t.Errorf("expected an answer with the reason, but got %s (%v)", r, err)
	}
}

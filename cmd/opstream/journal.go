package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/projections/projector"
	"github.com/opstream/opstream/schemas"
)

func newJournal() *cobra.Command {
	c := &cobra.Command{
		Use:   "journal",
		Short: "Read the journal: every event of every operation",
		Long: `journal reads the events from Kafka; no other part of the service is needed.

Which records count is told by a chain of hashes that begins with each partition. So a
partition is always read from its beginning and its records are checked, also when only the
last of them are shown. What a stale writer left behind is void,
and left out. A chain that is broken (somebody changed the journal) ends its partition, is
reported, and makes the exit code 1; the other partitions go on.`,
		Example: `  opstream journal tail --follow
  opstream journal export > journal.jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newJournalTail(), newJournalExport())
	return c
}

// journalFlags say what to read of which journal.
type journalFlags struct {
	kafka           kafkaFlags
	from, since     string
	partitions      []int32
	organization    string
	id              string
	void, withChain bool
}

func (f *journalFlags) add(c *cobra.Command) {
	f.kafka.add(c)
	fl := c.Flags()
	fl.StringVar(&f.from, "from", "", `where to begin: "start", "end", or positions such as 3-1042,4-17, which choose partitions, too`)
	fl.StringVar(&f.since, "since", "", "begin with events of this time (RFC 3339), or of so long ago (such as 10m)")
	fl.Int32SliceVar(&f.partitions, "partition", nil, "only these partitions")
	fl.StringVarP(&f.organization, "organization", "O", "", "only events of this organization")
	fl.StringVar(&f.id, "id", "", "only events of the operation with this id")
	fl.BoolVar(&f.void, "void", false, "show void records, too")
	fl.BoolVar(&f.withChain, "chain", false, "show each event's link of the chain, too (JSON)")
	_ = c.RegisterFlagCompletionFunc("from", cobra.FixedCompletions([]string{"start", "end"}, cobra.ShellCompDirectiveNoFileComp))
}

// selection is what of the journal is shown.
type selection struct {
	ends         map[int32]int64 // of the partitions that are read, at the beginning
	from         map[int32]int64 // the first offset that is shown
	since        operation.Time
	organization string
	id           operation.ID
	void, chain  bool
}

// open connects to the brokers and finds out what there is to read.
func (f *journalFlags) open(cmd *cobra.Command) (*journal, *selection, error) {
	ctx := cmd.Context()
	if err := needValues(cmd, "organization", "id", "since"); err != nil {
		return nil, nil, err
	}
	s := &selection{organization: f.organization, id: operation.ID(f.id), void: f.void, chain: f.withChain}
	var positions api.Positions
	var err error
	switch {
	case f.from != "" && f.since != "":
		return nil, nil, usage("expected --from or --since, but got both")
	case f.from != "" && f.from != "start" && f.from != "end":
		if positions, err = api.ParsePositions(f.from); err != nil {
			return nil, nil, usage(`expected --from "start", "end" or positions such as 3-1042, but got %q`, f.from)
		}
	case f.since != "":
		if s.since, err = parseSince(f.since, time.Now()); err != nil {
			return nil, nil, err
		}
	}
	j, err := f.kafka.openJournal(cmd)
	if err != nil {
		return nil, nil, err
	}
	all, err := j.ends(ctx)
	if err != nil {
		return nil, nil, err
	}
	s.ends, s.from = map[int32]int64{}, map[int32]int64{}
	chosen := f.partitions
	for _, p := range positions {
		s.from[p.Partition] = int64(p.Place)
		if f.partitions != nil && !slices.Contains(f.partitions, p.Partition) {
			return nil, nil, usage("expected --from to name partitions of --partition, but it names %d", p.Partition)
		}
	}
	if positions != nil {
		chosen = slices.Collect(maps.Keys(s.from))
	}
	if chosen == nil {
		chosen = slices.Collect(maps.Keys(all))
	}
	for _, n := range chosen {
		end, ok := all[n]
		if !ok {
			return nil, nil, usage("expected a partition of the journal, which has %d, but got %d", len(all), n)
		}
		s.ends[n] = end
		if f.from == "end" {
			s.from[n] = end
		}
	}
	return j, s, nil
}

// parseSince reads a time, or how long ago it was.
func parseSince(text string, now time.Time) (operation.Time, error) {
	if d, err := time.ParseDuration(strings.TrimPrefix(text, "-")); err == nil && d >= 0 {
		return operation.TimeOf(now.Add(-d)), nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return 0, usage("expected --since with a time such as 2030-01-31T08:00:00Z, or 10m for ten minutes ago, but got %q", text)
	}
	return operation.TimeOf(t), nil
}

// journal is a connection to the journal's brokers.
type journal struct {
	brokers []string
	options []kgo.Opt
	topics  schemas.Topics
}

const reachTime = 5 * time.Second

// openJournal connects as the options say.
func (k *kafkaFlags) openJournal(cmd *cobra.Command) (*journal, error) {
	security, err := k.connect(cmd)
	if err != nil {
		return nil, err
	}
	return openJournal(cmd.Context(), k.brokers, k.prefix, security...)
}

// openJournal makes sure that a broker answers.
func openJournal(ctx context.Context, brokers []string, prefix string, security ...kgo.Opt) (*journal, error) {
	j := &journal{brokers: brokers, topics: schemas.Topics{Prefix: prefix}, options: append([]kgo.Opt{
		kgo.SeedBrokers(brokers...), kgo.ClientID("opstream-journal"),
		kgo.MetadataMinAge(100 * time.Millisecond), kgo.FetchMaxWait(500 * time.Millisecond),
		// Batches are compressed, and --merge holds some of every partition.
		kgo.FetchMaxBytes(1 << 20), kgo.FetchMaxPartitionBytes(256 << 10),
	}, security...)}
	client, err := kgo.NewClient(j.options...)
	if err != nil {
		return nil, usage("expected --brokers such as %s, but: %w", defaultBroker, err)
	}
	defer client.Close()
	bounded, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	if err := client.Ping(bounded); err != nil {
		return nil, j.unreachable(err)
	}
	return j, nil
}

func (j *journal) unreachable(err error) error {
	if kafkaAdvice(err) != "" {
		return &exitError{exitUnavailable, kafkaRefusal(j.brokers, err)}
	}
	return &exitError{exitUnavailable, fmt.Errorf("expected a broker at %s, but: %w\nstart one with: opstream dev --data DIR\nor give the address of one that runs with --brokers or OPSTREAM_BROKERS", clean(strings.Join(j.brokers, ",")), err)}
}

// source is the journal as the projections read it.
func (j *journal) source() projector.Journal {
	return projector.Journal{Client: j.options, Topics: j.topics}
}

func (j *journal) ends(ctx context.Context) (map[int32]int64, error) {
	ends, err := j.source().Ends(ctx)
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return nil, fmt.Errorf("there is no topic %s at %s; is --topic-prefix right, and has the service run there?", clean(j.topics.Journal()), clean(strings.Join(j.brokers, ",")))
	}
	return ends, err
}

// found is a record of the journal, judged and read.
type found struct {
	rec   *kgo.Record
	valid bool
	event operation.Event
	at    operation.Time // of the event, or of the last one before a void record
	err   error          // why a valid record cannot be read
}

// judge judges the next record and says whether it is to be shown.
func (s *selection) judge(chain *schemas.Chain, rec *kgo.Record, last *operation.Time) (found, bool, error) {
	if rec.Attrs.IsControl() {
		chain.Next = max(chain.Next, rec.Offset+1)
		return found{}, false, nil
	}
	verdict, err := chain.Check(rec)
	if err != nil {
		return found{}, false, err
	}
	if rec.Offset < s.from[rec.Partition] || verdict != schemas.Valid && !s.void {
		return found{}, false, nil
	}
	f := found{rec: rec, valid: verdict == schemas.Valid, at: *last}
	f.event, f.err = schemas.DecodeEvent(rec)
	switch {
	case f.err == nil && f.valid:
		f.at, *last = f.event.At, f.event.At
	case !f.valid:
		f.err = nil // nothing can be expected of it
	}
	wanted := f.at >= s.since && (s.organization == "" || f.event.Org == s.organization) && (s.id == "" || f.event.ID == s.id)
	return f, wanted, nil
}

// read shows what is selected of a partition, from its beginning to where it ended when the command began. The chain is left
// where it stands.
func (j *journal) read(ctx context.Context, s *selection, n int32, chain *schemas.Chain, last *operation.Time, show func(found) error) error {
	to := s.ends[n]
	if chain.Next >= to {
		return nil
	}
	client, err := j.consume(map[int32]int64{n: chain.Next})
	if err != nil {
		return err
	}
	defer client.Close()
	for chain.Next < to {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := j.faults(fetches); err != nil {
			return err
		}
		for records := fetches.RecordIter(); !records.Done() && chain.Next < to; {
			rec := records.Next()
			if rec.Offset >= to {
				chain.Next = to
				break
			}
			f, wanted, err := s.judge(chain, rec, last)
			if err != nil {
				return err
			}
			if wanted {
				if err := show(f); err != nil {
					return err
				}
			}
		}
	}
	return chain.AtEnd()
}

func (j *journal) consume(from map[int32]int64) (*kgo.Client, error) {
	offsets := make(map[int32]kgo.Offset, len(from))
	for n, offset := range from {
		offsets[n] = kgo.NewOffset().At(offset)
	}
	client, err := kgo.NewClient(append(slices.Clone(j.options),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{j.topics.Journal(): offsets}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.KeepControlRecords(),
	)...)
	if err != nil {
		return nil, fmt.Errorf("make a client to read the journal: %w", err)
	}
	return client, nil
}

// faults are the errors of a fetch that the client does not deal with by itself.
func (j *journal) faults(fetches kgo.Fetches) error {
	var failed error
	fetches.EachError(func(topic string, n int32, err error) {
		if errors.Is(err, kerr.OffsetOutOfRange) {
			err = fmt.Errorf("%w: the journal's beginning is gone, and without it nothing tells valid records from void ones", err)
		}
		failed = errors.Join(failed, fmt.Errorf("read partition %d of %s: %w", n, clean(topic), err))
	})
	return failed
}

// faulty keeps what is wrong with the journal, until the end of the command.
type faulty struct {
	out   io.Writer
	count int
}

// partition reports what ended the reading of one partition, and says whether the others can go on.
func (f *faulty) partition(n int32, err error) bool {
	var broken *schemas.ErrBroken
	if !errors.As(err, &broken) {
		return false
	}
	f.say("partition %d: THE CHAIN IS BROKEN at offset %d: %s; nothing behind it is shown. Keep the topic as it is, and find out who wrote to it", n, broken.Offset, broken.Reason)
	return true
}

const faultsShown = 20

func (f *faulty) say(format string, args ...any) {
	if f.count++; f.count <= faultsShown {
		fmt.Fprintln(f.out, "opstream:", clean(fmt.Sprintf(format, args...)))
	}
}

// unread reports a valid record that this version cannot read; it is shown all the same.
func (f *faulty) unread(x *found) {
	if x.err != nil {
		f.say("%d-%d: %v; run the version of opstream that wrote it, or a newer one", x.rec.Partition, x.rec.Offset, x.err)
	}
}

func (f *faulty) end() error {
	if f.count == 0 {
		return nil
	}
	if f.count > faultsShown {
		fmt.Fprintf(f.out, "opstream: and %d more\n", f.count-faultsShown)
	}
	return &exitError{exitFailed, nil}
}

// exported is an event as a line of JSON.
type exported struct {
	Partition    int32           `json:"partition"`
	Place        int64           `json:"place"`
	Time         *time.Time      `json:"time,omitempty"`
	Type         string          `json:"type,omitempty"`
	Organization string          `json:"organization,omitempty"`
	ID           string          `json:"id,omitempty"`
	Cause        *api.Cause      `json:"cause,omitempty"`
	Data         json.RawMessage `json:"data,omitempty"`
	Value        []byte          `json:"value,omitempty"` // of a void record that is no JSON, in base64
	Key          string          `json:"key,omitempty"`
	Chain        string          `json:"chain,omitempty"`
	Void         bool            `json:"void,omitempty"`
}

func (s *selection) export(f *found) exported {
	e := exported{
		Partition: f.rec.Partition, Place: f.rec.Offset, Type: header(f.rec, schemas.HeaderType),
		Organization: f.event.Org, ID: string(f.event.ID), Key: string(f.rec.Key), Void: !f.valid,
	}
	if at := f.event.At; at != 0 {
		t := at.Go()
		e.Time = &t
	}
	if f.event.Cause.Topic != "" {
		e.Cause = &api.Cause{Topic: f.event.Cause.Topic, Offset: f.event.Cause.Offset}
	}
	if s.chain {
		e.Chain = header(f.rec, schemas.HeaderChain)
	}
	if json.Valid(f.rec.Value) {
		e.Data = f.rec.Value
	} else {
		e.Value = f.rec.Value
	}
	return e
}

func header(rec *kgo.Record, key string) string {
	for i := range rec.Headers {
		if rec.Headers[i].Key == key {
			return string(rec.Headers[i].Value)
		}
	}
	return ""
}

// line writes an event for people.
func (f *found) line(now time.Time) string {
	e := &f.event
	when := ""
	if f.at != 0 {
		when = shortTime(f.at.Go(), now)
	}
	kind := e.Kind.String()
	var what string
	switch {
	case !f.valid:
		kind, what = "void", header(f.rec, schemas.HeaderType)
	case f.err != nil:
		kind, what = "unreadable", header(f.rec, schemas.HeaderType)
	default:
		what = eventDetails(e, now)
	}
	who := ""
	if e.ID != "" {
		who = e.Org + "/" + string(e.ID)
	}
	position := fmt.Sprintf("%d-%d", f.rec.Partition, f.rec.Offset)
	return strings.TrimRight(fmt.Sprintf("%-8s  %-10s  %-15s  %-28s  %s", when, position, kind, clean(who), clean(what)), " ")
}

// eventDetails says in a few words what is in an event beside its kind.
func eventDetails(e *operation.Event, now time.Time) string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if e.Request != nil {
		add("%s", e.Request.Type)
		if e.Request.DependencyToken != "" {
			add("token %s", e.Request.DependencyToken)
		}
	}
	if e.Attempt > 0 {
		add("attempt %d", e.Attempt)
	}
	if e.Session != "" {
		add("session %s", e.Session)
	}
	if e.Kind == operation.Rejected || e.Kind == operation.Unchanged {
		add("%s", e.Command)
	}
	if e.Kind == operation.Unchanged {
		add("is %s", e.Status)
	}
	if e.Code != "" {
		add("%s", e.Code)
	}
	if e.Reason != "" {
		add("%s", e.Reason)
	}
	if e.Failure != nil {
		add("%s: %s", e.Failure.Code, cmp.Or(e.Failure.FriendlyMessage, e.Failure.Message))
	}
	if e.Until != 0 {
		add("until %s", shortTime(e.Until.Go(), now))
	}
	if e.Upstream != "" {
		add("after %s", e.Upstream)
	}
	if e.Event != "" {
		add("for event %s", e.Event)
	}
	if by := byText(&api.By{Who: e.By.Who, Reason: e.By.Reason}); by != "" {
		add("by %s", by)
	}
	if e.Kind == operation.Opened {
		add("by %s", e.Owner)
	}
	if e.Kind == operation.Forwarded {
		add("to partition %d", e.To)
	}
	return strings.Join(parts, ", ")
}

func newJournalExport() *cobra.Command {
	var f journalFlags
	var merge bool
	c := &cobra.Command{
		Use:   "export",
		Short: "Write the journal as JSON Lines, one event a line",
		Long: `export writes every valid event that stood in the journal when the command began, one
JSON object a line: partition, place, time, type, organization, id, cause, data (as in the
record) and key. Events come partition by partition, in the order of their places, or with
--merge in the order of their times. It takes the same memory for any length.

Partitions are read from their beginning whatever --from says, because only so valid records
can be told from void ones.`,
		Example: `  opstream journal export > journal.jsonl
  opstream journal export --merge --organization contoso --since 24h | jq -r .type | sort | uniq -c`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			j, s, err := f.open(cmd)
			if err != nil {
				return err
			}
			out := bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
			faults := &faulty{out: cmd.ErrOrStderr()}
			show := func(x *found) error {
				faults.unread(x)
				return printJSON(out, s.export(x))
			}
			if merge {
				err = j.merge(ctx, s, newPlaces(s), faults, show)
			} else {
				for _, n := range slices.Sorted(maps.Keys(s.ends)) {
					var last operation.Time
					err = j.read(ctx, s, n, &schemas.Chain{}, &last, func(x found) error { return show(&x) })
					if err != nil && !faults.partition(n, err) {
						break
					}
					err = nil
				}
			}
			return errors.Join(out.Flush(), cmp.Or(err, faults.end()))
		},
	}
	f.add(c)
	c.Flags().BoolVar(&merge, "merge", false, "all partitions together, by time")
	return c
}

// place is where the reading of a partition stands.
type place struct {
	chain  schemas.Chain
	last   operation.Time
	broken bool
}

func newPlaces(s *selection) map[int32]*place {
	places := map[int32]*place{}
	for n := range s.ends {
		places[n] = &place{}
	}
	return places
}

// mergeAhead is how many events of each partition are read ahead.
const mergeAhead = 256

// merge shows what is selected of all partitions up to their ends, by time. Times within a partition never go back.
func (j *journal) merge(ctx context.Context, s *selection, places map[int32]*place, faults *faulty, show func(*found) error) error {
	ctx, cancel := context.WithCancel(ctx)
	type stream struct {
		n     int32
		items chan found
		done  chan error // holds what ended it, before items is closed
		head  found
	}
	var streams []*stream
	defer func() {
		cancel()
		for _, st := range streams {
			for range st.items {
			}
		}
	}()
	for _, n := range slices.Sorted(maps.Keys(places)) {
		st := &stream{n: n, items: make(chan found, mergeAhead), done: make(chan error, 1)}
		streams = append(streams, st)
		go func() {
			defer close(st.items)
			st.done <- j.read(ctx, s, n, &places[n].chain, &places[n].last, func(f found) error {
				select {
				case st.items <- f:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
		}()
	}
	// next brings a stream's next event to its head, and says whether there is one.
	next := func(st *stream) (bool, error) {
		var open bool
		if st.head, open = <-st.items; open {
			return true, nil
		}
		err := <-st.done
		if err != nil && faults.partition(st.n, err) {
			places[st.n].broken = true
			err = nil
		}
		return false, err
	}
	var live []*stream
	for _, st := range streams {
		more, err := next(st)
		if err != nil {
			return err
		}
		if more {
			live = append(live, st)
		}
	}
	for len(live) > 0 {
		first := 0
		for i, st := range live {
			if st.head.at < live[first].head.at {
				first = i
			}
		}
		if err := show(&live[first].head); err != nil {
			return err
		}
		more, err := next(live[first])
		if err != nil {
			return err
		}
		if !more {
			live = slices.Delete(live, first, first+1)
		}
	}
	return nil
}

func newJournalTail() *cobra.Command {
	var f journalFlags
	var output outputFlag
	var follow bool
	var lines int
	c := &cobra.Command{
		Use:   "tail",
		Short: "Show the last events, and with --follow those that come",
		Long: `tail shows one line for each event, of all partitions together and by time: when, where
(partition and place), what, of which operation, and details. Without --from or --since it
begins with the last ten. With --follow it goes on until it is interrupted.

The journal is read from its beginning all the same, because only so valid records can be
told from void ones.`,
		Example: `  opstream journal tail --follow
  opstream journal tail --organization contoso --id mail-7 --from start
  opstream journal tail --follow --from end --output json | jq .type`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if lines < 0 {
				return usage("expected --lines to be 0 or more, but got %d", lines)
			}
			ctx := cmd.Context()
			j, s, err := f.open(cmd)
			if err != nil {
				return err
			}
			out := bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
			faults := &faulty{out: cmd.ErrOrStderr()}
			emit := func(x *found) error {
				faults.unread(x)
				if output.json() {
					return printJSON(out, s.export(x))
				}
				_, err := fmt.Fprintln(out, x.line(time.Now()))
				return err
			}
			show, places := emit, newPlaces(s)
			var last []found // a ring
			seen := 0
			if f.from == "" && f.since == "" {
				show = func(x *found) error {
					if len(last) < lines {
						last = append(last, *x)
					} else if lines > 0 {
						last[seen%lines] = *x
					}
					seen++
					return nil
				}
			}
			err = j.merge(ctx, s, places, faults, show)
			for i := range last {
				if err == nil {
					err = emit(&last[(max(0, seen-lines)+i)%len(last)])
				}
			}
			err = errors.Join(err, out.Flush())
			if err == nil && follow {
				err = j.follow(ctx, s, places, faults, emit, out.Flush)
			}
			if err != nil && ctx.Err() != nil && follow {
				err = nil // the way to end it
			}
			return cmp.Or(err, faults.end())
		},
	}
	f.add(c)
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes, until interrupted")
	c.Flags().IntVarP(&lines, "lines", "n", 10, "how many of the last events, without --from and --since")
	output.add(c)
	return c
}

// follow shows what is selected of what comes, until ctx ends.
func (j *journal) follow(ctx context.Context, s *selection, places map[int32]*place, faults *faulty, show func(*found) error, flush func() error) error {
	from := map[int32]int64{}
	for n, p := range places {
		if !p.broken {
			from[n] = p.chain.Next
		}
	}
	if len(from) == 0 {
		return nil
	}
	client, err := j.consume(from)
	if err != nil {
		return err
	}
	defer client.Close()
	topic := j.topics.Journal()
	var batch []found
	for len(from) > 0 {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := j.faults(fetches); err != nil {
			return err
		}
		batch = batch[:0]
		fetches.EachPartition(func(part kgo.FetchTopicPartition) {
			p := places[part.Partition]
			for _, rec := range part.Records {
				if p.broken {
					return
				}
				x, wanted, err := s.judge(&p.chain, rec, &p.last)
				if err != nil {
					p.broken = true
					delete(from, part.Partition)
					client.PauseFetchPartitions(map[string][]int32{topic: {part.Partition}})
					faults.partition(part.Partition, err)
				} else if wanted {
					batch = append(batch, x)
				}
			}
		})
		slices.SortStableFunc(batch, func(a, b found) int { return cmp.Compare(a.at, b.at) })
		for i := range batch {
			if err := show(&batch[i]); err != nil {
				return err
			}
		}
		if err := flush(); err != nil {
			return err
		}
	}
	return nil
}

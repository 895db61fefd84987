package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/schemas"
)

func newDeadLetter() *cobra.Command {
	c := &cobra.Command{
		Use:     "deadletter",
		Aliases: []string{"deadletters"},
		Short:   "Look at records that could not be read, and why",
		Long: `deadletter reads the topic on which records are set aside that are no message at all: no
JSON, a header missing, a type that nobody knows. Each stands there as it came, with the
reason and the place where it was found. Nothing was done for it: its sender mends it and
sends it again. Records are kept for 30 days.

A request that can be read but not accepted is not here. It is refused in the journal:
opstream op history shows it, and opstream journal tail.`,
		Example: `  opstream deadletter list
  opstream deadletter show 0-17`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newDeadLetterList(), newDeadLetterShow())
	return c
}

func newDeadLetterList() *cobra.Command {
	var kafka kafkaFlags
	var code, topic, since string
	var count int
	var output outputFlag
	c := &cobra.Command{
		Use:   "list",
		Short: "List the last dead letters, oldest first",
		Long: `list shows where each dead letter stands (for opstream deadletter show), when it was set
aside, why, and the topic, partition and offset at which it was found.`,
		Example: `  opstream deadletter list --since 1h
  opstream deadletter list --code unknown_type -n 0 --output json | jq -r .source | sort | uniq -c`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if count < 0 {
				return usage("expected --lines to be 0 (all) or more, but got %d", count)
			}
			if err := needValues(cmd, "code", "topic", "since"); err != nil {
				return err
			}
			var from time.Time
			if since != "" {
				at, err := parseSince(since, time.Now())
				if err != nil {
					return err
				}
				from = at.Go()
			}
			ctx := cmd.Context()
			letters, err := kafka.openDeadLetters(cmd)
			if err != nil {
				return err
			}
			out := bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
			rows := newTable(cmd.OutOrStdout(), "POSITION", "WHEN", "CODE", "FOUND AT", "KEY", "REASON")
			now := time.Now()
			show := func(d deadLetter) error {
				if output.json() {
					return printJSON(out, d)
				}
				when := ""
				if d.At != nil {
					when = shortTime(*d.At, now)
				}
				rows.row(d.Position, when, d.Code, d.FoundAt(), cut(d.key(), 40), d.Reason)
				return rows.broken
			}
			// The last of a list are known only at its end.
			var last []deadLetter
			seen := 0
			err = letters.read(ctx, from, func(rec *kgo.Record) error {
				d := readDeadLetter(rec)
				if code != "" && d.Code != code || topic != "" && d.Topic != topic && letters.topics.Short(d.Topic) != topic {
					return nil
				}
				seen++
				switch {
				case count == 0:
					return show(d)
				case len(last) < count:
					last = append(last, d)
				default:
					last[(seen-1)%count] = d
				}
				return nil
			})
			for i := range last {
				if err == nil {
					err = show(last[(max(0, seen-count)+i)%len(last)])
				}
			}
			if !output.json() {
				if rows.empty() {
					fmt.Fprintln(cmd.ErrOrStderr(), "no dead letters")
				} else {
					err = errors.Join(err, rows.flush())
				}
				if seen > len(last) && count > 0 {
					fmt.Fprintf(cmd.ErrOrStderr(), "the last %d of %d; -n 0 shows all\n", len(last), seen)
				}
			}
			return errors.Join(err, out.Flush())
		},
	}
	kafka.add(c)
	fl := c.Flags()
	fl.StringVar(&code, "code", "", "only those with this code")
	fl.StringVar(&topic, "topic", "", "only those found on this topic, such as requests")
	fl.StringVar(&since, "since", "", "only those of this time (RFC 3339) or later, or of so long ago (such as 10m)")
	fl.IntVarP(&count, "lines", "n", 20, "how many of the last ones; 0 for all")
	output.add(c)
	return c
}

func newDeadLetterShow() *cobra.Command {
	var kafka kafkaFlags
	var output outputFlag
	c := &cobra.Command{
		Use:   "show POSITION",
		Short: "Show a dead letter whole: why it is one, its headers and its value",
		Long: `show writes everything that is known of one dead letter, named by its position as
opstream deadletter list has it. What is no text is shown with escapes; --output json holds
the bytes as they came (data when they are JSON, else text, else value in base64).`,
		Example: `  opstream deadletter show 0-17
  opstream deadletter show 0-17 --output json | jq -r .value | base64 -d`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			at, err := api.ParsePosition(args[0])
			if err != nil {
				return usage("expected the position of a dead letter, such as 0-17, but got %q; opstream deadletter list has them", clean(cut(args[0], 60)))
			}
			letters, err := kafka.openDeadLetters(cmd)
			if err != nil {
				return err
			}
			rec, err := letters.at(cmd.Context(), at)
			if err != nil {
				return err
			}
			d := readDeadLetter(rec)
			d.fill(rec)
			if output.json() {
				return printJSON(cmd.OutOrStdout(), d)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), d.text(rec))
			return err
		},
	}
	kafka.add(c)
	output.add(c)
	return c
}

// deadLetter is what is known of a record that nobody could read. The members whose names are theirs in any list come
// first; Headers and what follows are shown only of one.
type deadLetter struct {
	Position  string     `json:"position"` // on the topic deadletter
	At        *time.Time `json:"at,omitempty"`
	Code      string     `json:"code"`
	Reason    string     `json:"reason"`
	Next      string     `json:"next,omitempty"` // what to do
	By        string     `json:"by,omitempty"`   // who gave up on it
	Topic     string     `json:"topic,omitempty"`
	Partition string     `json:"partition,omitempty"`
	Offset    string     `json:"offset,omitempty"`
	Cut       string     `json:"cut,omitempty"` // what is missing of it
	Type      string     `json:"type,omitempty"`
	ID        string     `json:"id,omitempty"`     // of the event
	Source    string     `json:"source,omitempty"` // of the event: who sent it, by his own account
	Key       string     `json:"key,omitempty"`
	KeyBytes  []byte     `json:"keyBytes,omitempty"` // a key that is no text, in base64
	Size      int        `json:"size"`               // of the value

	Headers []deadHeader    `json:"headers,omitempty"` // as it came
	Data    json.RawMessage `json:"data,omitempty"`
	Text    string          `json:"text,omitempty"`
	Value   []byte          `json:"value,omitempty"`
}

type deadHeader struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	Bytes []byte `json:"bytes,omitempty"` // a value that is no text, in base64
}

// readDeadLetter takes what the scheduler wrote beside the record.
func readDeadLetter(rec *kgo.Record) deadLetter {
	d := deadLetter{
		Position: api.Position{Partition: rec.Partition, Place: operation.Place(rec.Offset)}.String(),
		Code:     header(rec, schemas.HeaderDeadCode), Reason: header(rec, schemas.HeaderDeadReason), By: header(rec, schemas.HeaderDeadBy),
		Topic: header(rec, schemas.HeaderDeadTopic), Partition: header(rec, schemas.HeaderDeadPartition), Offset: header(rec, schemas.HeaderDeadOffset),
		Cut: header(rec, schemas.HeaderDeadCut), Type: text(header(rec, schemas.HeaderType)), ID: text(header(rec, schemas.HeaderID)),
		Source: text(header(rec, schemas.HeaderSource)), Size: len(rec.Value),
	}
	if _, next, ok := strings.Cut(schemas.Reasons[schemas.Code(d.Code)], "; "); ok {
		d.Next = next
	}
	at, err := time.Parse(time.RFC3339Nano, header(rec, schemas.HeaderDeadAt))
	if err != nil {
		at = rec.Timestamp
	}
	if year := at.UTC().Year(); year >= 1 && year <= 9999 { // JSON knows no others
		at = at.UTC()
		d.At = &at
	}
	if utf8.Valid(rec.Key) {
		d.Key = string(rec.Key)
	} else {
		d.KeyBytes = rec.Key
	}
	return d
}

// text bounds what a sender wrote into a header, for lists.
func text(s string) string { return cut(strings.ToValidUTF8(s, "?"), 256) }

func (d *deadLetter) key() string { return cmp.Or(d.Key, string(d.KeyBytes)) }

// FoundAt is where the record stood, as the topic, partition and offset.
func (d *deadLetter) FoundAt() string {
	if d.Topic == "" {
		return ""
	}
	return d.Topic + " " + d.Partition + "-" + d.Offset
}

// fill adds the headers and the value.
func (d *deadLetter) fill(rec *kgo.Record) {
	for _, h := range rec.Headers {
		if schemas.IsDeadHeader(h.Key) {
			continue
		}
		shown := deadHeader{Key: strings.ToValidUTF8(h.Key, "?"), Value: string(h.Value)}
		if !utf8.Valid(h.Value) {
			shown.Value, shown.Bytes = "", h.Value
		}
		d.Headers = append(d.Headers, shown)
	}
	switch {
	case len(rec.Value) == 0:
	case schemas.CheckJSON(rec.Value, len(rec.Value)) == nil:
		d.Data = rec.Value
	case utf8.Valid(rec.Value):
		d.Text = string(rec.Value)
	default:
		d.Value = rec.Value
	}
}

// shownBytes bounds what people are shown of one key, header or value.
const shownBytes = 4 << 10

// text writes it for people.
func (d *deadLetter) text(rec *kgo.Record) string {
	var b strings.Builder
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-10s %s\n", name, clean(value))
		}
	}
	line("position", d.Position)
	if d.At != nil {
		line("at", d.At.Format(time.RFC3339))
	}
	line("code", d.Code)
	line("reason", d.Reason)
	line("next", d.Next)
	line("found at", d.FoundAt())
	line("by", d.By)
	line("cut off", d.Cut)
	line("key", some([]byte(d.key())))
	for _, h := range d.Headers {
		line("header", some([]byte(h.Key))+": "+some(cmp.Or(string(h.Bytes), h.Value)))
	}
	if rec.Value == nil {
		line("value", "none (a tombstone)")
		return b.String()
	}
	line("value", strconv.Itoa(len(rec.Value))+" bytes")
	if len(rec.Value) > 0 {
		b.WriteByte('\n')
		for part := range bytes.Lines([]byte(some(rec.Value))) {
			b.WriteString(clean(strings.TrimRight(string(part), "\r\n")))
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// some returns the beginning of what may be long, and says how much is left out.
func some[T ~string | ~[]byte](v T) string {
	if len(v) <= shownBytes {
		return string(v)
	}
	return fmt.Sprintf("%s… (and %d more bytes; --output json has all)", string(v[:shownBytes]), len(v)-shownBytes)
}

// deadLetters is a connection to the topic deadletter.
type deadLetters struct {
	*journal
	topic string
}

func (k *kafkaFlags) openDeadLetters(cmd *cobra.Command) (*deadLetters, error) {
	j, err := k.openJournal(cmd)
	if err != nil {
		return nil, err
	}
	return &deadLetters{j, j.topics.DeadLetter()}, nil
}

func openDeadLetters(ctx context.Context, brokers []string, prefix string) (*deadLetters, error) {
	j, err := openJournal(ctx, brokers, prefix)
	if err != nil {
		return nil, err
	}
	return &deadLetters{j, j.topics.DeadLetter()}, nil
}

// span is the part of a partition that is read.
type span struct{ from, to int64 }

// spans are what the topic holds now, from a time on.
func (l *deadLetters) spans(ctx context.Context, since time.Time) (map[int32]span, error) {
	client, err := kgo.NewClient(l.options...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	begin, err1 := admin.ListStartOffsets(ctx, l.topic)
	if err1 == nil && !since.IsZero() {
		begin, err1 = admin.ListOffsetsAfterMilli(ctx, since.UnixMilli(), l.topic)
	}
	end, err2 := admin.ListEndOffsets(ctx, l.topic)
	err = errors.Join(err1, err2, begin.Error(), end.Error())
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return nil, fmt.Errorf("there is no topic %s at %s; is --topic-prefix right, and has the service run there?", clean(l.topic), clean(strings.Join(l.brokers, ",")))
	}
	if err != nil {
		return nil, fmt.Errorf("ask for the ends of %s: %w", clean(l.topic), err)
	}
	spans := map[int32]span{}
	end.Each(func(e kadm.ListedOffset) {
		first, _ := begin.Lookup(l.topic, e.Partition)
		if first.Offset >= 0 && first.Offset < e.Offset {
			spans[e.Partition] = span{first.Offset, e.Offset}
		}
	})
	return spans, nil
}

// read shows what the topic held when it began, partition by partition.
func (l *deadLetters) read(ctx context.Context, since time.Time, show func(*kgo.Record) error) error {
	spans, err := l.spans(ctx, since)
	if err != nil {
		return err
	}
	partitions := make([]int32, 0, len(spans))
	for n := range spans {
		partitions = append(partitions, n)
	}
	slices.Sort(partitions)
	for _, n := range partitions {
		if err := l.partition(ctx, n, spans[n], show); err != nil {
			return err
		}
	}
	return nil
}

func (l *deadLetters) partition(ctx context.Context, n int32, s span, show func(*kgo.Record) error) error {
	client, err := kgo.NewClient(append(slices.Clone(l.options),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{l.topic: {n: kgo.NewOffset().At(s.from)}}),
		kgo.KeepControlRecords(),
	)...)
	if err != nil {
		return fmt.Errorf("make a client to read %s: %w", clean(l.topic), err)
	}
	defer client.Close()
	for next := s.from; next < s.to; {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.faults(fetches); err != nil {
			return err
		}
		for records := fetches.RecordIter(); !records.Done() && next < s.to; {
			rec := records.Next()
			if next = rec.Offset + 1; next > s.to {
				break
			}
			if rec.Attrs.IsControl() {
				continue
			}
			if err := show(rec); err != nil {
				return err
			}
		}
	}
	return nil
}

// at returns one record.
func (l *deadLetters) at(ctx context.Context, at api.Position) (*kgo.Record, error) {
	spans, err := l.spans(ctx, time.Time{})
	if err != nil {
		return nil, err
	}
	s, ok := spans[at.Partition]
	if offset := int64(at.Place); ok && offset >= s.from && offset < s.to {
		var found *kgo.Record
		if err := l.partition(ctx, at.Partition, span{offset, offset + 1}, func(rec *kgo.Record) error {
			found = rec
			return nil
		}); err != nil {
			return nil, err
		}
		if found != nil {
			return found, nil
		}
	}
	return nil, &exitError{exitNotFound, fmt.Errorf("there is no dead letter at %s; opstream deadletter list has those that there are (they are kept for 30 days)", at)}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/opstream/opstream/internal/embedded"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/cockroach"
	"github.com/opstream/opstream/projections/projector"
	"github.com/opstream/opstream/projections/sqlite"
	"github.com/opstream/opstream/schemas"
)

// verification is the answer of verify.
type verification struct {
	Verified    bool             `json:"verified"`
	Error       string           `json:"error,omitempty"` // why it could not be found out
	Partitions  int              `json:"partitions"`
	Events      int64            `json:"events"`
	Void        int64            `json:"void"`
	Operations  int64            `json:"operations"`
	Rejections  int64            `json:"rejections"`
	Counts      int64            `json:"counts"`
	Behind      map[string]int64 `json:"behind,omitempty"` // by partition: offsets that the tables do not have yet
	Lost        map[string]int64 `json:"lost,omitempty"`   // by partition: offsets that the tables have and the journal has not
	Differing   int64            `json:"differing"`
	Differences []difference     `json:"differences,omitempty"`
	TookMs      int64            `json:"tookMs"`
}

// difference is one thing in which the tables are not what the journal says.
type difference struct {
	Partition    int32  `json:"partition"`
	Place        int64  `json:"place"` // -1 when it is about no operation
	Organization string `json:"organization,omitempty"`
	ID           string `json:"id,omitempty"`
	What         string `json:"what"`
	Journal      string `json:"journal"`
	Tables       string `json:"tables"`
}

func newVerify() *cobra.Command {
	var kafka kafkaFlags
	var data, database string
	var output outputFlag
	c := &cobra.Command{
		Use:   "verify (--data DIR | --database FILE-OR-URL)",
		Short: "Compare the tables with the journal, row by row",
		Long: `verify reads the journal up to where the tables stand, checks its chain, folds the events
by themselves and compares what comes out with every row of the tables: operations, their
histories, refused commands, counts and positions. The service may run meanwhile; what the tables do not have
yet is reported as how far they are behind, not as a difference. With --data and without
--brokers the service need not run: the folder's own journal is read.

The exit code is 6 when the tables are not what the journal says. They can then be thrown
away and made again from it, unless the journal ends before them: then it has lost records,
and the tables are what is left of those. A chain that is broken ends verify with exit code 1,
and so does a folder whose log is damaged, which stays as it is.`,
		Example: `  opstream verify --data ./data
  opstream verify --brokers kafka-1:9092 --database ./tables.db --output json
  opstream verify --brokers kafka-1:9092 --database postgres://opstream@db/opstream`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if data == "" {
				if err := databaseFromEnvironment(cmd, &database); err != nil {
					return err
				}
			}
			open, err := tables(data, database)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			security, err := kafka.connect(cmd)
			if err != nil {
				return err
			}
			if data != "" && !kafka.given("brokers") {
				// The folder's own journal, when the service does not run: the default broker may be another one's.
				broker, err := openStopped(ctx, data)
				var held *embedded.HeldError
				switch {
				case errors.Is(err, fs.ErrNotExist) || errors.As(err, &held):
				case err != nil:
					return unverified(cmd, output, err)
				default:
					defer func() { _ = broker.Close() }() // nothing was written
					kafka.brokers, security = broker.Addrs(), nil
				}
			}
			j, err := openJournal(ctx, kafka.brokers, kafka.prefix, security...)
			if err != nil {
				return err
			}
			if _, err := j.ends(ctx); err != nil {
				return err
			}
			store, err := open(ctx)
			if err != nil {
				return fmt.Errorf("open the tables: %w", err)
			}
			v, err := verify(ctx, store, j.source(), newProgress(cmd.ErrOrStderr(), output))
			err = errors.Join(err, store.Close())
			if output.json() {
				if err != nil {
					v.Verified, v.Error = false, clean(err.Error())
				}
				if err := printJSON(cmd.OutOrStdout(), v); err != nil {
					return err
				}
			} else if err == nil {
				if err := v.show(cmd); err != nil {
					return err
				}
			}
			switch {
			case err != nil:
				var broken *schemas.ErrBroken
				if errors.As(err, &broken) {
					return fmt.Errorf("THE CHAIN IS BROKEN: %s; keep the topic as it is, and find out who wrote to it", clean(err.Error()))
				}
				return errors.New(clean(err.Error()))
			case !v.Verified:
				return &exitError{exitDiffers, nil}
			}
			return nil
		},
	}
	kafka.add(c)
	fl := c.Flags()
	fl.StringVar(&data, "data", "", "data folder of opstream dev, whose tables to compare")
	databaseFlag(c, &database, "SQLite file (also as sqlite:FILE) or URL (postgres://…, cockroach://…) of the tables")
	output.add(c)
	return c
}

// unverified says that it could not be found out.
func unverified(cmd *cobra.Command, output outputFlag, err error) error {
	if output.json() {
		if err := printJSON(cmd.OutOrStdout(), verification{Error: clean(err.Error())}); err != nil {
			return err
		}
	}
	return err
}

// openStopped starts the broker of a data folder whose service does not run. It fails when it does.
func openStopped(ctx context.Context, data string) (*embedded.Broker, error) {
	if _, err := os.Stat(filepath.Join(data, "log")); err != nil {
		return nil, fmt.Errorf("find the log in the data folder: %w", err)
	}
	return embedded.Open(ctx, embedded.Config{Dir: data, Whole: true, Logger: slog.New(slog.DiscardHandler)})
}

// tables finds the tables and returns how to open them. They must be there.
func tables(data, database string) (open func(context.Context) (projections.Store, error), err error) {
	if data == "" && cockroach.IsURL(database) {
		store, err := cockroach.Open(database, cockroach.Options{Existing: true})
		if err != nil {
			return nil, usage("--database: %s", err)
		}
		return func(ctx context.Context) (projections.Store, error) {
			if err := store.Ready(ctx); err != nil {
				return nil, errors.Join(err, store.Close())
			}
			return store, nil
		}, nil
	}
	path, err := tablesFile(data, database)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (projections.Store, error) {
		return sqlite.Open(ctx, path, sqlite.Options{Readers: 1})
	}, nil
}

// tablesFile finds the SQLite file. It must be there: opening another one would make empty tables.
func tablesFile(data, database string) (string, error) {
	path := database
	switch {
	case (data == "") == (database == ""):
		return "", usage("expected either --data DIR or --database FILE-OR-URL, which say where the tables are")
	case data != "":
		path = filepath.Join(data, databaseFile)
	case strings.Contains(database, ":"):
		for _, prefix := range []string{"sqlite://", "sqlite:", "file:"} {
			path = strings.TrimPrefix(path, prefix)
		}
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", usage("there are no tables at %s; is it the folder or file that the service was started with?", path)
	case err != nil:
		return "", fmt.Errorf("find the tables: %w", err)
	case !info.Mode().IsRegular():
		return "", usage("expected the tables' file, but %s is none; --data takes the folder", path)
	}
	return path, nil
}

// counted is a journal that counts what is read of it.
type counted struct {
	projector.Journal
	bar          *progress
	begun        time.Time
	total        int64 // records
	partitions   int
	events, void int64
}

// Ends implements projections.Source.
func (c *counted) Ends(ctx context.Context) (map[int32]int64, error) {
	ends, err := c.Journal.Ends(ctx)
	c.partitions, c.total = len(ends), 0
	for _, end := range ends {
		c.total += end
	}
	return ends, err
}

// Read implements projections.Source.
func (c *counted) Read(ctx context.Context, n int32, to int64, show func(projections.Entry) error) (projections.Position, error) {
	var events int64
	at, err := c.Journal.Read(ctx, n, to, func(e projections.Entry) error {
		events++
		c.events++
		if c.bar.on() && c.events%1024 == 0 {
			c.bar.show("%3d%%  %d events, %.0f/s", 100*c.events/max(1, c.total), c.events, float64(c.events)/time.Since(c.begun).Seconds())
		}
		return show(e)
	})
	c.void += at.Next - min(at.Next, events)
	return at, err
}

// verify compares the store with the journal.
func verify(ctx context.Context, store projections.Store, journal projector.Journal, bar *progress) (verification, error) {
	source := &counted{Journal: journal, bar: bar, begun: time.Now()}
	report, err := projections.Verify(ctx, store, source)
	bar.clear()
	v := verification{
		Verified: err == nil && report.OK(), Partitions: source.partitions, Events: source.events, Void: source.void,
		Operations: report.Operations, Rejections: report.Rejections, Counts: report.Counts,
		Differing: report.Differing, TookMs: time.Since(source.begun).Milliseconds(),
	}
	v.Behind, v.Lost = byPartition(report.Lag), byPartition(report.Lost)
	for _, d := range report.Differences {
		v.Differences = append(v.Differences, difference{
			Partition: d.Partition, Place: int64(d.Place), Organization: d.Org, ID: string(d.ID), What: d.What, Journal: d.Want, Tables: d.Have,
		})
	}
	return v, err
}

// byPartition has the partitions' numbers as JSON does; nil without any.
func byPartition(offsets map[int32]int64) map[string]int64 {
	var out map[string]int64
	for n, offset := range offsets {
		if out == nil {
			out = map[string]int64{}
		}
		out[strconv.Itoa(int(n))] = offset
	}
	return out
}

// partitionsOf lists the partitions in order, and the sum of what they have.
func partitionsOf(offsets map[string]int64) (list string, sum int64) {
	parts := make([]int, 0, len(offsets))
	for n, offset := range offsets {
		sum += offset
		if n, err := strconv.Atoi(n); err == nil {
			parts = append(parts, n)
		}
	}
	slices.Sort(parts)
	return strings.Trim(fmt.Sprint(parts), "[]"), sum
}

// show prints the answer for people.
func (v *verification) show(cmd *cobra.Command) error {
	out := cmd.OutOrStdout()
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	rows := newTable(out, "COMPARED", "COUNT")
	rows.row("partitions", strconv.Itoa(v.Partitions))
	rows.row("events", number(v.Events))
	rows.row("void records", number(v.Void))
	rows.row("operations", number(v.Operations))
	rows.row("refused commands", number(v.Rejections))
	rows.row("counts", number(v.Counts))
	rows.row("differences", number(v.Differing))
	if err := rows.flush(); err != nil {
		return err
	}
	took := (time.Duration(v.TookMs) * time.Millisecond).String()
	if v.Verified {
		fmt.Fprintf(out, "\nverified in %s: the tables are what the journal says\n", took)
	} else {
		fmt.Fprintln(out)
		rows := newTable(out, "PLACE", "ORGANIZATION", "ID", "WHAT", "JOURNAL", "TABLES")
		for _, d := range v.Differences {
			at := ""
			if d.Place >= 0 {
				at = fmt.Sprintf("%d-%d", d.Partition, d.Place)
			} else if d.Partition >= 0 {
				at = strconv.Itoa(int(d.Partition))
			}
			rows.row(at, d.Organization, d.ID, d.What, d.Journal, d.Tables)
		}
		if err := rows.flush(); err != nil {
			return err
		}
		if more := v.Differing - int64(len(v.Differences)); more > 0 {
			fmt.Fprintf(out, "and %d more\n", more)
		}
		if lost, n := partitionsOf(v.Lost); n > 0 {
			fmt.Fprintf(out, "\nTHE JOURNAL ENDS BEFORE THE TABLES (found in %s), by %d records, in the partitions %s: it has lost them, or is another one; "+
				"keep both as they are, and restore the journal from a copy\n", took, n, lost)
		} else {
			fmt.Fprintf(out, "\nDIFFERENT (found in %s): the tables are not what the journal says; throw them away, they are made again from it\n", took)
		}
	}
	if parts, behind := partitionsOf(v.Behind); behind > 0 {
		fmt.Fprintf(out, "the tables are %d records behind the journal, in the partitions %s\n", behind, parts)
	}
	return nil
}

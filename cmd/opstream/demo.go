package main

import (
	"bytes"
	"compress/gzip"
	"context"
	_ "embed" // of the help desk's events
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/projector"
)

// helpdesk is a public research data set of process mining: 21 348 events of 4 580 tickets of 397 customers of a help desk,
// 2010 to 2014, made anonymous by its publishers, in the order in which they happened. See demo/README.md.
//
//go:embed demo/helpdesk.csv.gz
var helpdesk []byte

// demoResult is what demo --exit --output json prints.
type demoResult struct {
	Operations      int     `json:"operations"`
	Succeeded       int64   `json:"succeeded"`
	Failed          int64   `json:"failed"`
	OrderViolations int     `json:"order_violations"` // counted from the journal
	Seconds         float64 `json:"seconds"`          // from the first request to the last end in the tables
	Verified        bool    `json:"verified"`         // the tables are what the journal says
}

func newDemo() *cobra.Command {
	var exit bool
	var f devFlags
	var output outputFlag
	c := &cobra.Command{
		Use:   "demo",
		Short: "Watch a help desk's 21 348 operations be requested, ordered, run and answered for",
		Long: `demo starts the whole service in this process, on a temporary folder, and gives it the
work of a real help desk: 21 348 events of 4 580 tickets of 397 customers. Each event is
an operation; the operations of a ticket must run strictly one after another. The
handlers do nothing, so what you see is the service itself.

At the end it counts, from the journal, operations that ran out of their ticket's order,
and compares every row of the tables with the journal. Then the page stays up for you to
look at, until Ctrl-C; with --exit the command ends.`,
		Example: `  opstream demo
  opstream demo --exit --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demo(cmd, f, exit, output.json())
		},
	}
	output.add(c)
	fl := c.Flags()
	fl.BoolVar(&exit, "exit", false, "end when all is done, instead of keeping the page up")
	fl.StringVar(&f.data, "data", "", "folder to keep the data in (default: a temporary one, removed at the end)")
	fl.StringVar(&f.listen, "listen", "", "address of the page (default: "+defaultListen+", or a free port when that is taken)")
	fl.StringVar(&f.logLevel, "log", "warn", "debug, info, warn or error")
	return c
}

func demo(cmd *cobra.Command, f devFlags, exit, asJSON bool) (err error) {
	ctx, out, progress := cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	log, err := newLogger(cmd.ErrOrStderr(), f.logLevel)
	if err != nil {
		return err
	}
	requests, types, err := helpdeskRequests()
	if err != nil {
		return err
	}
	if f.data == "" {
		if f.data, err = os.MkdirTemp("", "opstream-demo-"); err != nil {
			return err
		}
		defer os.RemoveAll(f.data) //nolint:errcheck // it is in the system's folder for what is temporary
	}
	f.noop, f.partitions, f.slots, f.lease = types, devPartitions, defaultDevSlot, defaultLease
	if f.listen == "" {
		f.listen = freeAddress(ctx, defaultListen)
	}
	g := newGroup()
	defer func() { err = errors.Join(err, g.stop()) }()
	s, err := startEmbedded(ctx, g, f, log)
	if err != nil {
		return err
	}
	say := func(format string, args ...any) {
		if !asJSON {
			fmt.Fprintf(progress, format+"\n", args...)
		}
	}
	say("The service runs. Look at it: %s", s.url)
	say("Requesting %s operations of a help desk …", thousands(len(requests)))

	client, err := producers.New(producers.Config{Brokers: s.cfg.brokers, Topics: s.cfg.topics, Source: "/demo/helpdesk", Options: s.cfg.clientOptions()})
	if err != nil {
		return err
	}
	defer client.Close(context.WithoutCancel(ctx)) //nolint:errcheck // it only says that requests were given up, and then the demo has failed already
	result := demoResult{Operations: len(requests)}
	began := time.Now()
	requested := make(chan error, 1)
	go func() {
		for part := range slices.Chunk(requests, 500) {
			if err := client.RequestAll(ctx, part); err != nil {
				requested <- err
				return
			}
		}
		requested <- nil
	}()
	if err := watchDemo(ctx, g, s, &result, began, requested, newMeter(progress, asJSON)); err != nil {
		return err
	}
	result.Seconds = round(time.Since(began).Seconds(), 2)

	say("Reading the journal: was every ticket's order kept? Do the tables say what the journal says?")
	journal := projector.Journal{Client: s.cfg.clientOptions(), Topics: s.cfg.topics}
	if result.OrderViolations, err = orderViolations(ctx, journal); err != nil {
		return err
	}
	report, err := projections.Verify(ctx, s.store, journal)
	if err != nil {
		return err
	}
	result.Verified = report.OK()
	if asJSON {
		if err := json.NewEncoder(out).Encode(result); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(out, "\n  operations         %s\n  succeeded          %s\n  failed             %s\n  out of order       %d   (counted from the journal's %s events)\n  seconds            %.2f   (%s operations a second)\n  tables = journal   %t\n\n",
			thousands(result.Operations), thousands(int(result.Succeeded)), thousands(int(result.Failed)), result.OrderViolations,
			thousands(int(report.Events)), result.Seconds, thousands(int(float64(result.Operations)/result.Seconds)), result.Verified)
	}
	if !result.Verified || result.OrderViolations > 0 {
		return &exitError{exitDiffers, fmt.Errorf("expected order and tables to be right, but there are %d violations and the tables verified: %t", result.OrderViolations, result.Verified)}
	}
	if !exit {
		say("The page stays up at %s — stop it with Ctrl-C.", s.url)
		g.wait(ctx)
	}
	return nil
}

// watchDemo waits until all operations have ended in the tables.
func watchDemo(ctx context.Context, g *group, s *service, result *demoResult, began time.Time, requested <-chan error, m *meter) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	defer m.end()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-g.ended:
			return errors.New("a part of the service has ended before the operations did")
		case err := <-requested:
			if err != nil {
				return fmt.Errorf("requesting: %w", err)
			}
			requested = nil
			continue
		case <-tick.C:
		}
		counts, err := s.store.Counts(ctx, projections.CountFilter{})
		if err != nil {
			return err
		}
		var accepted, running, waiting int64
		result.Succeeded, result.Failed = 0, 0
		for _, c := range counts {
			accepted += c.N
			switch {
			case c.Status == operation.StatusSucceeded:
				result.Succeeded += c.N
			case c.Status == operation.StatusFailed:
				result.Failed += c.N
			case c.Status.Locked():
				running += c.N
			default:
				waiting += c.N
			}
		}
		done := result.Succeeded + result.Failed
		m.show(time.Since(began), result.Operations, accepted, running, waiting, done)
		if done == int64(result.Operations) {
			return nil
		}
	}
}

// meter shows progress: one line that changes on a terminal, a line a second elsewhere, nothing when a program reads.
type meter struct {
	out      io.Writer
	terminal bool
	silent   bool
	last     time.Duration
}

func newMeter(out io.Writer, silent bool) *meter {
	file, ok := out.(*os.File)
	return &meter{out: out, silent: silent, terminal: ok && term.IsTerminal(int(file.Fd()))}
}

func (m *meter) show(elapsed time.Duration, total int, accepted, running, waiting, done int64) {
	if m.silent || !m.terminal && elapsed-m.last < time.Second && done < int64(total) {
		return
	}
	m.last = elapsed
	const width = 24
	filled := int(done) * width / total
	line := fmt.Sprintf("  %5.1fs  [%s%s]  %s done · %s running · %s waiting · %s of %s accepted",
		elapsed.Seconds(), strings.Repeat("█", filled), strings.Repeat("·", width-filled),
		thousands(int(done)), thousands(int(running)), thousands(int(waiting)), thousands(int(accepted)), thousands(total))
	if m.terminal {
		fmt.Fprint(m.out, "\r\x1b[K"+line)
	} else {
		fmt.Fprintln(m.out, line)
	}
}

func (m *meter) end() {
	if !m.silent && m.terminal {
		fmt.Fprintln(m.out)
	}
}

// thousands writes n in groups of three digits.
func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	return s
}

// freeAddress returns preferred, or a free port of its host when somebody listens there.
func freeAddress(ctx context.Context, preferred string) string {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", preferred)
	if err != nil {
		return "127.0.0.1:0"
	}
	l.Close()
	return preferred
}

// helpdeskRequests makes a request of each line: the customer is the organization, the ticket the dependency token, the
// activity the type. It also returns all types.
func helpdeskRequests() ([]*producers.Request, []string, error) {
	unzipped, err := gzip.NewReader(bytes.NewReader(helpdesk))
	if err != nil {
		return nil, nil, err
	}
	rows := csv.NewReader(unzipped)
	rows.ReuseRecord = true
	if _, err := rows.Read(); err != nil { // the header
		return nil, nil, err
	}
	var requests []*producers.Request
	var types []string
	for line := 2; ; line++ {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			return requests, types, nil
		}
		if err != nil {
			return nil, nil, err
		}
		t := "helpdesk." + strings.ReplaceAll(strings.ToLower(row[2]), " ", "-")
		if !slices.Contains(types, t) {
			types = append(types, t)
		}
		requests = append(requests, &producers.Request{
			ID: fmt.Sprintf("line-%d", line), Organization: row[4], Type: t, Name: row[2] + ", " + row[1], DependencyToken: row[1],
		})
	}
}

// orderViolations counts, in the whole journal, dispatches of an operation while another one of its token was still out, or
// after a later one of its token.
func orderViolations(ctx context.Context, journal projector.Journal) (int, error) {
	ends, err := journal.Ends(ctx)
	if err != nil {
		return 0, err
	}
	violations := 0
	for p, end := range ends {
		type chainKey struct{ org, token string }
		type member struct {
			chain    chainKey
			sequence operation.Place
		}
		members := map[operation.ID]map[string]member{}
		out := map[chainKey]operation.ID{}
		last := map[chainKey]operation.Place{}
		_, err := journal.Read(ctx, p, end, func(e projections.Entry) error {
			ev := &e.Event
			if ev.Kind == operation.Requested && ev.Request.DependencyToken != "" {
				if members[ev.ID] == nil {
					members[ev.ID] = map[string]member{}
				}
				members[ev.ID][ev.Org] = member{chainKey{ev.Org, ev.Request.DependencyToken}, e.Place}
			}
			m, ok := members[ev.ID][ev.Org]
			if !ok {
				return nil
			}
			switch ev.Kind {
			case operation.Dispatched:
				if other := out[m.chain]; other != "" && other != ev.ID || m.sequence < last[m.chain] {
					violations++
				}
				out[m.chain], last[m.chain] = ev.ID, m.sequence
			case operation.Succeeded, operation.Failed, operation.Canceled:
				if out[m.chain] == ev.ID {
					delete(out, m.chain)
				}
			}
			return nil
		})
		if err != nil {
			return 0, fmt.Errorf("partition %d: %w", p, err)
		}
	}
	return violations, nil
}

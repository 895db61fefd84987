package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/schemas"
)

func newOpSubmit() *cobra.Command {
	var r remote
	var from string
	var wait bool
	var start int
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "submit --from FILE|-",
		Short: "Submit operations, one request a line",
		Long: `submit sends requests to the service and says what became of each. A request is one line
of JSON, the data of an event opstream.operation.requested.v1:

  {"organization":"contoso","id":"mail-7","type":"bulk-email","data":{"to":"all"}}

Every request needs an id. It makes the command safe to repeat: what was accepted before is
answered with "unchanged", so after an interruption just run the same command again. The
service knows an id while its operation has not ended, and then, in each partition, for as
long as it is among the last 262 144. After an interruption of a larger file go on with
--start-line at the line that was named.

A line that is refused (empty, too long, no JSON, not as the schema says, or refused by the
service) does not stop the others. Requests are streamed, so a file may be of any size; only
--wait remembers the ids.

Tables list the lines that were refused; with --output json every line is answered, and
the last object holds the numbers. The exit code is 3 when a line was refused.`,
		Example: `  opstream op submit --from requests.jsonl --wait
  generate-requests | opstream op submit --from - --output json > answers.jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if start < 1 {
				return usage("expected --start-line to be 1 or more, but got %d", start)
			}
			if from == "" {
				return usage("expected --from with a file of requests, or - for standard input")
			}
			in, size := cmd.InOrStdin(), int64(0)
			if from != "-" {
				f, err := os.Open(from)
				if err != nil {
					return usage("cannot read --from: %w", err)
				}
				defer func() { _ = f.Close() }() // it was only read
				if info, err := f.Stat(); err == nil && info.IsDir() {
					return usage("expected --from to be a file, but %s is a folder", from)
				} else if err == nil && info.Mode().IsRegular() {
					size = info.Size()
				}
				in = f
			}
			client, err := r.client(cmd)
			if err != nil {
				return err
			}
			s := &submission{remote: &r, cmd: cmd, size: size, start: start, begun: time.Now(), bar: newProgress(cmd.ErrOrStderr(), r.output)}
			if wait {
				s.waiter = newWaiter(client, "")
			}
			return s.run(cmd.Context(), client, in, timeout)
		},
	}
	c.Flags().StringVar(&from, "from", "", "file of requests, one a line; - for standard input")
	c.Flags().IntVar(&start, "start-line", 1, "leave out the lines before this one, which were answered before")
	c.Flags().BoolVar(&wait, "wait", false, "wait until what was accepted has ended; exit code 1 when some did not succeed")
	c.Flags().DurationVar(&timeout, "timeout", 0, "with --wait: wait no longer than that for the ends (0: as long as it takes)")
	r.add(c)
	return c
}

// submission is one run of submit.
type submission struct {
	*remote
	cmd    *cobra.Command
	size   int64 // of the file, 0 when it is not known
	start  int   // the first line to send
	begun  time.Time
	bar    *progress
	waiter *waiter
	source *requestLines

	mu    sync.Mutex // lines are refused while they are read, and answered while others are read
	over  bool
	last  int // line that the service has answered; it answers in order
	rows  *table
	total submitted
}

// submitted are the numbers of a submission.
type submitted struct {
	Lines     int    `json:"lines"`
	Accepted  int    `json:"accepted"`
	Unchanged int    `json:"unchanged"`
	Refused   int    `json:"refused"`
	Position  string `json:"position,omitempty"`

	failed, canceled int // with --wait, of those that had ended before
	retryable        int // refused, but not for good
}

func (s *submission) run(ctx context.Context, client *api.Client, in io.Reader, timeout time.Duration) error {
	out := s.cmd.OutOrStdout()
	s.rows = newTable(out, "LINE", "ID", "FIELD", "CODE", "REASON")
	s.source = &requestLines{in: bufio.NewReaderSize(in, 64<<10), start: s.start, refuse: func(line int, p *api.Problem) {
		if err := s.answered(api.BatchLine{Line: line, Problem: p}); err != nil {
			s.source.fail(err)
		}
	}}
	end, err := client.Batch(ctx, s.source, func(line api.BatchLine) error {
		s.last = line.Line
		return s.answered(line)
	})
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.bar.clear()
	s.total.Position = end.Position
	if broken := s.source.failure(); broken != nil {
		err = broken
	}
	if s.output.json() {
		if err == nil {
			err = printJSON(out, struct {
				End submitted `json:"end"`
			}{s.total})
		}
	} else {
		if s.total.Refused > 0 {
			s.rows.print()
		}
		s.summary(err)
	}
	if err != nil {
		return s.fail(s.cmd, err)
	}
	if s.waiter != nil {
		if err := s.wait(ctx, timeout); err != nil {
			return err
		}
	}
	if s.total.Refused > 0 {
		return &exitError{exitRefused, nil}
	}
	return nil
}

// answered takes the answer to one line.
func (s *submission) answered(line api.BatchLine) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil
	}
	s.total.Lines++
	switch {
	case !line.Accepted:
		s.total.Refused++
		if line.Problem == nil {
			line.Problem = api.NewProblem(api.Refused, "the service did not say why")
		}
		if line.Problem.Retryable {
			s.total.retryable++
		}
	case line.Unchanged:
		s.total.Unchanged++
	default:
		s.total.Accepted++
	}
	if line.Accepted && s.waiter != nil {
		switch line.Status {
		case operation.StatusSucceeded.String():
		case operation.StatusFailed.String():
			s.total.failed++
		case operation.StatusCanceled.String():
			s.total.canceled++
		default:
			s.waiter.add(line.Organization, line.ID)
		}
	}
	if s.output.json() {
		return printJSON(s.cmd.OutOrStdout(), &line)
	}
	if p := line.Problem; p != nil {
		s.bar.clear()
		reason := cmp.Or(p.Detail, p.Title)
		if next := nextOf(p); next != "" {
			reason += "; " + next
		}
		s.rows.row(strconv.Itoa(line.Line), line.ID, p.Field, string(p.Code), reason)
		if s.rows.width > 0 {
			s.rows.print()
		}
	}
	if s.bar.on() {
		s.showProgress()
	}
	return s.rows.broken
}

func (s *submission) showProgress() {
	rate := float64(s.total.Lines) / max(time.Since(s.begun).Seconds(), 0.001)
	if s.size > 0 {
		s.bar.show("%3d%%  %d lines, %.0f/s, %d refused", min(100, 100*s.source.read.Load()/s.size), s.total.Lines, rate, s.total.Refused)
		return
	}
	s.bar.show("%d lines, %.0f/s, %d refused", s.total.Lines, rate, s.total.Refused)
}

// summary says for people how it went.
func (s *submission) summary(err error) {
	errOut := s.cmd.ErrOrStderr()
	t := &s.total
	fmt.Fprintf(errOut, "accepted %d, unchanged %d, refused %d (%d lines in %s)\n", t.Accepted, t.Unchanged, t.Refused, t.Lines, time.Since(s.begun).Round(time.Millisecond))
	if t.retryable > 0 {
		fmt.Fprintf(errOut, "%d of those refused may be accepted later: repeat the command, the ids make that harmless\n", t.retryable)
	}
	if err != nil {
		fmt.Fprintf(errOut, "it did not come to the end: repeat the command, the ids make that harmless, or go on with --start-line %d\n", max(s.start, s.last+1))
	}
}

// badShown is how many operations that did not succeed are told one by one.
const badShown = 100

// wait waits for what was accepted to end.
func (s *submission) wait(ctx context.Context, timeout time.Duration) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	s.waiter.after = s.total.Position
	counts := map[string]int{operation.StatusFailed.String(): s.total.failed, operation.StatusCanceled.String(): s.total.canceled}
	rows := newTable(s.cmd.OutOrStdout(), "ID", "ORGANIZATION", "STATUS", "WHY")
	good := operation.StatusSucceeded.String()
	counts[good] = s.total.Accepted + s.total.Unchanged - s.waiter.total - s.total.failed - s.total.canceled
	bad := 0
	var unwritten error
	err := s.waiter.run(ctx, func(e ended) {
		if e.NotFound {
			e.Status = operation.StatusDeleted.String()
		}
		counts[e.Status]++
		if s.output.json() {
			unwritten = cmp.Or(unwritten, printJSON(s.cmd.OutOrStdout(), e))
			return
		}
		if e.Status != good {
			why := ""
			if e.Failure != nil {
				why = failureLine(e.Failure)
			}
			if bad++; bad <= badShown {
				s.bar.clear()
				rows.row(e.ID, e.Organization, e.Status, why)
			}
		}
	}, func() {
		s.bar.show("%d of %d have ended, %s", s.waiter.total-s.waiter.left(), s.waiter.total, time.Since(s.begun).Round(time.Second))
	})
	s.bar.clear()
	if !s.output.json() {
		if !rows.empty() {
			rows.print()
		}
		if bad > badShown {
			fmt.Fprintf(s.cmd.ErrOrStderr(), "and %d more did not succeed, see: opstream op list --status failed,canceled\n", bad-badShown)
		}
		fmt.Fprintf(s.cmd.ErrOrStderr(), "succeeded %d, failed %d, canceled %d, not ended %d (%s)\n", counts[good],
			counts[operation.StatusFailed.String()], counts[operation.StatusCanceled.String()], s.waiter.left(), time.Since(s.begun).Round(time.Millisecond))
	}
	if err := cmp.Or(err, unwritten); err != nil {
		return s.waitFailed(s.cmd, err)
	}
	if s.total.Refused == 0 && counts[good] < s.total.Accepted+s.total.Unchanged {
		return &exitError{exitFailed, nil}
	}
	return nil
}

// requestLines gives a file's lines to the service, and keeps back those that it would not take: empty ones, and
// those that are too long to be sent at all. In their place stands an empty line, so that the service's count of lines is the
// file's. It holds one line in memory.
type requestLines struct {
	in     *bufio.Reader
	start  int // the first line that is given
	refuse func(line int, p *api.Problem)
	read   atomic.Int64 // bytes

	number  int
	line    []byte // the current one
	pending []byte // of it, not given yet

	mu     sync.Mutex
	broken error
}

// Read implements io.Reader.
func (l *requestLines) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if len(l.pending) == 0 {
			if n > 0 && l.in.Buffered() == 0 {
				break // do not wait for more while there is something to send
			}
			if err := l.next(); err != nil {
				if n > 0 && errors.Is(err, io.EOF) {
					break
				}
				if !errors.Is(err, io.EOF) {
					l.fail(fmt.Errorf("read the requests: %w", err))
				}
				return n, err
			}
		}
		c := copy(p[n:], l.pending)
		l.pending = l.pending[c:]
		n += c
	}
	return n, nil
}

func (l *requestLines) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = cmp.Or(l.broken, err)
}

// failure is why the lines could not be read to their end, nil if they could.
func (l *requestLines) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.broken
}

var byteOrderMark = []byte("\xef\xbb\xbf")

// next reads a line into pending, with its end.
func (l *requestLines) next() error {
	l.line = l.line[:0]
	long, some := false, false
	for {
		part, err := l.in.ReadSlice('\n')
		l.read.Add(int64(len(part)))
		some = some || len(part) > 0
		if len(l.line)+len(part) > api.BodyMax+1 {
			long = true
		}
		if !long {
			l.line = append(l.line, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil && (!errors.Is(err, io.EOF) || !some) {
			return err
		}
		break
	}
	l.number++
	if l.number == 1 {
		l.line = bytes.TrimPrefix(l.line, byteOrderMark)
	}
	content := bytes.TrimSpace(l.line)
	switch {
	case l.number < l.start:
		content = nil
	case long:
		l.refuse(l.number, api.NewProblem(api.TooLarge, "expected a line of at most %d bytes, but it is longer", api.BodyMax))
		content = nil
	case len(content) == 0:
		l.refuse(l.number, api.NewProblem(api.Code(schemas.MalformedJSON), "expected a request, but the line is empty"))
	}
	l.pending = append(content, '\n')
	return nil
}

package command

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/schemas"
)

// batchBytes bounds what the lines of one batch that are under way take of memory.
const batchBytes = 8 << 20

// batchIdle is how long a batch may neither bring a byte nor take one.
const batchIdle = time.Minute

// Submission is one request of many.
type Submission struct {
	Line    int
	Request *operation.Request // nil when it was refused
	Err     error              // why
	Size    int                // bytes that it takes while it is under way
}

// SubmitAll submits what next returns until it returns false, and calls emit with the answer to each, in order. At most
// inFlight are under way at a time, and at most 8 MiB of them. Requests with the same partition key come onto the log
// in their order. Before it waits it calls flush. It ends when all are answered, or with the first error of emit or flush.
func SubmitAll(ctx context.Context, j Journal, inFlight int, next func(context.Context) (Submission, bool), emit func(Submission, Answer, error) error, flush func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	begin := beginner(j)
	type pending struct {
		Submission
		wait   func() (Answer, error)
		weight int64
	}
	// One weight bounds both: a small request counts as its share of a full batch.
	room := semaphore.NewWeighted(batchBytes)
	least := int64(max(1, batchBytes/inFlight))
	queue := make(chan pending, inFlight)
	go func() {
		defer close(queue)
		for {
			s, ok := next(ctx)
			if !ok {
				return
			}
			p := pending{Submission: s, weight: min(max(least, int64(s.Size)), batchBytes)}
			if room.Acquire(ctx, p.weight) != nil {
				return
			}
			if s.Err == nil {
				p.wait = begin(ctx, submission(s.Request), s.Request.Key())
			}
			select {
			case queue <- p:
			case <-ctx.Done():
				return
			}
		}
	}()

	for {
		var p pending
		var ok bool
		select {
		case p, ok = <-queue:
		default:
			if err := flush(); err != nil {
				return err
			}
			p, ok = <-queue
		}
		if !ok {
			return errors.Join(ctx.Err(), flush())
		}
		var answer Answer
		err := p.Err
		if err == nil {
			answer, err = p.wait()
		}
		room.Release(p.weight)
		if err := emit(p.Submission, answer, err); err != nil {
			return err
		}
	}
}

// beginner returns the journal's own Begin, or makes one of Do that keeps the order of each key.
func beginner(j Journal) func(ctx context.Context, cmd *operation.Command, key string) func() (Answer, error) {
	if p, ok := j.(Pipeline); ok {
		return p.Begin
	}
	// The last command begun for each key that is still under way. Only the goroutine that begins touches the map, so it
	// is swept when it has grown to twice what was under way at the last sweep.
	last, sweepAt := map[string]chan struct{}{}, 1024
	return func(ctx context.Context, cmd *operation.Command, key string) func() (Answer, error) {
		if len(last) >= sweepAt {
			for k, done := range last {
				select {
				case <-done:
					delete(last, k)
				default:
				}
			}
			sweepAt = max(1024, 2*len(last))
		}
		before, done := last[key], make(chan struct{})
		last[key] = done
		var answer Answer
		var err error
		go func() {
			defer close(done)
			if before != nil {
				<-before
			}
			answer, err = j.Do(ctx, cmd, key)
		}()
		return func() (Answer, error) {
			<-done
			return answer, err
		}
	}
}

func (s *service) batch(w http.ResponseWriter, r *http.Request) error {
	if err := s.room(); err != nil {
		return err
	}
	if err := api.CheckMediaType(r, "application/jsonl", "application/x-ndjson"); err != nil {
		return err
	}
	if key := r.Header.Get(api.HeaderIdempotencyKey); key != "" {
		return api.NewProblem(api.InvalidParameter, "a batch has no id of its own; each line has one").At(api.HeaderIdempotencyKey)
	}
	select {
	case s.batches <- struct{}{}:
		defer func() { <-s.batches }()
	default:
		return overloaded(time.Second)
	}
	rc := http.NewResponseController(w)
	// A writer that cannot do these is one of a test, or of HTTP/2, which needs no leave to do both at once.
	_ = rc.EnableFullDuplex()
	w.Header().Set("Content-Type", "application/jsonl")
	w.WriteHeader(http.StatusOK)

	lines := &lineReader{buffered: bufio.NewReaderSize(deadlineReader{r.Body, rc}, 64<<10)}
	out := bufio.NewWriterSize(w, 32<<10)
	write := func(line api.BatchLine) error {
		data, err := api.Encode(line)
		if err != nil {
			return fmt.Errorf("encode the answer to line %d: %w", line.Line, err)
		}
		_, err = out.Write(data)
		return err
	}
	flush := func() error {
		_ = rc.SetWriteDeadline(time.Now().Add(batchIdle))
		if err := out.Flush(); err != nil {
			return err
		}
		if err := rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		return nil
	}

	var broken error // of reading; set before next returns false, which happens before SubmitAll returns
	next := func(ctx context.Context) (Submission, bool) {
		if !s.waitForRoom(ctx) {
			return Submission{}, false
		}
		line, number, err := lines.next()
		switch {
		case errors.Is(err, io.EOF):
			return Submission{}, false
		case errors.Is(err, errLineTooLong):
			return Submission{Line: number, Err: api.NewProblem(api.TooLarge, "expected a line of at most %d bytes, but it is longer", api.BodyMax)}, true
		case err != nil:
			broken = api.ReadError(err)
			return Submission{}, false
		}
		request, err := s.Parse(line, "")
		if err != nil {
			return Submission{Line: number, Err: err, Size: len(line)}, true
		}
		return Submission{Line: number, Request: request, Size: 2 * len(line)}, true
	}
	var end api.BatchEnd
	places := map[int32]operation.Place{}
	emit := func(sub Submission, answer Answer, err error) error {
		end.Lines++
		line := api.BatchLine{Line: sub.Line}
		var refusal *schemas.Refusal
		if sub.Request != nil {
			line.Organization, line.ID = sub.Request.Organization, string(sub.Request.ID)
		} else if errors.As(sub.Err, &refusal) {
			line.Organization, line.ID = refusal.Org, string(refusal.ID)
		}
		switch {
		case sub.Err != nil:
			line.Problem = api.ProblemOf(refused(err))
		case err != nil:
			line.Problem = api.ProblemOf(problemOf(err))
		case answer.Rejection != nil:
			line.Problem = rejected(&answer)
		default:
			line.Accepted, line.Status, line.Unchanged = true, answer.Status.String(), answer.Unchanged
			line.Position = answer.Position().String()
			places[answer.Partition] = max(places[answer.Partition], answer.Place)
		}
		if line.Accepted {
			end.Accepted++
		} else {
			end.Refused++
		}
		return write(line)
	}
	if err := SubmitAll(r.Context(), s.Journal, s.InFlight, next, emit, flush); err != nil {
		return fmt.Errorf("answer a batch, whose caller has gone or takes nothing: %w", err)
	}
	last := api.BatchLine{Accepted: end.Refused == 0, End: &end}
	if broken != nil {
		last = api.BatchLine{Problem: api.ProblemOf(broken)}
	}
	end.Position = positions(places).String()
	if write(last) == nil {
		_ = flush() // the same
	}
	return nil
}

func positions(places map[int32]operation.Place) api.Positions {
	var list api.Positions
	for partition, place := range places {
		list = append(list, api.Position{Partition: partition, Place: place})
	}
	slices.SortFunc(list, func(a, b api.Position) int { return int(a.Partition) - int(b.Partition) })
	return list
}

// waitForRoom holds a batch back while the service is overloaded, so that its sender is slowed down by its own connection.
// It says whether to go on.
func (s *service) waitForRoom(ctx context.Context) bool {
	for {
		retryAfter, is := s.Overload()
		if !is {
			return ctx.Err() == nil
		}
		timer := time.NewTimer(min(max(retryAfter, 10*time.Millisecond), time.Second))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false
		}
	}
}

// deadlineReader gives every read its own time.
type deadlineReader struct {
	io.Reader
	rc *http.ResponseController
}

func (r deadlineReader) Read(p []byte) (int, error) {
	_ = r.rc.SetReadDeadline(time.Now().Add(batchIdle))
	return r.Reader.Read(p)
}

var errLineTooLong = errors.New("expected a shorter line")

// lineReader reads lines of bounded length and skips blank ones.
type lineReader struct {
	buffered *bufio.Reader
	number   int
}

// next returns a line, which is the caller's to keep, and its number. A line that is too long is read to its end.
func (l *lineReader) next() ([]byte, int, error) {
	for {
		l.number++
		var line []byte
		long := false
		for {
			part, err := l.buffered.ReadSlice('\n')
			if len(line)+len(part) > api.BodyMax+1 {
				line, long = nil, true
			}
			if !long {
				line = append(line, part...)
			}
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			if err != nil && (!errors.Is(err, io.EOF) || len(line) == 0 && !long) {
				return nil, l.number, err
			}
			break
		}
		if long {
			return nil, l.number, errLineTooLong
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			return line, l.number, nil
		}
	}
}

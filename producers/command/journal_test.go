package command_test

import (
	"context"
	"fmt"
	"sync"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/producers/command"
	"github.com/opstream/opstream/schemas"
)

const partitions = 4

// journal is a scheduler in memory: it decides and applies as the real one does, each partition by itself.
type journal struct {
	mu      sync.Mutex
	parts   [partitions]part
	now     operation.Time
	changed chan struct{} // closed at the next change
	order   []operation.ID

	// fail, if set, is asked before a command is taken.
	fail func(ctx context.Context, cmd *operation.Command) error
	// entered is told of each command before fail is asked.
	entered func(cmd *operation.Command)
}

type part struct {
	states map[string]*operation.State
	place  operation.Place
}

func newJournal() *journal {
	return &journal{now: 1_800_000_000_000_000, changed: make(chan struct{})}
}

func (j *journal) Do(ctx context.Context, cmd *operation.Command, key string) (command.Answer, error) {
	if j.entered != nil {
		j.entered(cmd)
	}
	if j.fail != nil {
		if err := j.fail(ctx, cmd); err != nil {
			return command.Answer{}, err
		}
	}
	if err := ctx.Err(); err != nil {
		return command.Answer{}, err
	}
	return j.decide(cmd, schemas.PartitionFor([]byte(key), partitions)), nil
}

func (j *journal) decide(cmd *operation.Command, partition int32) command.Answer {
	j.mu.Lock()
	defer j.mu.Unlock()
	p := &j.parts[partition]
	if p.states == nil {
		p.states = map[string]*operation.State{}
	}
	name := cmd.Org + "\x00" + string(cmd.ID)
	s := p.states[name]
	if s == nil {
		s = &operation.State{}
	}
	j.now++
	p.place++
	answer := command.Answer{Partition: partition, Place: p.place}
	if cmd.Kind == operation.Retry {
		cmd.Request = s.Request
		if cmd.Data != nil {
			cmd.Request = schemas.WithData(s.Request, cmd.Data)
		}
	}
	events, rejection := operation.Decide(nil, s, cmd, j.now)
	switch {
	case rejection != nil:
		answer.Rejection, answer.Event = rejection, operation.Rejected
		if rejection.Code == operation.InvalidTime {
			answer.Field = "until"
		}
		return answer
	case len(events) == 0:
		answer.Unchanged, answer.Event = true, operation.Unchanged
	}
	for i := range events {
		s.Apply(&events[i], p.place)
		answer.Event = events[i].Kind
	}
	if cmd.Kind == operation.Submit {
		j.order = append(j.order, cmd.ID)
	}
	p.states[name] = s
	answer.Status = s.Status
	close(j.changed)
	j.changed = make(chan struct{})
	return answer
}

// find returns the state and its partition, wherever it is.
func (j *journal) find(org string, id operation.ID) (operation.State, int32, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range j.parts {
		if s := j.parts[i].states[org+"\x00"+string(id)]; s != nil {
			return *s, int32(i), true
		}
	}
	return operation.State{}, 0, false
}

// work lets a worker say something of the operation's attempt, which it begins when none is open.
func (j *journal) work(org string, id operation.ID, cmd operation.Command) {
	s, partition, _ := j.find(org, id)
	cmd.Org, cmd.ID, cmd.Session = org, id, "session"
	if !s.Status.Locked() {
		j.decide(&operation.Command{Kind: operation.Dispatch, Org: org, ID: id, Session: "session"}, partition)
		s.Attempt++
	}
	if cmd.Kind == operation.Dispatch {
		return
	}
	cmd.Attempt = s.Attempt
	if a := j.decide(&cmd, partition); a.Rejection != nil {
		panic(fmt.Sprintf("expected the report to be taken, but: %v", a.Rejection))
	}
}

// tables shows the journal's states without delay; down says that it cannot.
type tables struct {
	journal *journal
	down    error
}

func (t *tables) Locate(_ context.Context, org string, id operation.ID, after api.Positions) (string, bool, error) {
	if t.down != nil {
		return "", false, t.down
	}
	for _, p := range after {
		if p.Partition >= partitions || p.Place > t.journal.parts[p.Partition].place {
			return "", false, api.NewProblem(api.ReadSideBehind, "not yet").At("after")
		}
	}
	s, _, ok := t.journal.find(org, id)
	if !ok || s.Request == nil {
		return "", false, nil
	}
	return s.Request.Key(), true, nil
}

func (t *tables) Await(ctx context.Context, org string, id operation.ID, _ api.Position, done func(*api.Operation) bool) (*api.Operation, error) {
	if t.down != nil {
		return nil, t.down
	}
	for {
		t.journal.mu.Lock()
		changed := t.journal.changed
		t.journal.mu.Unlock()
		s, partition, ok := t.journal.find(org, id)
		var o *api.Operation
		if ok {
			o = &api.Operation{
				Organization: org, ID: string(id), Type: s.Request.Type, Standing: api.StandingOf(s.Status),
				CreatedAt: s.CreatedAt.Go(), ModifiedAt: s.ModifiedAt.Go(), Position: api.Position{Partition: partition, Place: s.LastPlace}.String(),
			}
			if done(o) {
				return o, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return o, ctx.Err()
		}
	}
}

// pipe is a journal that takes commands in order without waiting for answers.
type pipe struct {
	*journal
	begun []operation.ID
}

func (p *pipe) Begin(ctx context.Context, cmd *operation.Command, key string) func() (command.Answer, error) {
	p.begun = append(p.begun, cmd.ID)
	answer, err := p.Do(ctx, cmd, key)
	return func() (command.Answer, error) { return answer, err }
}

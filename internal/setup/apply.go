package setup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// RefusedError says that a plan holds what must not be done, so that nothing of it was.
type RefusedError struct{ Plan *Plan }

func (e *RefusedError) Error() string {
	items := e.Plan.Of(Refuse)
	text := fmt.Sprintf("expected a plan that can be carried out, but %d of it must not be done, so nothing was changed", len(items))
	for _, it := range items {
		text += "\n  " + it.String()
	}
	return text
}

// String is the item in one line.
func (it Item) String() string {
	text := it.Topic
	if it.Setting != "" {
		if text != "" {
			text += " "
		}
		text += it.Setting
	}
	switch {
	case it.Is != "" && it.Want != "":
		text += fmt.Sprintf(" is %s, wanted %s", it.Is, it.Want)
	case it.Is != "":
		text += " is " + it.Is
	case it.Want != "":
		text += ": " + it.Want
	}
	if it.Reason != "" {
		if text != "" {
			text += ": "
		}
		text += it.Reason
	}
	if it.Next != "" {
		text += "; " + it.Next
	}
	return text
}

// rounds bounds how often [Make] and [Apply] look again: once for what only a created topic shows, and a few times for brokers that
// have not heard of the change yet.
const (
	rounds     = 20
	roundPause = 250 * time.Millisecond
)

// Apply carries a plan out, and returns the changes that were made when the brokers show them all. When a change is refused
// it returns a *[RefusedError] and has changed nothing. Any other error leaves some of the changes made; applying again goes on
// from there.
func Apply(ctx context.Context, client *kgo.Client, cfg Config) ([]Item, error) {
	return apply(ctx, client, cfg, Create, Grow, Set)
}

// CreateMissing carries out only what makes topics, and returns what was planned at first: a process that starts makes what it
// cannot do without, and leaves what is there to people.
func CreateMissing(ctx context.Context, client *kgo.Client, cfg Config) (*Plan, error) {
	plan, err := Make(ctx, client, cfg)
	if err != nil {
		return nil, err
	}
	for _, it := range plan.Of(Refuse) {
		// A number or a setting of a topic that exists: the scheduler judges for itself whether it can live with it.
		if it.Is == "missing" || it.Setting == Replication {
			return plan, &RefusedError{plan}
		}
	}
	_, err = apply(ctx, client, cfg, Create)
	return plan, err
}

func apply(ctx context.Context, client *kgo.Client, cfg Config, actions ...Action) ([]Item, error) {
	admin := kadm.NewClient(client)
	var done []Item
	for round := 0; ; round++ {
		plan, err := Make(ctx, client, cfg)
		if err != nil {
			return done, err
		}
		if refused := len(plan.Of(Refuse)) > 0; refused && len(actions) > 1 {
			return done, &RefusedError{plan}
		}
		todo := plan.Of(actions...)
		if len(todo) == 0 {
			return done, nil
		}
		if round == rounds {
			return done, fmt.Errorf("expected the brokers to show every change, but they do not: %s; look at the brokers' logs and plan again", todo[0])
		}
		for _, it := range todo {
			made, err := change(ctx, admin, it)
			if err != nil {
				return done, err
			}
			if made {
				done = append(done, it)
			}
		}
		select {
		case <-ctx.Done():
			return done, context.Cause(ctx)
		case <-time.After(min(time.Duration(round)*roundPause, time.Second)):
		}
	}
}

// change makes one change. It says whether it was this call that made it.
func change(ctx context.Context, admin *kadm.Client, it Item) (bool, error) {
	var err error
	switch it.Action {
	case Create:
		configs := make(map[string]*string, len(it.Configs))
		for k, v := range it.Configs {
			configs[k] = kadm.StringPtr(v)
		}
		var answer kadm.CreateTopicResponse
		answer, err = admin.CreateTopic(ctx, it.Partitions, it.Replication, configs, it.Topic)
		if errors.Is(err, kerr.TopicAlreadyExists) {
			return false, nil // somebody else was faster, or the answer to the first attempt was lost
		}
		if err != nil && answer.ErrMessage != "" {
			err = fmt.Errorf("%w (%s)", err, answer.ErrMessage)
		}
	case Grow:
		var to int
		if _, err = fmt.Sscan(it.Want, &to); err == nil {
			var answers kadm.CreatePartitionsResponses
			if answers, err = admin.UpdatePartitions(ctx, to, it.Topic); err == nil {
				err = answers.Error()
			}
		}
		if errors.Is(err, kerr.InvalidPartitions) {
			return false, nil // it has them by now; the next look tells
		}
	case Set:
		var answers kadm.AlterConfigsResponses
		answers, err = admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: it.Setting, Value: kadm.StringPtr(it.Want)}}, it.Topic)
		for _, a := range answers {
			if a.Err != nil && a.ErrMessage != "" {
				err = errors.Join(err, fmt.Errorf("%w (%s)", a.Err, a.ErrMessage))
			} else {
				err = errors.Join(err, a.Err)
			}
		}
	}
	if err != nil {
		return false, fmt.Errorf("%s %s: %w", it.Action, it, explain(err))
	}
	return true, nil
}

// explain adds what to do about errors whose names do not say it.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed), errors.Is(err, kerr.GroupAuthorizationFailed):
		return fmt.Errorf("%w; use a principal with the rights of the role %s (opstream topics acls --role %[2]s lists them)", err, RoleAdmin)
	case errors.Is(err, kerr.PolicyViolation):
		return fmt.Errorf("%w; a policy of the brokers forbids it: ask who runs them", err)
	case errors.Is(err, kerr.SecurityDisabled):
		return fmt.Errorf("%w; the brokers check no rights: set authorizer.class.name on every broker and controller first", err)
	}
	return err
}

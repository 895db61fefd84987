package producers

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/schemas"
)

// Target names the operation that a command is for. DependencyToken and PartitionKey must be as in its [Request], because
// they decide on which partition it lives; [Request.Target] fills them in.
type Target struct {
	Organization    string
	ID              string
	DependencyToken string
	PartitionKey    string
}

// By says who gives a command, and why; both are kept in the journal.
type By struct {
	Who, Reason string

	// ID is the command's own idempotency key: a second command with the same id changes nothing. Default: a random one, with
	// which the Kafka client's repetitions are recognised, but not another call.
	ID string
}

// Cancel asks for the operation to end. What has not begun ends at once; a handler that runs is told to stop.
func (c *Client) Cancel(ctx context.Context, t Target, by By) error {
	return c.command(ctx, t, by, &operation.Command{Kind: operation.Cancel})
}

// Pause keeps the operation from running until it is resumed.
func (c *Client) Pause(ctx context.Context, t Target, by By) error {
	return c.command(ctx, t, by, &operation.Command{Kind: operation.Pause})
}

// Resume lets an operation that waits run, whatever it waits for but the order of its dependency token.
func (c *Client) Resume(ctx context.Context, t Target, by By) error {
	return c.command(ctx, t, by, &operation.Command{Kind: operation.Resume})
}

// Postpone keeps the operation from running before until.
func (c *Client) Postpone(ctx context.Context, t Target, until time.Time, by By) error {
	if until.IsZero() {
		return &Error{Code: schemas.Required, Field: "until", Reason: "expected a time to postpone the operation to; use Resume to run it at once"}
	}
	return c.command(ctx, t, by, &operation.Command{Kind: operation.Postpone, Until: operation.TimeOf(until)})
}

// Retry runs a failed operation again; data replaces its input, nil keeps it.
func (c *Client) Retry(ctx context.Context, t Target, data any, by By) error {
	raw, err := encodeData(data)
	if err != nil {
		return err
	}
	return c.command(ctx, t, by, &operation.Command{Kind: operation.Retry, Data: raw})
}

// Delete removes an operation that has ended from the tables; the journal keeps its history.
func (c *Client) Delete(ctx context.Context, t Target, by By) error {
	return c.command(ctx, t, by, &operation.Command{Kind: operation.Delete})
}

func (c *Client) command(ctx context.Context, t Target, by By, cmd *operation.Command) error {
	if t.ID == "" {
		return &Error{Code: schemas.Required, Field: "id", Reason: "expected the id of the operation that the command is for"}
	}
	cmd.Org, cmd.ID = t.Organization, operation.ID(t.ID)
	cmd.By = operation.By{Who: by.Who, Reason: by.Reason}
	if cmd.CommandID = by.ID; by.ID == "" {
		cmd.CommandID = uuid.NewString()
	}
	rec, err := c.checked(cmd, operation.Key(t.Organization, t.PartitionKey, t.DependencyToken, cmd.ID))
	if err != nil {
		return err
	}
	return c.sync(ctx, rec)
}

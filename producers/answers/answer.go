package answers

import (
	"fmt"
	"strings"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/producers/command"
	"github.com/opstream/opstream/schemas"
)

// read makes the answer of a call that is over. The event is decoded here, where it is waited for, and not in the one
// goroutine that reads for all.
func (p *partition) read(c *call) (command.Answer, error) {
	if c.err != nil {
		return command.Answer{}, c.err
	}
	event, err := schemas.DecodeEvent(c.rec)
	if err != nil {
		return command.Answer{}, p.unheard(c, "it came, and this version cannot read it", err)
	}
	if event.Kind == operation.Forwarded {
		return command.Answer{}, p.unheard(c, fmt.Sprintf("the command belongs on partition %d and was forwarded there, where its answer will stand", event.To), nil)
	}
	a := command.Answer{Partition: p.number, Place: operation.Place(c.rec.Offset), Event: event.Kind}
	switch event.Kind {
	case operation.Rejected:
		a.Rejection = &operation.Rejection{Code: event.Code, Reason: event.Reason}
		a.Field, a.Rejection.Reason = fieldOf(event.Code, event.Reason)
	case operation.Unchanged:
		a.Unchanged, a.Status = true, event.Status
	default:
		// What the operation is after the event follows from the event alone.
		var after operation.State
		after.Apply(&event, a.Place)
		a.Status = after.Status
	}
	return a, nil
}

// fieldOf takes the field's name off a reason of the border, which the journal keeps as "field: reason".
func fieldOf(code operation.RejectionCode, reason string) (field, rest string) {
	if _, border := schemas.Reasons[code]; border {
		if field, rest, ok := strings.Cut(reason, ": "); ok && !strings.Contains(field, " ") {
			return field, rest
		}
	}
	return "", reason
}

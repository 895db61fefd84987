package schemas

import (
	"bytes"
	"fmt"
	"math"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
)

// ParseRequest reads the data of an operation.requested message from outside. ceID, the event's id, is the operation's id
// when the data has none. The error is a *[DecodeError] or a *[Refusal]; with a refusal the request holds what could be
// read, and must not be used for anything but the answer.
//
// Raw is normalised: members in the order of the registry, no white space, defaults left out, data compacted but otherwise
// byte for byte. So the same request written in two ways is the same request, and parsing Raw gives it again. A retry
// policy is written out in full, because what it means must not change with the defaults of a later version.
func ParseRequest(data []byte, ceID string) (*operation.Request, error) {
	q, refusal, err := parseRequest(data, ceID)
	if err != nil {
		return nil, err
	}
	if refusal != nil {
		return q, refusal
	}
	return q, nil
}

func parseRequest(data []byte, ceID string) (*operation.Request, *Refusal, *DecodeError) {
	r := newReader(data, MaxRequestBytes)
	q := new(operation.Request)
	r.request(q, false)
	if err := r.end(); err != nil {
		return nil, nil, err
	}
	if q.ID == "" {
		q.ID = operation.ID(ceID)
	}
	if r.refusal == nil {
		r.refusal = validateRequest(q)
	}
	if r.refusal != nil {
		r.refusal.Kind = operation.Submit
		r.refusal.Org, r.refusal.ID = answerable(q.Organization, MaxOrganization), operation.ID(answerable(string(q.ID), MaxID))
		return q, r.refusal, nil
	}
	q.Raw = AppendRequest(make([]byte, 0, rawSize(q)), q)
	if len(q.Raw) > MaxRequestBytes { // its id may have come from elsewhere, and its retry policy is written out
		r.refusal = &Refusal{
			Code: TooLarge, Reason: fmt.Sprintf("expected a request of at most %d bytes with its id and its policies written out, but got %d", MaxRequestBytes, len(q.Raw)),
			Kind: operation.Submit, Org: q.Organization, ID: q.ID,
		}
		return q, r.refusal, nil
	}
	if q.Data != nil { // one copy is enough
		q.Data = q.Raw[len(q.Raw)-1-len(q.Data) : len(q.Raw)-1 : len(q.Raw)-1]
	}
	return q, nil, nil
}

// answerable returns s if it may stand in the journal, else "": an answer must not carry what it refuses.
func answerable(s string, limit int) string {
	if len(s) > limit || !clean(s) {
		return ""
	}
	return s
}

// ReadRequest reads a request that was accepted before, from Raw as the journal, work items and checkpoints hold it. It
// does not judge it again and keeps its bytes as they are: limits and defaults may have changed since. raw may be reused
// afterwards.
func ReadRequest(raw []byte) (*operation.Request, error) {
	r := newOwnReader(raw)
	r.space()
	q := r.accepted("")
	if err := r.own(); err != nil {
		return nil, err
	}
	return q, nil
}

// accepted reads the accepted request that follows, for any message that carries one.
func (r *reader) accepted(member string) *operation.Request {
	q, outer, from := new(operation.Request), r.prefix, r.i
	if member != "" {
		r.prefix = outer + member + "."
	}
	r.request(q, true)
	if r.err != nil {
		return q
	}
	r.name = nil
	if r.refusal == nil && (q.ID == "" || q.Organization == "" || q.Type == "") {
		r.fail(MissingField, "expected an accepted request to have id, organization and type")
	}
	r.prefix = outer
	q.Raw = bytes.Clone(r.b[from:r.i])
	if q.Data != nil {
		at := r.dataAt - from
		q.Data = q.Raw[at : at+len(q.Data) : at+len(q.Data)]
	}
	return q
}

// request reads the request object that follows. Data of an accepted request is a part of the input.
func (r *reader) request(q *operation.Request, accepted bool) {
	q.Priority = operation.PriorityDefault
	var ctx operation.Context
	for o := r.object(); r.next(o); {
		switch string(r.name) {
		case "id":
			q.ID = operation.ID(r.str())
		case "organization":
			q.Organization = r.str()
		case "type":
			q.Type = r.str()
		case "name":
			q.Name = r.str()
		case "dependencyToken":
			q.DependencyToken = r.str()
		case "onUpstreamFailure":
			name := r.text()
			policy, ok := operation.ParseUpstreamPolicy(string(name))
			if !ok {
				r.refuse(UnknownValue, "expected release, block or cancel, but got %.64q", name)
			}
			q.OnUpstreamFailure = policy
		case "partitionKey":
			q.ExplicitKey = r.str()
		case "priority":
			q.Priority = int8(r.integer(operation.PriorityMin, operation.PriorityMax))
		case "postponeUntil":
			q.PostponeUntil = r.instant()
		case "timeLimit":
			q.TimeLimit = r.duration()
		case "retry":
			policy := retry.Default
			q.Retry = &policy
			r.policy(q.Retry)
		case "correlationId":
			ctx.CorrelationID = r.str()
		case "requestId":
			ctx.RequestID = r.str()
		case "depth":
			ctx.Depth = int32(r.integer(0, math.MaxInt32))
		case "messageName":
			ctx.MessageName = r.str()
		case "primaryEntityType":
			ctx.PrimaryEntityType = r.str()
		case "regarding":
			r.regarding(&ctx)
		case "ownerId":
			ctx.OwnerID = r.str()
		case "callerOrigin":
			ctx.CallerOrigin = r.str()
		case "createdBy":
			ctx.CreatedBy = r.str()
		case "data":
			if accepted {
				r.dataAt = r.i
				q.Data = r.raw()
			} else {
				q.Data = r.opaque(MaxRequestBytes)
			}
		default:
			r.unknown()
		}
	}
	if ctx != (operation.Context{}) {
		q.Context = &ctx
	}
}

func (r *reader) regarding(ctx *operation.Context) {
	outer, o := r.enter("regarding")
	for r.next(o) {
		switch string(r.name) {
		case "type":
			ctx.RegardingType = r.str()
		case "id":
			ctx.RegardingID = r.str()
		case "name":
			ctx.RegardingName = r.str()
		default:
			r.unknown()
		}
	}
	r.leave(outer)
}

func (r *reader) policy(p *retry.Policy) {
	outer, o := r.enter("retry")
	for r.next(o) {
		switch string(r.name) {
		case "maxAttempts":
			p.MaxAttempts = int(r.integer(1, maxAttempts))
		case "initial":
			p.Initial = r.duration()
		case "max":
			p.Max = r.duration()
		case "multiplier":
			p.Multiplier = r.float()
		case "jitter":
			p.Jitter = r.float()
		case "giveUpAfter":
			p.GiveUpAfter = r.duration()
		default:
			r.unknown()
		}
	}
	r.leave(outer)
}

const maxAttempts = 10_000

func rawSize(q *operation.Request) int {
	n := 160 + len(q.Data) + len(q.ID) + len(q.Organization) + len(q.Type) + len(q.Name) + len(q.DependencyToken) + len(q.ExplicitKey)
	if q.Retry != nil {
		n += 120
	}
	if c := q.Context; c != nil {
		n += 200 + len(c.CorrelationID) + len(c.RequestID) + len(c.MessageName) + len(c.PrimaryEntityType) + len(c.RegardingType) +
			len(c.RegardingID) + len(c.RegardingName) + len(c.OwnerID) + len(c.CallerOrigin) + len(c.CreatedBy)
	}
	return n
}

// AppendRequest appends q as normalised JSON, from its fields; q.Raw is not looked at.
func AppendRequest(dst []byte, q *operation.Request) []byte {
	o := object{b: dst}
	o.open()
	o.strOpt("id", string(q.ID))
	o.strOpt("organization", q.Organization)
	o.strOpt("type", q.Type)
	o.strOpt("name", q.Name)
	o.strOpt("dependencyToken", q.DependencyToken)
	if q.OnUpstreamFailure != operation.UpstreamRelease {
		o.str("onUpstreamFailure", q.OnUpstreamFailure.String())
	}
	o.strOpt("partitionKey", q.ExplicitKey)
	if q.Priority != operation.PriorityDefault {
		o.int("priority", int64(q.Priority))
	}
	o.timeOpt("postponeUntil", q.PostponeUntil)
	o.durationOpt("timeLimit", q.TimeLimit)
	if p := q.Retry; p != nil {
		o.member("retry")
		o.open()
		o.int("maxAttempts", int64(p.MaxAttempts))
		o.duration("initial", p.Initial)
		o.duration("max", p.Max)
		o.float("multiplier", p.Multiplier)
		o.float("jitter", p.Jitter)
		o.duration("giveUpAfter", p.GiveUpAfter)
		o.close()
	}
	if c := q.Context; c != nil {
		o.strOpt("correlationId", c.CorrelationID)
		o.strOpt("requestId", c.RequestID)
		o.intOpt("depth", int64(c.Depth))
		o.strOpt("messageName", c.MessageName)
		o.strOpt("primaryEntityType", c.PrimaryEntityType)
		if c.RegardingType != "" || c.RegardingID != "" || c.RegardingName != "" {
			o.member("regarding")
			o.open()
			o.strOpt("type", c.RegardingType)
			o.strOpt("id", c.RegardingID)
			o.strOpt("name", c.RegardingName)
			o.close()
		}
		o.strOpt("ownerId", c.OwnerID)
		o.strOpt("callerOrigin", c.CallerOrigin)
		o.strOpt("createdBy", c.CreatedBy)
	}
	if q.Data != nil {
		o.raw("data", q.Data)
	}
	o.close()
	return o.b
}

// WithData returns the accepted request q with other data, as a corrected retry has it. data must be valid JSON; nil keeps
// what q has.
func WithData(q *operation.Request, data []byte) *operation.Request {
	if data == nil {
		return q
	}
	corrected := *q
	corrected.Data = compact(make([]byte, 0, len(data)), data)
	corrected.Raw = AppendRequest(make([]byte, 0, rawSize(&corrected)), &corrected)
	corrected.Data = corrected.Raw[len(corrected.Raw)-1-len(corrected.Data) : len(corrected.Raw)-1 : len(corrected.Raw)-1]
	return &corrected
}

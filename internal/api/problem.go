package api

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/schemas"
)

// Fault says who has to change something before the request can succeed.
type Fault string

// The faults.
const (
	FaultCaller  Fault = "caller"
	FaultHandler Fault = "handler"
	FaultService Fault = "service"
)

// Code names a kind of problem. It is stable: programs decide by it, and the problem's type URI ends in it.
type Code string

// The codes of the border. The journal's rejections (operation.RejectionCode) and what package schemas refuses
// (schemas.Code) are codes as well.
const (
	InvalidRequest      Code = "invalid_request"
	InvalidParameter    Code = "invalid_parameter"
	UnknownParameter    Code = "unknown_parameter"
	InvalidCursor       Code = "invalid_cursor"
	TooLarge            Code = "too_large"
	NotJSON             Code = "unsupported_media_type"
	TooSlow             Code = "request_timeout"
	NoSuchPath          Code = "no_such_path"
	NoSuchProblem       Code = "no_such_problem"
	MethodNotAllowed    Code = "method_not_allowed"
	CrossOrigin         Code = "cross_origin"
	Overloaded          Code = "overloaded"
	LogUnavailable      Code = "log_unavailable"
	OutcomeUnknown      Code = "outcome_unknown"
	ReadSideBehind      Code = "read_side_behind"
	ReadSideUnavailable Code = "read_side_unavailable"
	TooManyListeners    Code = "too_many_listeners"
	NotServing          Code = "not_serving"
	Internal            Code = "internal"
	Refused             Code = "refused"
)

// Kind is one line of the table of problems.
type Kind struct {
	Code      Code
	Status    int
	Fault     Fault
	Retryable bool   // the same request may succeed later
	Title     string // what is wrong, in general
	Next      string // what to do
}

// Kinds returns the table of problems, by code. It is the only one: what the service answers, what GET /problems/{code}
// explains, and what a command line makes its exit status of.
func Kinds() []Kind { return slices.Clone(kinds) }

var kinds = table(
	[]Kind{
		{InvalidRequest, 400, FaultCaller, false, "The request is not as the contract says", "mend what the detail names; the contract is at /openapi.yaml"},
		{InvalidParameter, 400, FaultCaller, false, "A parameter has a value that it cannot have", "mend the parameter that the field names"},
		{UnknownParameter, 400, FaultCaller, false, "There is no query parameter of that name here", "leave it out, or look up its name at /openapi.yaml"},
		{InvalidCursor, 400, FaultCaller, false, "The cursor does not belong to this list", "begin the list again without a cursor, with the same filters throughout"},
		{TooLarge, 413, FaultCaller, false, "The request is too large", "send less; put large data where the handler can fetch it"},
		{NotJSON, 415, FaultCaller, false, "The body is of a type that is not read here", "send the media type that the detail names, without content encoding"},
		{TooSlow, 408, FaultCaller, true, "The request did not arrive in time", "send it again, with the same id, over a faster connection"},
		{NoSuchPath, 404, FaultCaller, false, "There is nothing at this path", "look up the paths at /openapi.yaml; percent-encode what stands between two slashes"},
		{NoSuchProblem, 404, FaultCaller, false, "There is no problem of that name", "look up the codes at /problems"},
		{MethodNotAllowed, 405, FaultCaller, false, "The path does not know this method", "use one of the methods in the header Allow"},
		{CrossOrigin, 403, FaultCaller, false, "A page of another origin may not give commands here", "send the command from a program, or from a page of this origin"},
		{Overloaded, 429, FaultService, true, "The service has more work than it can take", "send it again, with the same id, after the time in Retry-After"},
		{LogUnavailable, 503, FaultService, true, "The event log cannot be written", "send it again, with the same id, after the time in Retry-After"},
		{OutcomeUnknown, 504, FaultService, true, "The command was sent, but the answer to it was not heard", "send it again under the same id or Idempotency-Key: if it took effect, the answer will say so, and nothing happens twice"},
		{ReadSideBehind, 503, FaultService, true, "The tables do not show yet what was asked for", "read again after the time in Retry-After, or wait longer with Prefer: wait=N"},
		{ReadSideUnavailable, 503, FaultService, true, "The tables cannot be read", "read again after the time in Retry-After; commands need no tables when they give dependencyToken, partitionKey or a default key"},
		{TooManyListeners, 503, FaultService, true, "Too many clients listen for updates", "listen again after the time in Retry-After, or poll"},
		{NotServing, 503, FaultService, true, "The process is not ready", "send requests to another process until this one is"},
		{Internal, 500, FaultService, true, "The service failed", "send it again, with the same id; if it happens again, tell the operator the time and the path"},
		// Also of package schemas, for a text that is no time.
		{Code(operation.InvalidTime), 400, FaultCaller, false, "The time is none that can be waited for", "give a time in the future, as in RFC 3339; to run a postponed operation at once, resume it"},
		{Refused, 409, FaultCaller, false, "The command was refused", "read the detail"},
	},
	rejections(map[operation.RejectionCode]int{
		operation.NotFound:   404,
		operation.Forgotten:  410,
		operation.WasDeleted: 410,

		operation.PlatformJob: 403,

		operation.KeyReused:        409,
		operation.AlreadyDone:      409,
		operation.NotReady:         409,
		operation.NotLocked:        409,
		operation.StaleAttempt:     409,
		operation.LeaseLost:        409,
		operation.NotSuspended:     409,
		operation.WaitsForUpstream: 409,
		operation.IsCanceling:      409,
		operation.NotFailed:        409,
		operation.NotCompleted:     409,
	}),
	refusals(),
)

var titles = map[operation.RejectionCode]string{
	operation.NotFound:         "There is no such operation",
	operation.KeyReused:        "The id was used for another request",
	operation.AlreadyDone:      "The operation has ended",
	operation.NotReady:         "The operation is not ready",
	operation.NotLocked:        "No attempt of the operation is open",
	operation.StaleAttempt:     "The attempt is not the current one",
	operation.LeaseLost:        "The session's lease was lost",
	operation.NotSuspended:     "The operation is not suspended",
	operation.WaitsForUpstream: "An earlier operation of the same dependency token has not ended",
	operation.IsCanceling:      "The operation is being canceled",
	operation.NotFailed:        "The operation has not failed",
	operation.NotCompleted:     "The operation has not ended",
	operation.PlatformJob:      "The operation belongs to the platform",
	operation.Forgotten:        "The operation ended too long ago",
	operation.WasDeleted:       "The operation was deleted",
}

// rejections makes lines of the journal's codes, whose sentences say what to do already. What a handler's attempt is told
// is the handler's fault, all else the caller's.
func rejections(statuses map[operation.RejectionCode]int) []Kind {
	var list []Kind
	for code, status := range statuses {
		fault := FaultCaller
		switch code {
		case operation.StaleAttempt, operation.LeaseLost, operation.NotLocked:
			fault = FaultHandler
		}
		// These pass by themselves when the operation moves on.
		retryable := code == operation.WaitsForUpstream || code == operation.IsCanceling || code == operation.NotCompleted
		list = append(list, Kind{Code(code), status, fault, retryable, titles[code], advice(operation.Reasons[code])})
	}
	return list
}

// refusals makes lines of what package schemas refuses: the message itself is wrong, and its sender has to mend it.
func refusals() []Kind {
	var list []Kind
	for code, reason := range schemas.Reasons {
		list = append(list, Kind{Code(code), http.StatusBadRequest, FaultCaller, false, "The request is not as its schema says", advice(reason)})
	}
	return list
}

// advice is what a reason of the journal or the schemas says to do: they are of the form "what is wrong; what to do".
func advice(reason string) string {
	if _, next, ok := strings.Cut(reason, "; "); ok {
		return next
	}
	return reason
}

// table sorts the lines by code; of two with one code the first counts.
func table(parts ...[]Kind) []Kind {
	list := slices.Concat(parts...)
	slices.SortStableFunc(list, func(a, b Kind) int { return cmp.Compare(a.Code, b.Code) })
	return slices.CompactFunc(list, func(a, b Kind) bool { return a.Code == b.Code })
}

var kindByCode = func() map[Code]Kind {
	m := make(map[Code]Kind, len(kinds))
	for _, k := range kinds {
		m[k.Code] = k
	}
	return m
}()

// KindOf returns the line of a code.
func KindOf(code Code) (Kind, bool) { k, ok := kindByCode[code]; return k, ok }

// Codes returns all codes, sorted.
func Codes() []Code { return slices.Sorted(maps.Keys(kindByCode)) }

// Problem is an answer "no", as RFC 9457 writes it down. It is an error, so that handlers can return it and the client
// does.
type Problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail,omitempty"`
	Code      Code   `json:"code"`
	Fault     Fault  `json:"fault"`
	Retryable bool   `json:"retryable"`
	Next      string `json:"next"`
	Field     string `json:"field,omitempty"`    // what is wrong: a member of the body (a JSON pointer), or a parameter
	Position  string `json:"position,omitempty"` // of the rejection, when it was journaled

	// RetryAfter is sent as a header, in whole seconds.
	RetryAfter time.Duration `json:"-"`
	// Cause is logged, and not sent.
	Cause error `json:"-"`
}

// NewProblem makes a problem of the kind that code names. A code that the table does not have, one of a later version
// perhaps, is shown as it is, as a refusal.
func NewProblem(code Code, format string, args ...any) *Problem {
	k, ok := kindByCode[code]
	if !ok {
		k = kindByCode[Refused]
		k.Code = code
	}
	p := &Problem{
		Type: "/problems/" + string(k.Code), Title: k.Title, Status: k.Status, Code: k.Code,
		Fault: k.Fault, Retryable: k.Retryable, Next: k.Next, Detail: fmt.Sprintf(format, args...),
	}
	if k.Status == http.StatusTooManyRequests || k.Status == http.StatusServiceUnavailable {
		p.RetryAfter = time.Second
	}
	return p
}

// At names what is wrong.
func (p *Problem) At(field string) *Problem { p.Field = field; return p }

// Because keeps the error behind the problem, for the log.
func (p *Problem) Because(err error) *Problem { p.Cause = err; return p }

func (p *Problem) Error() string {
	s := string(p.Code) + ": " + p.Detail
	if p.Detail == "" {
		s = string(p.Code) + ": " + p.Title
	}
	if p.Field != "" {
		s += " (" + p.Field + ")"
	}
	return s + "; " + p.Next
}

func (p *Problem) Unwrap() error { return p.Cause }

// ProblemOf returns the problem that err is or wraps; any other error is the service's own failure, whose text stays here.
func ProblemOf(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	return NewProblem(Internal, "").Because(err)
}

// ProblemType is the media type of problems.
const ProblemType = "application/problem+json"

func writeProblem(w http.ResponseWriter, p *Problem) {
	body, err := json.Marshal(p)
	if err != nil {
		body = []byte(`{"type":"/problems/internal","title":"The service failed","status":500,"code":"internal","fault":"service","retryable":true,"next":"send it again"}`)
	}
	h := w.Header()
	h.Set("Content-Type", ProblemType)
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((p.RetryAfter+time.Second-1)/time.Second)))
	}
	if p.Position != "" {
		h.Set(HeaderPosition, p.Position)
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n')) // a client that has gone needs no answer
}

package command

import (
	"context"
	"errors"
	"net/http"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"golang.org/x/sync/semaphore"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/schemas"
)

// Config is what the command half needs.
type Config struct {
	Journal Journal
	// Parse reads a request; id is the operation's when the request names none. Default schemas.ParseRequest.
	Parse func(data []byte, id string) (*operation.Request, error)
	// Locator finds operations for commands that do not say their partition key; nil: there are no tables here.
	Locator Locator
	// Effects waits for effects; nil: Prefer: wait is not honoured.
	Effects Effects
	// Overload says whether commands must wait, and for how long; nil: never.
	Overload func() (retryAfter time.Duration, overloaded bool)
	// NewID makes ids for what came without one; nil: UUIDs of version 7.
	NewID func() string
	// Timeout bounds the wait for the scheduler's answer. Default 10 s.
	Timeout time.Duration
	// InFlight bounds how many lines of one batch are under way at a time. Default 1024.
	InFlight int
	// BodyBytes bounds the bodies of single commands that are read or wait for their answer, all together. Each is kept up to three times
	// until then: as it came, normalised, and as a record. What is too much is refused as overloaded. Default 64 MiB.
	BodyBytes int64
	// Batches bounds how many batches are taken at a time; each may have 8 MiB under way. More are refused as overloaded. Default 32.
	Batches int
}

func (c Config) withDefaults() Config {
	if c.Parse == nil {
		c.Parse = schemas.ParseRequest
	}
	if c.Overload == nil {
		c.Overload = func() (time.Duration, bool) { return 0, false }
	}
	if c.NewID == nil {
		c.NewID = func() string { return uuid.Must(uuid.NewV7()).String() }
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	if c.InFlight == 0 {
		c.InFlight = 1024
	}
	if c.BodyBytes == 0 {
		c.BodyBytes = 64 << 20
	}
	if c.Batches == 0 {
		c.Batches = 32
	}
	return c
}

// Routes returns the routes with the tag command.
func Routes(config Config) []api.Route {
	config = config.withDefaults()
	s := &service{config, semaphore.NewWeighted(config.BodyBytes), make(chan struct{}, config.Batches)}
	const one = "/v1/organizations/{organization}/operations/{id}"
	find := []string{"partitionKey", "dependencyToken", "after"}
	routes := []api.Route{
		{Method: http.MethodPost, Path: "/v1/operations", Body: true, Handle: s.metered(s.submit)},
		{Method: http.MethodPost, Path: "/v1/operations:batch", Body: true, Stream: true, Handle: s.batch},
		{Method: http.MethodDelete, Path: one, Query: append([]string{"by", "reason"}, find...), Handle: s.delete},
	}
	for _, kind := range []operation.CommandKind{operation.Cancel, operation.Pause, operation.Resume, operation.Postpone, operation.Retry} {
		routes = append(routes, api.Route{
			Method: http.MethodPost, Path: one + "/" + kind.String(), Query: find, Body: true,
			Handle: s.metered(func(w http.ResponseWriter, r *http.Request) error { return s.command(w, r, kind) }),
		})
	}
	return routes
}

type service struct {
	Config

	bodies  *semaphore.Weighted
	batches chan struct{}
}

func (s *service) submit(w http.ResponseWriter, r *http.Request) error {
	if err := s.room(); err != nil {
		return err
	}
	if err := api.CheckMediaType(r, "application/json"); err != nil {
		return err
	}
	body, err := api.ReadBody(r)
	if err != nil {
		return err
	}
	key, err := api.CommandID(r)
	if err != nil {
		return err
	}
	id := key
	if id == "" {
		id = s.NewID()
	}
	request, err := s.Parse(body, id)
	if err != nil {
		return refused(err)
	}
	if key != "" && string(request.ID) != key {
		return api.NewProblem(api.InvalidParameter, "expected the id of the body and the header %s to be the same, but they differ; one of them is enough", api.HeaderIdempotencyKey).At(api.HeaderIdempotencyKey)
	}
	return s.do(w, r, submission(request), request.Key(), func(o *api.Operation) bool { return o.Ended() })
}

func submission(r *operation.Request) *operation.Command {
	return &operation.Command{Kind: operation.Submit, Org: r.Organization, ID: r.ID, CommandID: string(r.ID), Request: r}
}

// refused turns what schemas has against a request into an answer.
func refused(err error) error {
	var refusal *schemas.Refusal
	if errors.As(err, &refusal) {
		return api.NewProblem(api.Code(refusal.Code), "%s", refusal.Reason).At(refusal.Field)
	}
	var broken *schemas.DecodeError
	if errors.As(err, &broken) {
		return api.NewProblem(api.Code(broken.Code), "%s", broken.Reason).At(broken.Field)
	}
	return err
}

func (s *service) command(w http.ResponseWriter, r *http.Request, kind operation.CommandKind) error {
	if err := s.room(); err != nil {
		return err
	}
	var body api.CommandBody
	if r.ContentLength != 0 {
		if err := api.CheckMediaType(r, "application/json"); err != nil {
			return err
		}
		data, err := api.ReadBody(r)
		if err != nil {
			return err
		}
		if err := api.Decode(data, &body); err != nil {
			return err
		}
	}
	cmd, err := s.addressed(r, kind, operation.By{Who: body.By, Reason: body.Reason})
	if err != nil {
		return err
	}
	if kind == operation.Postpone {
		if cmd.Until, err = parseTime(body.Until); err != nil {
			return err
		}
	} else if body.Until != "" {
		return api.NewProblem(api.InvalidRequest, "only postpone takes a time").At("/until")
	}
	if kind == operation.Retry {
		cmd.Data = body.Data
	} else if body.Data != nil {
		return api.NewProblem(api.InvalidRequest, "only retry takes data").At("/data")
	}
	return s.steer(w, r, cmd)
}

func (s *service) delete(w http.ResponseWriter, r *http.Request) error {
	if err := s.room(); err != nil {
		return err
	}
	query := r.URL.Query()
	cmd, err := s.addressed(r, operation.Delete, operation.By{Who: query.Get("by"), Reason: query.Get("reason")})
	if err != nil {
		return err
	}
	return s.steer(w, r, cmd)
}

// addressed makes the command for the operation that the path names.
func (s *service) addressed(r *http.Request, kind operation.CommandKind, by operation.By) (*operation.Command, error) {
	org, err := api.PathName(r, "organization")
	if err != nil {
		return nil, err
	}
	id, err := api.PathName(r, "id")
	if err != nil {
		return nil, err
	}
	if err := checkText("by", by.Who, schemas.MaxText); err != nil {
		return nil, err
	}
	if err := checkText("reason", by.Reason, schemas.MaxReason); err != nil {
		return nil, err
	}
	commandID, err := api.CommandID(r)
	if err != nil {
		return nil, err
	}
	if commandID == "" {
		commandID = s.NewID()
	}
	return &operation.Command{Kind: kind, Org: org, ID: operation.ID(id), CommandID: commandID, By: by}, nil
}

func checkText(field, text string, limit int) error {
	switch {
	case len(text) > limit:
		return api.NewProblem(api.InvalidRequest, "expected at most %d bytes, but got %d", limit, len(text)).At(field)
	case !utf8.ValidString(text) || containsControl(text):
		return api.NewProblem(api.InvalidRequest, "expected text without control characters").At(field)
	}
	return nil
}

// containsControl says whether text holds control characters other than line ends and tabs.
func containsControl(text string) bool {
	for _, c := range text {
		if unicode.IsControl(c) && c != '\n' && c != '\r' && c != '\t' {
			return true
		}
	}
	return false
}

func parseTime(text string) (operation.Time, error) {
	if text == "" {
		return 0, api.NewProblem(api.InvalidRequest, "postpone needs the time until which").At("/until")
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil || t.UTC().Year() < 1 || t.UTC().Year() > 9999 {
		return 0, api.NewProblem(api.InvalidRequest, "expected a time as in RFC 3339, such as 2030-01-31T08:00:00Z").At("/until")
	}
	return operation.TimeOf(t), nil
}

// steer finds the operation's partition and does the command.
func (s *service) steer(w http.ResponseWriter, r *http.Request, cmd *operation.Command) error {
	key, err := s.locate(r, cmd)
	if err != nil {
		return err
	}
	// The scheduler's own decoder judges it: what that could not read would be set aside, and never be answered.
	if _, err := schemas.DecodeCommand(schemas.EncodeCommand(schemas.Topics{}, cmd, []byte(key))); err != nil {
		return refused(err)
	}
	return s.do(w, r, cmd, key, func(o *api.Operation) bool { return o.Settled() })
}

// locate finds the partition key: the caller says it, or the tables do. An operation that the tables do not have may yet be
// on the log; if it has no token its key is its id, and in that partition the scheduler knows better than the tables.
func (s *service) locate(r *http.Request, cmd *operation.Command) (string, error) {
	query := r.URL.Query()
	explicit, token := query.Get("partitionKey"), query.Get("dependencyToken")
	for name, text := range map[string]string{"partitionKey": explicit, "dependencyToken": token} {
		if len(text) > schemas.MaxText {
			return "", api.NewProblem(api.InvalidParameter, "expected at most %d bytes, as of any request, but got %d", schemas.MaxText, len(text)).At(name)
		}
	}
	if explicit != "" || token != "" || s.Locator == nil {
		return operation.Key(cmd.Org, explicit, token, cmd.ID), nil
	}
	var after api.Positions
	if text := query.Get("after"); text != "" {
		var err error
		if after, err = api.ParsePositions(text); err != nil {
			return "", api.NewProblem(api.InvalidParameter, "%s", err).At("after")
		}
	}
	key, found, err := s.Locator.Locate(r.Context(), cmd.Org, cmd.ID, after)
	if err != nil {
		return "", err
	}
	if !found {
		key = operation.Key(cmd.Org, "", "", cmd.ID)
	}
	return key, nil
}

// room refuses early while the service is overloaded.
func (s *service) room() error {
	if retryAfter, is := s.Overload(); is {
		return overloaded(retryAfter)
	}
	return nil
}

// do puts the command on the log, waits for what the caller prefers to wait for, and answers.
func (s *service) do(w http.ResponseWriter, r *http.Request, cmd *operation.Command, key string, done func(*api.Operation) bool) error {
	ctx, cancel := context.WithTimeout(r.Context(), s.Timeout)
	answer, err := s.Journal.Do(ctx, cmd, key)
	cancel()
	if err != nil {
		return problemOf(err)
	}
	if answer.Rejection != nil {
		p := rejected(&answer)
		if answer.Rejection.Code == operation.NotFound {
			p.Detail += "; if it was submitted with a dependencyToken or partitionKey a moment ago, give that, or after= with the position of its acceptance"
		}
		return p
	}
	out := outcome(cmd, &answer)
	if wait, given := api.PreferredWait(r.Header); given && s.Effects != nil && answer.Status != operation.StatusDeleted {
		ctx, cancel := context.WithTimeout(r.Context(), wait)
		o, err := s.Effects.Await(ctx, cmd.Org, cmd.ID, answer.Position(), done)
		cancel()
		if o != nil {
			out.Standing, out.Operation = o.Standing, o
		}
		if err == nil || errors.Is(err, context.DeadlineExceeded) {
			api.ApplyWait(w, wait)
		}
	}
	status := http.StatusOK
	if shown := (&api.Operation{Standing: out.Standing}); !done(shown) {
		status = http.StatusAccepted
	}
	w.Header().Set(api.HeaderPosition, out.Position)
	return api.WriteJSON(w, status, out)
}

func outcome(cmd *operation.Command, a *Answer) api.Outcome {
	return api.Outcome{
		Organization: cmd.Org, ID: string(cmd.ID), Standing: api.StandingOf(a.Status),
		Event: a.Event.String(), Unchanged: a.Unchanged, Position: a.Position().String(),
	}
}

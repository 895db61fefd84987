package schemas

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
)

// An example is one message as it stands on the wire, with what it must decode to.
type example struct {
	name   string // of its golden file, below testdata/golden
	topic  string // short
	typ    string
	rec    *kgo.Record
	decode func(rec *kgo.Record) (any, error)
	want   any
}

var topics = Topics{}

// now is the instant of all examples.
var now = operation.TimeOf(time.Date(2026, 11, 23, 9, 30, 0, 123_456_000, time.UTC))

func mustRequest(t testing.TB, json string) *operation.Request {
	t.Helper()
	q, err := ParseRequest([]byte(json), "")
	if err != nil {
		t.Fatalf("parse %s: %v", json, err)
	}
	return q
}

const (
	fullRequest = `{"id":"op-1","organization":"contoso","type":"bulk-delete","name":"Old leads \u00e4\u05d0","dependencyToken":"account/7",
		"onUpstreamFailure":"block","partitionKey":"p-1","priority":9,"postponeUntil":"2026-12-01T08:00:00.5+02:00","timeLimit":"90s",
		"retry":{"maxAttempts":7,"initial":"500ms","max":"1h30m","multiplier":1.5,"jitter":0.25,"giveUpAfter":"24h"},
		"correlationId":"c-1","requestId":"r-1","depth":2,"messageName":"Delete","primaryEntityType":"lead",
		"regarding":{"type":"account","id":"7","name":"A. Datum"},"ownerId":"u-1","callerOrigin":"web","createdBy":"u-2",
		"data":{ "query": "a \"b\" \u003c", "n": [1, 2.50, -0e1, true, null] }}`
	smallRequest = `{"id":"op-2","organization":"contoso","type":"system-event"}`
)

func failure() *operation.Failure {
	return &operation.Failure{Code: "smtp_refused", ErrorCode: retry.CodeServerBusy, Message: "550 \"no\"\n", FriendlyMessage: "The mail was refused.", Class: retry.Again}
}

// events holds an event of each kind with every field that it may have, in the order of the journal.
func events(t testing.TB) []operation.Event {
	by := operation.By{Who: "ann@contoso", Reason: "asked for"}
	base := operation.Event{Org: "contoso", ID: "op-1", At: now, Cause: operation.Cause{Topic: TopicRequests, Offset: 17}, CommandID: "cmd-1", By: by}
	with := func(kind operation.EventKind, change func(e *operation.Event)) operation.Event {
		e := base
		e.Kind = kind
		if change != nil {
			change(&e)
		}
		return e
	}
	attempt := func(e *operation.Event) {
		e.Attempt, e.Session, e.Cause = 3, "w-1", operation.Cause{Topic: TopicReports, Offset: 4}
		e.CommandID, e.By = "", operation.By{}
	}
	q := mustRequest(t, fullRequest)
	return []operation.Event{
		with(operation.Requested, func(e *operation.Event) {
			e.Request, e.Holds, e.Until, e.Upstream = q, operation.HoldDependency|operation.HoldPostponed, q.PostponeUntil, "op-0"
		}),
		with(operation.Released, func(e *operation.Event) { e.Upstream = "op-0" }),
		with(operation.Blocked, func(e *operation.Event) { e.Upstream, e.Code = "op-0", operation.UpstreamFailed }),
		with(operation.BecameDue, func(e *operation.Event) { e.Cause = operation.Cause{Topic: "clock"} }),
		with(operation.Dispatched, func(e *operation.Event) { attempt(e); e.Cause = operation.Cause{} }),
		with(operation.Started, func(e *operation.Event) { attempt(e); e.StartedAt = now - 1 }),
		with(operation.Progressed, func(e *operation.Event) { attempt(e); e.Progress, e.Carry = []byte(`{"done":5}`), []byte(`[1]`) }),
		with(operation.Returned, func(e *operation.Event) { attempt(e); e.Carry, e.Reason = []byte(`"at 5"`), "slots busy" }),
		with(operation.Succeeded, func(e *operation.Event) { attempt(e); e.Result, e.Carry = []byte(`{"deleted":12}`), []byte(`1`) }),
		with(operation.AttemptFailed, func(e *operation.Event) {
			attempt(e)
			e.Failure, e.Holds, e.Until, e.Carry = failure(), operation.HoldRetry, now+1_000_000, []byte(`{}`)
		}),
		with(operation.LeaseWasLost, func(e *operation.Event) {
			attempt(e)
			e.Failure, e.Holds, e.Until = &operation.Failure{Code: "lease_lost"}, operation.HoldPaused|operation.HoldEvent, now
			e.Carry, e.Cause = []byte(`{}`), operation.Cause{Topic: TopicSessions, Offset: 99}
		}),
		with(operation.Failed, func(e *operation.Event) { attempt(e); e.Failure, e.Carry = failure(), []byte(`[]`) }),
		with(operation.Yielded, func(e *operation.Event) {
			attempt(e)
			e.Event, e.Holds, e.Until, e.Carry = "invoice.paid", operation.HoldEvent|operation.HoldPostponed, now+5, []byte(`0`)
		}),
		with(operation.PauseRequested, func(e *operation.Event) { e.Attempt, e.Session, e.Until = 3, "w-1", now+9 }),
		with(operation.Paused, func(e *operation.Event) {
			attempt(e)
			e.Holds, e.Until, e.Event, e.Carry, e.By = operation.HoldPaused|operation.HoldEvent, now, "x", []byte(`{}`), by
		}),
		with(operation.CancelRequested, func(e *operation.Event) { e.Attempt, e.Session = 3, "w-1" }),
		with(operation.Canceled, func(e *operation.Event) { attempt(e); e.Failure, e.Upstream, e.Carry = failure(), "op-0", []byte(`7`) }),
		with(operation.Resumed, func(e *operation.Event) { e.Holds, e.Until, e.Upstream = operation.HoldDependency, now, "op-0" }),
		with(operation.Postponed, func(e *operation.Event) { e.Holds, e.Until = operation.HoldPostponed, now+77 }),
		with(operation.Retried, func(e *operation.Event) {
			e.Request, e.Holds, e.Upstream, e.Until = WithData(q, []byte(` { "a" : 1 } `)), operation.HoldDependency, "op-0", now
		}),
		with(operation.Deleted, nil),
		with(operation.Rejected, func(e *operation.Event) {
			e.Command, e.Code, e.Reason, e.Attempt, e.Session = operation.Cancel, operation.AlreadyDone, "it has ended", 1, "w-1"
		}),
		with(operation.Unchanged, func(e *operation.Event) {
			e.Command, e.Status, e.Attempt, e.Session = operation.Pause, operation.StatusPausing, 1, "w-1"
		}),
		with(operation.Opened, func(e *operation.Event) {
			*e = operation.Event{Kind: operation.Opened, At: now, Owner: "host-1/4711"}
		}),
		with(operation.Forwarded, func(e *operation.Event) {
			e.By, e.To, e.Body = operation.By{}, 5, WrapRequest(EncodeRequest(topics, q))
		}),
	}
}

// smallEvents holds an event of each kind with the fields that it must have, and no other.
func smallEvents(t testing.TB) []operation.Event {
	q := mustRequest(t, smallRequest)
	var out []operation.Event
	for kind := range operation.EventKind(operation.EventKinds) {
		e := operation.Event{Kind: kind, Org: "contoso", ID: "op-2", At: now}
		needed := eventByKind[kind].needed
		if needed&fieldOperation != 0 {
			e.Request = q
		}
		if needed&fieldWaits != 0 {
			e.Holds = operation.HoldPostponed
		}
		if needed&fieldUntil != 0 {
			e.Until = now
		}
		if needed&fieldAttempt != 0 {
			e.Attempt, e.Session = 1, "w-1"
		}
		if needed&fieldStartedAt != 0 {
			e.StartedAt = now
		}
		if needed&fieldError != 0 {
			e.Failure = &operation.Failure{Code: "x"}
		}
		if needed&fieldCode != 0 {
			e.Code = operation.NotFound
		}
		if needed&fieldOwner != 0 {
			e.Org, e.ID, e.Owner = "", "", "host-1"
		}
		if needed&fieldRequest != 0 {
			e.Body = []byte(`{"from":{}}`)
		}
		out = append(out, e)
	}
	return out
}

func reports() []operation.Command {
	base := operation.Command{Org: "contoso", ID: "op-1", Attempt: 3, Session: "w-1", StartedAt: now - 5, Cause: operation.Cause{Topic: TopicReports}}
	with := func(kind operation.CommandKind, change func(c *operation.Command)) operation.Command {
		c := base
		c.Kind = kind
		if change != nil {
			change(&c)
		}
		return c
	}
	return []operation.Command{
		with(operation.Start, nil),
		with(operation.Progress, func(c *operation.Command) { c.Progress, c.Carry = []byte(`{"done":5}`), []byte(`[1]`) }),
		with(operation.Succeed, func(c *operation.Command) { c.Result = []byte(`{"deleted":12}`) }),
		with(operation.Fail, func(c *operation.Command) { c.Failure, c.Carry = failure(), []byte(`[1]`) }),
		with(operation.Yield, func(c *operation.Command) { c.Until, c.Event, c.Carry = now+1, "invoice.paid", []byte(`[1]`) }),
		with(operation.Stop, func(c *operation.Command) { c.Failure, c.Carry = failure(), []byte(`[1]`) }),
		with(operation.Return, func(c *operation.Command) { c.StartedAt, c.Carry = 0, []byte(`[1]`) }),
	}
}

// fullState has a value in every field.
func fullState(t testing.TB) *operation.State {
	return &operation.State{
		Org: "contoso", ID: "op-1", Request: mustRequest(t, fullRequest), Status: operation.StatusRunning,
		Holds: operation.HoldDependency | operation.HoldPaused | operation.HoldEvent | operation.HoldPostponed | operation.HoldRetry,
		Until: now + 1, BlockedBy: "op-0", Blocked: true, Attempt: 3, Failures: 2, Session: "w-1", DispatchedPlace: 9,
		StartedAttempt: 2, RequestedPlace: 7, InputPlace: 8, LastPlace: 11, CreatedAt: now + 2, ModifiedAt: now + 3, StartedAt: now + 4,
		CompletedAt: now + 5, Since: now + 6, WaitsFor: "invoice.paid", Progress: []byte(`{"p":1}`), Carry: []byte(`{"c":1}`),
		Result: []byte(`{"r":1}`), Failure: failure(), By: operation.By{Who: "ann", Reason: "why"},
	}
}

// examples lists messages of every type.
func examples(t testing.TB) []example {
	var out []example
	add := func(suffix, topic, typ string, rec *kgo.Record, want any, decode func(rec *kgo.Record) (any, error)) {
		out = append(out, example{name: topic + "/" + typ + suffix, topic: topic, typ: typ, rec: rec, decode: decode, want: want})
	}
	command := func(rec *kgo.Record) (any, error) { return DecodeCommand(rec) }
	report := func(rec *kgo.Record) (any, error) { return DecodeReport(rec) }
	event := func(rec *kgo.Record) (any, error) { return DecodeEvent(rec) }
	checkpoint := func(rec *kgo.Record) (any, error) { return DecodeCheckpoint(rec) }
	heartbeat := func(rec *kgo.Record) (any, error) { return DecodeHeartbeat(rec) }
	inbox := func(rec *kgo.Record) (any, error) {
		it, stop, err := DecodeInbox(rec)
		if it != nil {
			return *it, err
		}
		if stop != nil {
			return *stop, err
		}
		return nil, err
	}

	for _, text := range []struct{ suffix, json string }{{"", fullRequest}, {".minimal", smallRequest}} {
		q := mustRequest(t, text.json)
		want := operation.Command{Kind: operation.Submit, Org: q.Organization, ID: q.ID, Request: q, Cause: operation.Cause{Topic: TopicRequests}}
		add(text.suffix, TopicRequests, "opstream.operation.requested.v1", EncodeRequest(topics, q), want, command)
	}
	for _, m := range requestMessages[1:] {
		c := operation.Command{Kind: m.Command, Org: "contoso", ID: "op-1", CommandID: "cmd-1", By: operation.By{Who: "ann@contoso", Reason: "asked for"}, Cause: operation.Cause{Topic: TopicRequests}}
		if c.Kind == operation.Postpone {
			c.Until = now
		}
		if c.Kind == operation.Retry {
			c.Data = []byte(`{"a":1}`)
		}
		add("", TopicRequests, m.Type, EncodeCommand(topics, &c, []byte("contoso/op-1")), c, command)
	}
	for _, c := range reports() {
		add("", TopicReports, commandByKind[c.Kind].Type, EncodeReport(topics, &c, []byte("contoso/op-1")), c, report)
	}
	for _, variant := range []struct {
		suffix string
		events []operation.Event
	}{{"", events(t)}, {".minimal", smallEvents(t)}} {
		var chain Chain
		for i, e := range variant.events {
			rec := EncodeEvent(&e, []byte("contoso/account/7"), 2)
			rec.Topic, rec.Offset = topics.Journal(), int64(i)
			chain.Seal(rec)
			add(variant.suffix, TopicJournal, eventByKind[e.Kind].Type, rec, e, event)
		}
	}

	q := mustRequest(t, fullRequest)
	original := EncodeRequest(topics, q)
	original.Partition, original.Offset = 3, 17
	original.Key = []byte("not its key")
	submit, err := DecodeCommand(original)
	if err != nil {
		t.Fatal(err)
	}
	add("", TopicSignals, typeForwarded, EncodeForwarded(topics, WrapRequest(original), KeyOf(original, &submit), 5, "3-99"), submit, func(rec *kgo.Record) (any, error) {
		inner, err := DecodeForwarded(rec)
		if err != nil {
			return nil, err
		}
		if inner.Topic != original.Topic || inner.Partition != 3 || string(inner.Key) != string(original.Key) {
			t.Errorf("expected the forwarded record's topic, partition and key, but got %s %d %q", inner.Topic, inner.Partition, inner.Key)
		}
		return DecodeCommand(inner)
	})

	h := Heartbeat{Session: "w-1", Pool: "mail", Types: []string{"bulk-email", "system-event"}, Slots: 8, Queue: 2, Inbox: 5, Lease: 15 * time.Second, State: SessionDraining, Host: "host-1", Version: "1.2.3", Sequence: 41}
	add("", TopicSessions, typeHeartbeat, EncodeHeartbeat(topics, &h), h, heartbeat)
	it := Item{Session: "w-1", Partition: 2, Place: 12, Low: 9, Org: "contoso", ID: "op-1", Attempt: 3, Failures: 2, Request: q, Carry: []byte(`{"c":1}`), SentAt: now}
	add("", TopicInboxes, typeOffered, EncodeItem(topics, &it), it, inbox)
	for _, pause := range []bool{false, true} {
		s := Stop{Pause: pause, Session: "w-1", Partition: 2, Place: 12, Org: "contoso", ID: "op-1", Attempt: 3, Reason: "asked for"}
		typ := typeCancel
		if pause {
			typ = typePause
		}
		add("", TopicInboxes, typ, EncodeStop(topics, &s), s, inbox)
	}

	set := Set{Writer: 40, Number: 1<<63 + 7}
	chain := Chain{Next: 12, Last: 11, Sum: [32]byte{1, 2, 3}, AltSum: [32]byte{9}, Alt: 1}
	for _, c := range []struct {
		suffix, typ string
		c           Checkpoint
	}{
		{"", typeCheckpointOperation, Checkpoint{Set: set, State: fullState(t)}},
		{".minimal", typeCheckpointOperation, Checkpoint{Set: set, State: &operation.State{Org: "contoso", ID: "op-2"}}},
		{"", typeCheckpointGone, Checkpoint{Set: set, Gone: []Gone{{"contoso", "op-1"}, {"fabrikam", "op-2"}}}},
		{"", typeCheckpointKnown, Checkpoint{Set: set, Known: []Known{{[16]byte{0: 1, 15: 0xff}, 1<<64 - 1, operation.StatusFailed}, {[16]byte{}, 0, operation.StatusAbsent}}}},
		{"", typeCheckpointPosition, Checkpoint{Set: set, Position: &Position{Builds: Set{30, 4}, Records: 99, Chain: chain, Requests: 1, Reports: 2, Signals: 3, Now: now, Effects: 8}}},
		{".base", typeCheckpointPosition, Checkpoint{Set: set, Position: &Position{Base: true, Records: 1 << 40, Chain: Chain{Next: 1}}}},
	} {
		add(c.suffix, TopicCheckpoints, c.typ, EncodeCheckpoint(topics, 2, &c.c), c.c, checkpoint)
	}
	return out
}

func TestDecodeUndoesEncode(t *testing.T) {
	for _, x := range examples(t) {
		got, err := x.decode(x.rec)
		if err != nil {
			t.Errorf("%s: %v\n%s", x.name, err, x.rec.Value)
			continue
		}
		if !reflect.DeepEqual(got, x.want) {
			t.Errorf("%s: expected\n%+v, but got\n%+v\nfrom %s", x.name, x.want, got, x.rec.Value)
		}
	}
}

func TestEveryMessageHasAnExample(t *testing.T) {
	seen := map[string]bool{}
	for _, x := range examples(t) {
		seen[x.topic+"/"+x.typ] = true
	}
	for _, m := range Registry() {
		if !seen[m.Topic+"/"+m.Type] {
			t.Errorf("expected an example of %s on %s, but there is none", m.Type, m.Topic)
		}
	}
}

// The full example of each kind of event uses every field that the registry gives it, so that none goes untested.
func TestFullEventsUseEveryField(t *testing.T) {
	for _, e := range append(events(t), smallEvents(t)...) {
		if err := CheckEvent(&e); err != nil {
			t.Error(err)
		}
	}
	common := fieldCommandID | fieldBy
	for _, e := range events(t) {
		if lacks := eventByKind[e.Kind].allowed &^ presentFields(&e) &^ common; lacks != 0 {
			t.Errorf("expected the example of %s to have every field, but it lacks %v", e.Kind, lacks.names())
		}
	}
}

func TestEveryKindIsRegistered(t *testing.T) {
	for kind := range operation.EventKind(operation.EventKinds) {
		m := eventByKind[kind]
		if m == nil {
			t.Errorf("expected event %s to have a name on the wire, but it has none", kind)
			continue
		}
		if got := strings.Split(m.Type, ".")[2]; got != kind.String() {
			t.Errorf("expected the name of %s to hold the event's, but got %s", kind, m.Type)
		}
	}
	for kind := operation.Submit; kind <= operation.Return; kind++ {
		if commandByKind[kind] == nil {
			t.Errorf("expected command %s to have a name on the wire, but it has none", kind)
		}
	}
}

// Every field of a state survives; a field that is added to the domain and not to the codec fails here.
func TestStateKeepsEveryField(t *testing.T) {
	want := fullState(t)
	for _, v := range []reflect.Value{reflect.ValueOf(*want), reflect.ValueOf(*want.Request), reflect.ValueOf(*want.Request.Context), reflect.ValueOf(*want.Request.Retry), reflect.ValueOf(*want.Failure), reflect.ValueOf(want.By)} {
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				t.Errorf("expected the example to have a value in %s.%s, but it has none", v.Type(), v.Type().Field(i).Name)
			}
		}
	}
	got, err := ParseState(AppendState(nil, want))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("expected\n%+v, but got\n%+v", want, got)
	}

	// Each field by itself, so that no two hide each other.
	v := reflect.ValueOf(want).Elem()
	for i := range v.NumField() {
		one := new(operation.State)
		reflect.ValueOf(one).Elem().Field(i).Set(v.Field(i))
		got, err := ParseState(AppendState(nil, one))
		if err != nil {
			t.Errorf("%s: %v", v.Type().Field(i).Name, err)
		} else if !reflect.DeepEqual(got, one) {
			t.Errorf("%s: expected\n%+v, but got\n%+v", v.Type().Field(i).Name, one, got)
		}
	}
}

// What a decoder returns must not change when the record's memory is used again.
func TestDecodersKeepNothingOfTheRecord(t *testing.T) {
	for _, x := range examples(t) {
		rec := &kgo.Record{Topic: x.rec.Topic, Partition: x.rec.Partition, Offset: x.rec.Offset}
		rec.Key, rec.Value = append([]byte(nil), x.rec.Key...), append([]byte(nil), x.rec.Value...)
		for _, h := range x.rec.Headers {
			rec.Headers = append(rec.Headers, kgo.RecordHeader{Key: h.Key, Value: append([]byte(nil), h.Value...)})
		}
		got, err := x.decode(rec)
		if err != nil {
			t.Fatalf("%s: %v", x.name, err)
		}
		wipe := func(b []byte) {
			for i := range b {
				b[i] = 'X'
			}
		}
		wipe(rec.Value)
		wipe(rec.Key)
		for _, h := range rec.Headers {
			wipe(h.Value)
		}
		if !reflect.DeepEqual(got, x.want) {
			t.Errorf("%s: expected the result to be a copy, but it changed with the record: %+v", x.name, got)
		}
	}
}

package schemas

import (
	"bytes"
	"strings"

	"github.com/opstream/opstream/domain/operation"
)

// Message is one type of message on one topic.
type Message struct {
	Topic   string                // short name
	Type    string                // ce_type
	Command operation.CommandKind // on requests and reports
	Event   operation.EventKind   // on journal
	// Fields lists the members of the data in the order in which they are written; required ones end in "!".
	Fields []string

	wire    []byte   // Type
	names   []string // Fields without the mark
	must    fields   // bit i for the i-th of Fields
	allowed fields   // journal: bits of fieldNames
	needed  fields   // journal
}

// Registry lists every message. The tables are literals: what is on the wire must not follow from a name in Go.
//
// A type is unique on its topic only: an operation is requested by a caller on the topic requests, and then, as a matter
// of fact, in the journal.
func Registry() []Message {
	var all []Message
	for _, table := range tables {
		all = append(all, table...)
	}
	return all
}

const (
	typeForwarded = "opstream.request.forwarded.v1"
	typeHeartbeat = "opstream.session.heartbeat.v1"
	typeOffered   = "opstream.attempt.offered.v1"
	typeCancel    = "opstream.attempt.cancel.v1"
	typePause     = "opstream.attempt.pause.v1"

	typeCheckpointOperation = "opstream.checkpoint.operation.v1"
	typeCheckpointGone      = "opstream.checkpoint.gone.v1"
	typeCheckpointKnown     = "opstream.checkpoint.known.v1"
	typeCheckpointPosition  = "opstream.checkpoint.position.v1"
)

var tables = [...][]Message{requestMessages, reportMessages, eventMessages, otherMessages}

var requestMessages = complete([]Message{
	{Topic: TopicRequests, Type: "opstream.operation.requested.v1", Command: operation.Submit, Fields: []string{
		"id", "organization!", "type!", "name", "dependencyToken", "onUpstreamFailure", "partitionKey", "priority", "postponeUntil",
		"timeLimit", "retry", "correlationId", "requestId", "depth", "messageName", "primaryEntityType", "regarding", "ownerId",
		"callerOrigin", "createdBy", "data",
	}},
	{Topic: TopicRequests, Type: "opstream.operation.cancel.v1", Command: operation.Cancel, Fields: []string{"organization!", "id!", "by"}},
	{Topic: TopicRequests, Type: "opstream.operation.pause.v1", Command: operation.Pause, Fields: []string{"organization!", "id!", "by"}},
	{Topic: TopicRequests, Type: "opstream.operation.resume.v1", Command: operation.Resume, Fields: []string{"organization!", "id!", "by"}},
	{Topic: TopicRequests, Type: "opstream.operation.postpone.v1", Command: operation.Postpone, Fields: []string{"organization!", "id!", "by", "until!"}},
	{Topic: TopicRequests, Type: "opstream.operation.retry.v1", Command: operation.Retry, Fields: []string{"organization!", "id!", "by", "data"}},
	{Topic: TopicRequests, Type: "opstream.operation.delete.v1", Command: operation.Delete, Fields: []string{"organization!", "id!", "by"}},
})

var reportMessages = complete([]Message{
	{Topic: TopicReports, Type: "opstream.attempt.started.v1", Command: operation.Start, Fields: []string{"organization!", "id!", "attempt!", "session!", "startedAt!"}},
	{Topic: TopicReports, Type: "opstream.attempt.progressed.v1", Command: operation.Progress, Fields: []string{"organization!", "id!", "attempt!", "session!", "startedAt", "progress", "checkpoint"}},
	{Topic: TopicReports, Type: "opstream.attempt.succeeded.v1", Command: operation.Succeed, Fields: []string{"organization!", "id!", "attempt!", "session!", "startedAt", "result"}},
	{Topic: TopicReports, Type: "opstream.attempt.failed.v1", Command: operation.Fail, Fields: []string{"organization!", "id!", "attempt!", "session!", "startedAt", "error!", "checkpoint"}},
	{Topic: TopicReports, Type: "opstream.attempt.yielded.v1", Command: operation.Yield, Fields: []string{"organization!", "id!", "attempt!", "session!", "startedAt", "until", "event", "checkpoint"}},
	{Topic: TopicReports, Type: "opstream.attempt.stopped.v1", Command: operation.Stop, Fields: []string{"organization!", "id!", "attempt!", "session!", "startedAt", "error", "checkpoint"}},
	{Topic: TopicReports, Type: "opstream.attempt.returned.v1", Command: operation.Return, Fields: []string{"organization!", "id!", "attempt!", "session!", "startedAt", "checkpoint"}},
})

// Every event may name the command that led to it and the person who gave it.
var eventMessages = complete([]Message{
	{Topic: TopicJournal, Type: "opstream.operation.requested.v1", Event: operation.Requested, Fields: []string{"operation!", "waits", "until", "upstream", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.released.v1", Event: operation.Released, Fields: []string{"upstream", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.blocked.v1", Event: operation.Blocked, Fields: []string{"upstream", "code", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.due.v1", Event: operation.BecameDue, Fields: []string{"commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.dispatched.v1", Event: operation.Dispatched, Fields: []string{"attempt!", "session!", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.started.v1", Event: operation.Started, Fields: []string{"attempt!", "session!", "startedAt!", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.progressed.v1", Event: operation.Progressed, Fields: []string{"attempt!", "session!", "progress", "checkpoint", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.returned.v1", Event: operation.Returned, Fields: []string{"attempt!", "session!", "checkpoint", "reason", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.succeeded.v1", Event: operation.Succeeded, Fields: []string{"attempt!", "session!", "checkpoint", "result", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.attempt-failed.v1", Event: operation.AttemptFailed, Fields: []string{"waits", "until", "attempt!", "session!", "error!", "checkpoint", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.lease-lost.v1", Event: operation.LeaseWasLost, Fields: []string{"waits", "until", "attempt!", "session!", "error!", "checkpoint", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.failed.v1", Event: operation.Failed, Fields: []string{"attempt!", "session!", "error!", "checkpoint", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.yielded.v1", Event: operation.Yielded, Fields: []string{"waits", "until", "attempt!", "session!", "event", "checkpoint", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.pause-requested.v1", Event: operation.PauseRequested, Fields: []string{"until", "attempt!", "session!", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.paused.v1", Event: operation.Paused, Fields: []string{"waits!", "until", "attempt", "session", "event", "checkpoint", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.cancel-requested.v1", Event: operation.CancelRequested, Fields: []string{"attempt!", "session!", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.canceled.v1", Event: operation.Canceled, Fields: []string{"attempt", "session", "error", "checkpoint", "upstream", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.resumed.v1", Event: operation.Resumed, Fields: []string{"waits", "until", "upstream", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.postponed.v1", Event: operation.Postponed, Fields: []string{"waits!", "until!", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.retried.v1", Event: operation.Retried, Fields: []string{"operation!", "waits", "until", "upstream", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.deleted.v1", Event: operation.Deleted, Fields: []string{"commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.rejected.v1", Event: operation.Rejected, Fields: []string{"attempt", "session", "command!", "code!", "reason", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.operation.unchanged.v1", Event: operation.Unchanged, Fields: []string{"attempt", "session", "command!", "status!", "commandId", "by"}},
	{Topic: TopicJournal, Type: "opstream.partition.opened.v1", Event: operation.Opened, Fields: []string{"owner!"}},
	{Topic: TopicJournal, Type: typeForwarded, Event: operation.Forwarded, Fields: []string{"commandId", "to!", "request!"}},
})

var otherMessages = complete([]Message{
	{Topic: TopicSignals, Type: typeForwarded, Fields: []string{"from!", "key", "keyBase64", "contentType", "type", "id", "source", "partitionKey", "value", "valueBase64"}},
	{Topic: TopicSessions, Type: typeHeartbeat, Fields: []string{"session!", "pool!", "types", "slots!", "queue!", "inbox!", "lease!", "state!", "host", "version", "sequence!"}},
	{Topic: TopicInboxes, Type: typeOffered, Fields: []string{"session!", "partition!", "place!", "low!", "organization!", "id!", "attempt!", "failures", "operation!", "checkpoint", "sentAt"}},
	{Topic: TopicInboxes, Type: typeCancel, Fields: []string{"session!", "partition!", "place!", "organization!", "id!", "attempt!", "reason"}},
	{Topic: TopicInboxes, Type: typePause, Fields: []string{"session!", "partition!", "place!", "organization!", "id!", "attempt!", "reason"}},
	{Topic: TopicCheckpoints, Type: typeCheckpointOperation, Fields: []string{"writer!", "set!", "state!"}},
	{Topic: TopicCheckpoints, Type: typeCheckpointGone, Fields: []string{"writer!", "set!", "gone!"}},
	{Topic: TopicCheckpoints, Type: typeCheckpointKnown, Fields: []string{"writer!", "set!", "known!"}},
	{Topic: TopicCheckpoints, Type: typeCheckpointPosition, Fields: []string{"writer!", "set!", "base", "builds", "records!", "chain!", "requests!", "reports!", "signals!", "now", "effects!"}},
})

func complete(table []Message) []Message {
	for i := range table {
		m := &table[i]
		m.wire = []byte(m.Type)
		for i, f := range m.Fields {
			name, required := strings.CutSuffix(f, "!")
			m.names = append(m.names, name)
			if required {
				m.must |= 1 << i
			}
			if m.Topic != TopicJournal {
				continue
			}
			bit := fieldOf([]byte(name))
			m.allowed |= bit
			if required {
				m.needed |= bit
			}
		}
	}
	return table
}

// fields is a set of members of a journal event's data.
type fields uint32

const (
	fieldOperation fields = 1 << iota
	fieldWaits
	fieldUntil
	fieldAttempt
	fieldSession
	fieldStartedAt
	fieldError
	fieldEvent
	fieldProgress
	fieldCheckpoint
	fieldResult
	fieldUpstream
	fieldCommand
	fieldCode
	fieldReason
	fieldStatus
	fieldOwner
	fieldTo
	fieldRequest
	fieldCommandID
	fieldBy
)

var fieldNames = [...]string{
	"operation", "waits", "until", "attempt", "session", "startedAt", "error", "event", "progress", "checkpoint", "result", "upstream",
	"command", "code", "reason", "status", "owner", "to", "request", "commandId", "by",
}

// fieldOf returns the set with the one field of that name, the empty set if there is none.
func fieldOf(name []byte) fields { return fieldBits[string(name)] }

var fieldBits = func() map[string]fields {
	bits := make(map[string]fields, len(fieldNames))
	for i, n := range fieldNames {
		bits[n] = 1 << i
	}
	return bits
}()

// index finds messages by topic and type.
var index = func() map[string]map[string]*Message {
	byTopic := make(map[string]map[string]*Message)
	for _, table := range tables {
		for i := range table {
			m := &table[i]
			if byTopic[m.Topic] == nil {
				byTopic[m.Topic] = make(map[string]*Message)
			}
			byTopic[m.Topic][m.Type] = m
		}
	}
	return byTopic
}()

// lookup finds the message of a type on a topic, or says how the type is wrong.
func lookup(topic string, typ []byte) (*Message, *DecodeError) {
	if m := index[topic][string(typ)]; m != nil {
		return m, nil
	}
	for other, types := range index {
		if types[string(typ)] != nil && other != topic {
			return nil, &DecodeError{Code: WrongTopic, Field: HeaderType, Reason: "expected a message of the topic " + topic + ", but got " + clip(string(typ))}
		}
	}
	if dot := bytes.LastIndex(typ, []byte(".v")); dot >= 0 {
		for _, types := range index {
			for known := range types {
				if strings.HasPrefix(known, string(typ[:dot])+".v") {
					return nil, &DecodeError{Code: UnknownVersion, Field: HeaderType, Reason: "expected " + known + ", but got " + clip(string(typ))}
				}
			}
		}
	}
	return nil, &DecodeError{Code: UnknownType, Field: HeaderType, Reason: "expected a message of the topic " + topic + ", but got " + clip(string(typ))}
}

// messageFor finds a message that the caller knows to exist.
func messageFor(topic, typ string) *Message { return index[topic][typ] }

var (
	messageForwarded  = messageFor(TopicSignals, typeForwarded)
	messageHeartbeat  = messageFor(TopicSessions, typeHeartbeat)
	messageOffered    = messageFor(TopicInboxes, typeOffered)
	messageCancel     = messageFor(TopicInboxes, typeCancel)
	messagePause      = messageFor(TopicInboxes, typePause)
	messageCheckpoint = [...]*Message{
		messageFor(TopicCheckpoints, typeCheckpointOperation), messageFor(TopicCheckpoints, typeCheckpointGone),
		messageFor(TopicCheckpoints, typeCheckpointKnown), messageFor(TopicCheckpoints, typeCheckpointPosition),
	}

	// By kind, for the encoders.
	eventByKind = func() (t [operation.EventKinds]*Message) {
		for i := range eventMessages {
			t[eventMessages[i].Event] = &eventMessages[i]
		}
		return t
	}()
	commandByKind = func() (t [operation.Return + 1]*Message) {
		for _, table := range [][]Message{requestMessages, reportMessages} {
			for i := range table {
				t[table[i].Command] = &table[i]
			}
		}
		return t
	}()
)

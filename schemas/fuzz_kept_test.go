package schemas

import (
	"bytes"
	"fmt"
	"reflect"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
)

// kept fails unless a command that was accepted can be read again wherever it is kept from then on: a record that only we
// write and cannot read stops its partition for good.
func kept(t *testing.T, rec *kgo.Record, c *operation.Command) {
	t.Helper()
	journal := func(e operation.Event) {
		e.Org, e.ID, e.At = c.Org, c.ID, 1
		sealed := EncodeEvent(&e, KeyOf(rec, c), 0)
		new(Chain).Seal(sealed)
		if _, err := DecodeEvent(sealed); err != nil {
			t.Errorf("%s: expected the journal to stay readable, but: %v", e.Kind, err)
		}
		if len(sealed.Value) > MaxBatchBytes {
			t.Errorf("%s: expected an event that the topic takes, but it has %d bytes", e.Kind, len(sealed.Value))
		}
	}
	if q := c.Request; q != nil {
		journal(operation.Event{Kind: operation.Requested, Request: q, CommandID: c.CommandID})
		if _, _, err := DecodeInbox(EncodeItem(topics, &Item{Session: "s", Org: c.Org, ID: c.ID, Attempt: 1, Request: q})); err != nil {
			t.Errorf("expected a readable work item, but: %v", err)
		}
		s := &operation.State{Org: c.Org, ID: c.ID, Status: operation.StatusReady, Request: q}
		if _, err := DecodeCheckpoint(EncodeCheckpoint(topics, 0, &Checkpoint{State: s})); err != nil {
			t.Errorf("expected a readable checkpoint, but: %v", err)
		}
	}
	if c.Data != nil {
		q := WithData(&operation.Request{ID: c.ID, Organization: c.Org, Type: "noop"}, c.Data)
		journal(operation.Event{Kind: operation.Retried, Request: q, CommandID: c.CommandID})
	}
	journal(operation.Event{Kind: operation.Rejected, Command: c.Kind, Code: "not_found", By: c.By, CommandID: c.CommandID})
	body := WrapRequest(rec)
	journal(operation.Event{Kind: operation.Forwarded, To: 1, Body: body})

	back, err := DecodeForwarded(EncodeForwarded(topics, body, KeyOf(rec, c), 1, "id"))
	if err != nil {
		t.Errorf("expected a readable signal, but: %v", err)
		return
	}
	again, err := DecodeCommand(back)
	again.Cause = c.Cause
	if err != nil || !reflect.DeepEqual(again, *c) {
		t.Errorf("expected the command that was forwarded,\n%+v, but got\n%+v, %v", *c, again, err)
	}
	if from, to := ExpectedPartition(rec, c, 12), ExpectedPartition(back, &again, 12); from != to {
		t.Errorf("expected the forwarded command to belong to partition %d, but it belongs to %d", from, to)
	}
}

func FuzzStructured(f *testing.F) {
	const envelope = `{"specversion":"1.0","id":"e-1","source":"/crm","type":"opstream.operation.requested.v1","data":%s}`
	for _, in := range hostile {
		f.Add([]byte(in), []byte("k"))
		f.Add(fmt.Appendf(nil, envelope, in), []byte("k"))
	}
	f.Add(fmt.Appendf(nil, envelope, fullRequest), []byte("contoso/x"))
	f.Add(fmt.Appendf(nil, envelope, smallRequest), []byte{0xff})
	f.Add([]byte(`{"specversion":"1.0","id":"e-1","source":"/crm","type":"opstream.operation.retry.v1","partitionkey":"o/k","data":{"organization":"o","id":"a","data":[1]}}`), []byte(""))
	f.Add([]byte(`{"specversion":"1.0","id":"e-1","source":"/crm","type":"opstream.operation.cancel.v1","data_base64":"e30="}`), []byte("o/"))
	f.Fuzz(func(t *testing.T, value, key []byte) {
		rec := &kgo.Record{Topic: topics.Requests(), Key: key, Value: value, Headers: []kgo.RecordHeader{{Key: HeaderContentType, Value: []byte(ContentStructured)}}}
		c, err := DecodeCommand(rec)
		if err != nil {
			if outcome(err) == err.Error() {
				t.Errorf("expected a decode error or a refusal, but got %v", err)
			}
			return
		}
		kept(t, rec, &c)
	})
}

// FuzzKept is about binary mode, with any key, id and source.
func FuzzKept(f *testing.F) {
	for _, in := range hostile {
		f.Add([]byte(in), []byte("k"), "id", byte(0))
	}
	f.Add([]byte(fullRequest), []byte{0xff}, "e-1", byte(0))
	f.Add([]byte(smallRequest), []byte(nil), "\x01", byte(0))
	f.Add([]byte(`{"id":"a","organization":"o","type":"noop","data":`+nested(MaxDepth-1)+`}`), []byte("o/a"), "a", byte(0))
	f.Add([]byte(`{"id":"a","organization":"o","data":`+nested(MaxDepth-1)+`}`), []byte("o/a"), "a", byte(5))
	f.Fuzz(func(t *testing.T, value, key []byte, id string, kind byte) {
		kinds := []operation.CommandKind{operation.Submit, operation.Cancel, operation.Pause, operation.Resume, operation.Postpone, operation.Retry, operation.Delete}
		m := commandByKind[kinds[int(kind)%len(kinds)]]
		rec := record(m, topics.Requests(), key, []byte(id), []byte("/crm"), nil, value)
		c, err := DecodeCommand(rec)
		if err != nil {
			if outcome(err) == err.Error() {
				t.Errorf("expected a decode error or a refusal, but got %v", err)
			}
			return
		}
		kept(t, rec, &c)
	})
}

func FuzzState(f *testing.F) {
	for _, in := range hostile {
		f.Add([]byte(in))
	}
	for _, x := range examples(f) {
		if x.topic == TopicCheckpoints {
			f.Add(x.rec.Value)
		}
	}
	f.Add(AppendState(nil, &operation.State{Org: "o", ID: "a", Status: operation.StatusReady, Request: &operation.Request{ID: "a", Organization: "o", Type: "noop", Raw: []byte(smallRequest)}}))
	f.Fuzz(func(t *testing.T, value []byte) {
		s, err := ParseState(value)
		if err != nil {
			return
		}
		again, err := ParseState(AppendState(nil, s))
		if err != nil || !reflect.DeepEqual(again, s) {
			t.Errorf("%s: expected\n%+v, but got\n%+v, %v", value, s, again, err)
		}
	})
}

// FuzzDeadLetter: whatever a record is, it can be set aside, and what it was found to be can be read.
func FuzzDeadLetter(f *testing.F) {
	f.Add([]byte("k"), []byte("v"), "ce_id", []byte("x"), "why", uint16(1))
	f.Add([]byte(nil), []byte(nil), "x_reason", []byte("\xff"), "\xff\x00", uint16(1000))
	f.Fuzz(func(t *testing.T, key, value []byte, name string, header []byte, reason string, times uint16) {
		rec := &kgo.Record{Topic: topics.Requests(), Partition: 3, Offset: 17, Key: bytes.Repeat(key, 1+int(times)), Value: bytes.Repeat(value, 1+int(times))}
		for range times {
			rec.Headers = append(rec.Headers, kgo.RecordHeader{Key: name, Value: header})
		}
		dead := DeadLetter(topics, rec, MalformedJSON, reason, "me", 1)
		size, code := len(dead.Key)+len(dead.Value), ""
		for _, h := range dead.Headers {
			size += len(h.Key) + len(h.Value) + 16
			if h.Key == HeaderDeadCode {
				code = string(h.Value)
			}
		}
		if size > MaxBatchBytes || code != string(MalformedJSON) {
			t.Errorf("expected a dead letter that the topic takes, with its code, but it has %d bytes and %q", size, code)
		}
	})
}

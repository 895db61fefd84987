package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/projector"
	"github.com/opstream/opstream/schemas"
)

// hostileSender puts records on the topics of a running service as somebody would who does not use our client library, and
// after each a good request on the same partition.
type hostileSender struct {
	t      *testing.T
	s      *service
	kafka  *kgo.Client
	topics schemas.Topics
	good   []string
}

const hostilePartitions = 3 // as embeddedService has them

func newHostileSender(t *testing.T) *hostileSender {
	t.Helper()
	s, _ := embeddedService(t, "")
	h := &hostileSender{t: t, s: s}
	h.kafka = h.client(kgo.ProducerBatchCompression(kgo.NoCompression()))
	t.Setenv("OPSTREAM_SERVER", s.url)
	t.Setenv("OPSTREAM_BROKERS", strings.Join(s.cfg.brokers, ","))
	return h
}

func (h *hostileSender) client(opts ...kgo.Opt) *kgo.Client {
	h.t.Helper()
	client, err := kgo.NewClient(append(append(h.s.cfg.clientOptions(),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(60<<20), kgo.ProducerLinger(0),
	), opts...)...)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(client.Close)
	return client
}

// put sends a record and waits until the broker has it.
func (h *hostileSender) put(rec *kgo.Record) {
	h.t.Helper()
	if err := h.kafka.ProduceSync(h.t.Context(), rec).FirstErr(); err != nil {
		h.t.Fatalf("expected the broker to take a record of %d bytes on %s, but: %v", len(rec.Value), rec.Topic, err)
	}
}

// follow puts a good request behind what was sent to a partition.
func (h *hostileSender) follow(partition int32) {
	h.t.Helper()
	for i := 0; ; i++ {
		id := fmt.Sprintf("good-%d-%d", len(h.good), i)
		rec := schemas.EncodeRequest(h.topics, &operation.Request{ID: operation.ID(id), Organization: "good", Type: "noop"})
		if schemas.PartitionFor(rec.Key, hostilePartitions) == partition {
			rec.Partition = partition
			h.put(rec)
			h.good = append(h.good, id)
			return
		}
	}
}

// settle waits until all that follows the bad input has succeeded: so all partitions have gone on.
func (h *hostileSender) settle() {
	h.t.Helper()
	eventually(h.t, 30*time.Second, func() (bool, string) {
		var counts api.Counts
		if err := h.json("/v1/counts?organization=good", &counts); err != nil {
			return false, err.Error()
		}
		for _, c := range counts.ByStatus {
			if c.Status == operation.StatusSucceeded.String() {
				return c.Count == int64(len(h.good)), fmt.Sprintf("%d of %d good operations have succeeded", c.Count, len(h.good))
			}
		}
		return false, "no counts"
	})
}

func (h *hostileSender) json(path string, into any) error {
	status, _, body := h.http(http.MethodGet, path, nil, "")
	if status != http.StatusOK {
		return fmt.Errorf("GET %s: %d: %s", path, status, body)
	}
	return json.Unmarshal(body, into)
}

func (h *hostileSender) http(method, path string, header http.Header, body string) (int, http.Header, []byte) {
	h.t.Helper()
	req, err := http.NewRequestWithContext(h.t.Context(), method, h.s.url, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	// As it stands: url.Parse would refuse some.
	before, query, _ := strings.Cut(path, "?")
	req.URL.Opaque = "//" + req.URL.Host + before
	req.URL.RawQuery = query
	if header == nil && body != "" {
		header = http.Header{"Content-Type": {"application/json"}}
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatalf("%s %.80s: %v", method, path, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, answer
}

// ends tells where records ended: "dead CODE", "rejected CODE", or the event that they led to; by topic, partition and offset.
func (h *hostileSender) ends() map[string]string {
	h.t.Helper()
	out := map[string]string{}
	note := func(where, what string) {
		if before := out[where]; before != "" {
			what = before + ", " + what
		}
		out[where] = what
	}
	letters, err := openDeadLetters(h.t.Context(), h.s.cfg.brokers, "")
	if err != nil {
		h.t.Fatal(err)
	}
	if err := letters.read(h.t.Context(), time.Time{}, func(rec *kgo.Record) error {
		d := readDeadLetter(rec)
		if d.Reason == "" || d.Next == "" || d.By == "" || d.At == nil {
			h.t.Errorf("expected a dead letter to say why, what to do, who gave up and when, but got %+v", d)
		}
		note(h.topics.Short(d.Topic)+" "+d.Partition+"-"+d.Offset, "dead "+d.Code)
		return nil
	}); err != nil {
		h.t.Fatal(err)
	}
	journal := projector.Journal{Client: h.s.cfg.clientOptions()}
	ends, err := journal.Ends(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	seen := map[string]bool{} // only the first event of an input tells what became of it
	for p, end := range ends {
		if _, err := journal.Read(h.t.Context(), p, end, func(e projections.Entry) error {
			where := fmt.Sprintf("%s %d-%d", e.Event.Cause.Topic, p, e.Event.Cause.Offset)
			if seen[where] || e.Event.Kind == operation.Dispatched || e.Event.Kind == operation.Started { // those only follow
				return nil
			}
			seen[where] = true
			switch e.Event.Kind {
			case operation.Rejected:
				if e.Event.Reason == "" {
					h.t.Errorf("expected a rejection to have a reason, but got %+v", e.Event)
				}
				note(where, "rejected "+string(e.Event.Code))
			case operation.Forwarded:
				note(where, fmt.Sprintf("forwarded to %d", e.Event.To))
			default:
				note(where, e.Event.Kind.String())
			}
			return nil
		}); err != nil {
			h.t.Fatal(err)
		}
	}
	return out
}

func place0(rec *kgo.Record, topics schemas.Topics) string {
	return fmt.Sprintf("%s %d-%d", topics.Short(rec.Topic), rec.Partition, rec.Offset)
}

const requestedType = "opstream.operation.requested.v1"

// binaryMode is a request in binary mode, as a sender without our library makes it. Its key is that of an operation without a
// token; headers that are named again replace the ones that it has.
func binaryMode(id, value string, more ...kgo.RecordHeader) *kgo.Record {
	rec := &kgo.Record{Topic: schemas.Topics{}.Requests(), Key: []byte("bad/" + id), Value: []byte(value), Headers: []kgo.RecordHeader{
		{Key: "ce_specversion", Value: []byte("1.0")},
		{Key: "ce_id", Value: []byte(id)},
		{Key: "ce_source", Value: []byte("/crm")},
		{Key: "ce_type", Value: []byte(requestedType)},
		{Key: "content-type", Value: []byte("application/json")},
	}}
	for _, h := range more {
		i := slices.IndexFunc(rec.Headers, func(b kgo.RecordHeader) bool { return b.Key == h.Key })
		if i >= 0 {
			rec.Headers[i] = h
		} else {
			rec.Headers = append(rec.Headers, h)
		}
	}
	rec.Partition = schemas.PartitionFor(rec.Key, hostilePartitions)
	return rec
}

func structuredMode(id, value string) *kgo.Record {
	return &kgo.Record{
		Topic: schemas.Topics{}.Requests(), Key: []byte("bad/" + id), Value: []byte(value), Partition: schemas.PartitionFor([]byte("bad/"+id), hostilePartitions),
		Headers: []kgo.RecordHeader{{Key: "content-type", Value: []byte("application/cloudevents+json; charset=utf-8")}},
	}
}

// with is a small request with more members.
func with(id, more string) string {
	if more != "" {
		more = "," + more
	}
	return fmt.Sprintf(`{"organization":"bad","id":%q,"type":"noop"%s}`, id, more)
}

func head(key, value string) kgo.RecordHeader {
	return kgo.RecordHeader{Key: key, Value: []byte(value)}
}

// sent is one bad input and what must become of it.
type sent struct {
	name string
	rec  *kgo.Record
	want string
}

// inBothModes makes the same request in binary and in structured mode.
func inBothModes(name string, value func(id string) string, want string) []sent {
	id := strings.ReplaceAll(name, " ", "-")
	return []sent{
		{name, binaryMode(id, value(id)), want},
		{name + ", structured", structuredMode("s-"+id, fmt.Sprintf(`{"specversion":"1.0","id":"s-%s","source":"/crm","type":%q,"data":%s}`, id, requestedType, value("s-"+id))), want},
	}
}

func badRequests() []sent {
	deep := strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000)
	var list []sent
	for _, c := range []struct {
		name  string
		value func(id string) string
		want  string
	}{
		{"fine", func(id string) string { return with(id, "") }, "requested"},
		{"truncated", func(id string) string { return with(id, "")[:20] }, "dead malformed_json"},
		{"deep", func(id string) string { return with(id, `"data":`+deep) }, "dead too_deep"},
		{"deepest", func(id string) string {
			return with(id, `"data":`+strings.Repeat("[", schemas.MaxDepth-2)+strings.Repeat("]", schemas.MaxDepth-2))
		}, "requested"},
		{"not UTF-8", func(id string) string { return with(id, "\"name\":\"\xff\xfe\"") }, "dead invalid_utf8"},
		{"half a pair", func(id string) string { return with(id, `"name":"\ud800"`) }, "dead invalid_utf8"},
		{"half a pair in data", func(id string) string { return with(id, `"data":{"x":"\udfff"}`) }, "dead invalid_utf8"},
		{"twice", func(id string) string { return with(id, `"priority":1,"priority":2`) }, "dead duplicate_field"},
		{"twice by an escape", func(id string) string { return with(id, `"priority":1,"p\u0072iority":2`) }, "dead duplicate_field"},
		{"twice in data", func(id string) string { return with(id, `"data":{"a":1,"a":2}`) }, "dead duplicate_field"},
		{"large number", func(id string) string { return with(id, `"priority":18446744073709551616`) }, "rejected out_of_range"},
		{"large number in data", func(id string) string { return with(id, `"data":{"n":1e999999,"m":-18446744073709551617}`) }, "requested"},
		{"fraction", func(id string) string { return with(id, `"priority":1.5`) }, "rejected invalid_type"},
		{"unknown field", func(id string) string { return with(id, `"tpye":"noop"`) }, "dead unknown_field"},
		{"other case", func(id string) string { return with(id, `"Priority":1`) }, "dead unknown_field"},
		{"wrong type of a member", func(id string) string { return with(id, `"name":{"a":[]}`) }, "rejected invalid_type"},
		{"null", func(string) string { return `null` }, "rejected invalid_type"},
		{"array", func(string) string { return `[{"organization":"bad","type":"noop"}]` }, "rejected invalid_type"},
		{"no type", func(id string) string { return fmt.Sprintf(`{"organization":"bad","id":%q}`, id) }, "rejected required"},
		{"no organization", func(id string) string { return fmt.Sprintf(`{"id":%q,"type":"noop"}`, id) }, "rejected required"},
		{"name of 10 KB", func(id string) string { return with(id, `"name":"`+strings.Repeat("n", 10<<10)+`"`) }, "rejected too_long"},
		{"token of 10 KB", func(id string) string { return with(id, `"dependencyToken":"`+strings.Repeat("n", 10<<10)+`"`) }, "rejected too_long"},
		{"type with a slash", func(string) string { return `{"organization":"bad","type":"../noop"}` }, "rejected invalid_name"},
		{"direction of writing", func(id string) string { return with(id, `"name":"\u202egpj.exe"`) }, "rejected invalid_characters"},
		{"NUL", func(id string) string { return with(id, `"name":"a\u0000b"`) }, "rejected invalid_characters"},
		{"NUL in data", func(id string) string { return with(id, `"data":{"a\u0000":"\u0000"}`) }, "requested"},
		{"emoji", func(id string) string { return with(id, `"name":"🎉 \ud83c\udf89 日本"`) }, "requested"},
		{"the year 1601", func(id string) string { return with(id, `"postponeUntil":"1601-01-01T00:00:00Z"`) }, "requested"},
		{"the year 9999", func(id string) string { return with(id, `"postponeUntil":"9999-12-31T23:59:59.999999999Z"`) }, "requested"},
		{"beyond the year 9999", func(id string) string { return with(id, `"postponeUntil":"9999-12-31T23:59:59-01:00"`) }, "rejected invalid_time"},
		{"the year 0", func(id string) string { return with(id, `"postponeUntil":"0000-01-01T00:00:00Z"`) }, "rejected invalid_time"},
		{"an offset", func(id string) string { return with(id, `"postponeUntil":"2020-01-01T00:00:00+14:00"`) }, "requested"},
		{"a leap second", func(id string) string { return with(id, `"postponeUntil":"2016-12-31T23:59:60Z"`) }, "rejected invalid_time"},
		{"no zone", func(id string) string { return with(id, `"postponeUntil":"2030-01-01T00:00:00"`) }, "rejected invalid_time"},
		{"no date", func(id string) string { return with(id, `"postponeUntil":"2030-02-30T00:00:00Z"`) }, "rejected invalid_time"},
		{"seconds since 1970", func(id string) string { return with(id, `"postponeUntil":1893456000`) }, "rejected invalid_type"},
		{"a long time limit", func(id string) string { return with(id, `"timeLimit":"999999999h"`) }, "rejected invalid_duration"},
		{"no time limit", func(id string) string { return with(id, `"timeLimit":"-1s"`) }, "rejected out_of_range"},
		{"many attempts", func(id string) string { return with(id, `"retry":{"maxAttempts":999999999}`) }, "rejected out_of_range"},
		{"a multiplier", func(id string) string { return with(id, `"retry":{"multiplier":1e308}`) }, "rejected out_of_range"},
	} {
		list = append(list, inBothModes(c.name, c.value, c.want)...)
	}

	few := func(id string, drop string) *kgo.Record {
		rec := binaryMode(id, with(id, ""))
		rec.Headers = slices.DeleteFunc(rec.Headers, func(h kgo.RecordHeader) bool { return h.Key == drop })
		return rec
	}
	twice := func(id, key string) *kgo.Record {
		rec := binaryMode(id, with(id, ""))
		rec.Headers = append(rec.Headers, head(key, "again"))
		return rec
	}
	many := binaryMode("many-headers", with("many-headers", ""))
	for i := range 1000 {
		many.Headers = append(many.Headers, head(fmt.Sprint("x-", i), "x"))
	}
	keyed := func(id, key string) *kgo.Record {
		rec := binaryMode(id, with(id, ""))
		rec.Key = []byte(key)
		return rec
	}
	at := func(id string, year int) *kgo.Record {
		rec := binaryMode(id, with(id, ""))
		rec.Timestamp = time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
		return rec
	}
	tombstone := binaryMode("tombstone", "")
	tombstone.Value = nil
	astray := keyed("astray", strings.Repeat("k", 1024))
	astray.Partition = (schemas.PartitionFor([]byte("bad/astray"), hostilePartitions) + 1) % hostilePartitions
	// On the wrong partition a record is kept whole, so its key counts, too: as many bytes as the topic takes, escaped.
	largeKey := keyed("large-key", strings.Repeat("\x01", 7<<20))
	largeKey.Partition = (schemas.PartitionFor([]byte("bad/large-key"), hostilePartitions) + 1) % hostilePartitions
	named := func(name, want string) sent {
		quoted, _ := json.Marshal(name) //nolint:errchkjson // a string
		rec := binaryMode("x", `{"organization":"bad","id":`+string(quoted)+`,"type":"noop"}`)
		rec.Key = []byte("bad/" + name[:min(len(name), 256)])
		rec.Partition = schemas.PartitionFor(rec.Key, hostilePartitions)
		return sent{"id " + cut(name, 20), rec, want}
	}
	return append(list,
		sent{"empty", binaryMode("empty", ""), "dead malformed_json"},
		sent{"tombstone", tombstone, "dead malformed_json"},
		sent{"nothing at all", &kgo.Record{Topic: schemas.Topics{}.Requests()}, "dead missing_header"},
		sent{"a tombstone without anything", &kgo.Record{Topic: schemas.Topics{}.Requests(), Key: []byte("k")}, "dead missing_header"},
		sent{"unknown type", binaryMode("t1", with("t1", ""), head("ce_type", "com.example.order")), "dead unknown_type"},
		sent{"unknown version", binaryMode("t2", with("t2", ""), head("ce_type", "opstream.operation.requested.v99")), "dead unknown_version"},
		sent{"a report among requests", binaryMode("t3", with("t3", ""), head("ce_type", "opstream.attempt.succeeded.v1")), "dead wrong_topic"},
		sent{"other specversion", binaryMode("t4", with("t4", ""), head("ce_specversion", "0.3")), "dead wrong_specversion"},
		sent{"XML", binaryMode("t5", "<a/>", head("content-type", "application/xml")), "dead wrong_content_type"},
		sent{"structured, but not JSON", structuredMode("t6", "specversion: 1.0"), "dead malformed_json"},
		sent{"structured batch", structuredMode("t7", `[{"specversion":"1.0"}]`), "dead invalid_attributes"},
		sent{"structured, no data", structuredMode("t8", `{"specversion":"1.0","id":"t8","source":"/crm","type":"`+requestedType+`"}`), "dead malformed_json"},
		sent{"structured, bad base64", structuredMode("t9", `{"specversion":"1.0","id":"t9","source":"/crm","type":"`+requestedType+`","data_base64":"***"}`), "dead invalid_attributes"},
		sent{"no id", few("h1", "ce_id"), "dead missing_header"},
		sent{"no specversion", few("h2", "ce_specversion"), "dead missing_header"},
		sent{"no source", few("h3", "ce_source"), "dead missing_header"},
		sent{"no type header", few("h4", "ce_type"), "dead missing_header"},
		sent{"no content type", few("h5", "content-type"), "requested"},
		sent{"id twice", twice("h6", "ce_id"), "dead doubled_header"},
		sent{"content type twice", twice("h7", "content-type"), "dead doubled_header"},
		sent{"1000 headers", many, "dead too_many_headers"},
		sent{"header of 1 MiB", binaryMode("h8", with("h8", ""), head("ce_subject", strings.Repeat("s", 1<<20))), "dead invalid_header"},
		sent{"event id of 1000 bytes", binaryMode("h9", with("h9", ""), head("ce_id", strings.Repeat("s", 1000))), "rejected invalid_characters"},
		sent{"header not UTF-8", binaryMode("h10", with("h10", ""), head("ce_subject", "\xff")), "dead invalid_utf8"},
		sent{"somebody's large header", binaryMode("h11", with("h11", ""), head("x-trace", strings.Repeat("t", 1<<20))), "requested"},
		sent{"too large", binaryMode("l1", with("l1", `"data":"`+strings.Repeat("x", 2<<20)+`"`)), "dead too_large"},
		sent{"as large as the topic takes", binaryMode("l2", with("l2", `"data":"`+strings.Repeat("x", 7<<20)+`"`)), "dead too_large"},
		sent{"largest", binaryMode("l3", with("l3", `"data":"`+strings.Repeat("x", schemas.MaxRequestBytes-100)+`"`)), "requested"},
		sent{"grows over the limit", binaryMode("l4", with("l4", `"retry":{},"data":"`+strings.Repeat("x", schemas.MaxRequestBytes-70)+`"`)), "rejected too_large"},
		sent{"no key", keyed("k1", ""), "requested"},
		sent{"another's key", keyed("k2", "other/k2"), "requested"},
		sent{"key not UTF-8", keyed("k3", "\xff\x00"), "requested"},
		sent{"key of 1 MiB", keyed("k4", strings.Repeat("k", 1<<20)), "dead too_large"},
		sent{"wrong partition", astray, fmt.Sprintf("forwarded to %d", schemas.PartitionFor([]byte("bad/astray"), hostilePartitions))},
		sent{"wrong partition, large key", largeKey, "dead too_large"},
		sent{"time stamp of 1601", at("ts1", 1601), "requested"},
		sent{"time stamp of 1970", at("ts2", 1970), "requested"},
		sent{"time stamp of 9999", at("ts3", 9999), "requested"},
		named("a/b", "requested"), named("a%2Fb", "requested"), named("/", "requested"), named("..", "requested"), named(`"'<b>&;--`, "requested"),
		named("日本 🎉", "requested"), named(strings.Repeat("i", 128), "requested"), named("?a=b#c", "requested"), named("\\", "requested"), named(" ", "requested"),
		named(strings.Repeat("i", 129), "rejected too_long"), named(strings.Repeat("i", 10<<10), "rejected too_long"),
		named("a\nb", "rejected invalid_characters"), named("a\x00b", "rejected invalid_characters"), named("\u202eb", "rejected invalid_characters"),
		named("a\u200bb", "rejected invalid_characters"), named("\x7f", "rejected invalid_characters"),
	)
}

// TestBadInputOnTheLog sends every kind of bad request over Kafka. Each is found again with a code and a reason, and what
// stands behind it on its partition is done.
func TestBadInputOnTheLog(t *testing.T) {
	h := newHostileSender(t)
	list := badRequests()
	for i := range list {
		h.put(list[i].rec)
		h.follow(list[i].rec.Partition)
	}
	for _, c := range badElsewhere() {
		h.put(c.rec)
		h.follow(c.rec.Partition % hostilePartitions)
		list = append(list, c)
	}
	for name, codec := range map[string]kgo.CompressionCodec{
		"gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	} {
		client := h.client(kgo.ProducerBatchCompression(codec))
		for _, c := range []sent{
			{name, binaryMode("z-"+name, with("z-"+name, `"data":"`+strings.Repeat("x", 10_000)+`"`)), "requested"},
			{name + ", large within", binaryMode("y-"+name, strings.Repeat(" ", 20<<20)), "dead too_large"},
		} {
			if err := client.ProduceSync(t.Context(), c.rec).FirstErr(); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			h.follow(c.rec.Partition)
			list = append(list, c)
		}
	}
	h.settle()
	ends := h.ends()
	for _, c := range list {
		if got := ends[place0(c.rec, h.topics)]; got != c.want {
			t.Errorf("%s: expected %q, but got %q", c.name, c.want, got)
		}
	}
	if t.Failed() {
		return
	}

	// Where a sender looks: the rejection of an operation that there is not stands in the answer for it.
	for _, c := range []struct{ id, code string }{
		{"large-number", "out_of_range"}, {"s-NUL", "invalid_characters"}, {"no-type", "required"}, {"a-leap-second", "invalid_time"},
	} {
		status, _, body := h.http(http.MethodGet, "/v1/organizations/bad/operations/"+url.PathEscape(c.id), nil, "")
		if status != http.StatusNotFound || !bytes.Contains(body, []byte(c.code)) {
			t.Errorf("%s: expected 404 and %s, but got %d: %s", c.id, c.code, status, body)
		}
		run(t, "", "op", "history", c.id, "-O", "bad").expect(t, exitNotFound, c.code)
	}
	// A rejection of what had no usable name is in the journal only.
	run(t, "", "journal", "tail", "--from", "start").expect(t, exitOK, "too_long", "invalid_characters", "submit")
	run(t, "", "deadletter", "list", "-n", "0").expect(t, exitOK, "too_deep", "opstream.requests ", "duplicate_field")
	// Names that are allowed are found by every path.
	for _, id := range []string{"a/b", "a%2Fb", "/", "..", `"'<b>&;--`, "日本 🎉", "?a=b#c", "\\", " "} {
		run(t, "", "op", "wait", "-O", "bad", "--", id).expect(t, exitOK, "succeeded")
	}
	run(t, "", "op", "wait", "-O", "bad", "astray", "by-signal").expect(t, exitOK, "succeeded")
	// Data that no handler can read is the handler's to refuse; it came that far.
	for _, id := range []string{"deepest", "s-deepest", "large-number-in-data", "NUL-in-data", "l3", "z-zstd"} {
		run(t, "", "op", "wait", "-O", "bad", id).expect(t, exitFailed, "invalid_data", "fault of the handler")
	}
	run(t, "", "op", "get", "the-year-9999", "-O", "bad").expect(t, exitOK, "postponed")
}

// badElsewhere are bad records on the topics that only our own programs write.
func badElsewhere() []sent {
	topics := schemas.Topics{}
	on := func(topic, typ, value string) *kgo.Record {
		rec := binaryMode("r", value, head("ce_type", typ))
		rec.Topic = topic
		return rec
	}
	report := func(value string) *kgo.Record { return on(topics.Reports(), "opstream.attempt.succeeded.v1", value) }
	signal := func(value string) *kgo.Record {
		return on(topics.Signals(), "opstream.request.forwarded.v1", value)
	}
	inner := func(value string) string {
		quoted, _ := json.Marshal(value) //nolint:errchkjson // a string
		return `{"from":{"topic":"opstream.requests","partition":0,"offset":1},"type":"` + requestedType + `","id":"i","source":"/crm","value":` + string(quoted) + `}`
	}
	return []sent{
		{"report, truncated", report(`{"organization":"bad"`), "dead malformed_json"},
		{"report, tombstone", &kgo.Record{Topic: topics.Reports(), Key: []byte("k")}, "dead missing_header"},
		{"report, of a newer version", report(`{"organization":"bad","id":"x","attempt":1,"session":"s","pay":1}`), "rejected not_found"},
		{"report, large number", report(`{"organization":"bad","id":"x","attempt":4294967296,"session":"s"}`), "rejected out_of_range"},
		{"report, deep", report(`{"organization":"bad","id":"x","attempt":1,"session":"s","result":` + strings.Repeat("[", 100_000)), "dead too_deep"},
		{"report, large", report(strings.Repeat(" ", 7<<20)), "dead too_large"},
		{"report, large result", report(`{"organization":"bad","id":"x","attempt":1,"session":"s","result":"` + strings.Repeat("x", 300<<10) + `"}`), "rejected too_long"},
		{"report, no such operation", report(`{"organization":"bad","id":"nobody","attempt":1,"session":"s"}`), "rejected not_found"},
		{"report, another's operation", report(`{"organization":"good","id":"good-0-0","attempt":1,"session":"s"}`), "rejected not_found"},
		{"report, a request", on(topics.Reports(), requestedType, with("x", "")), "dead wrong_topic"},
		{"signal, no JSON", signal(`no`), "dead malformed_json"},
		{"signal, nothing", &kgo.Record{Topic: topics.Signals()}, "dead missing_header"},
		{"signal, nothing in it", signal(`{}`), "dead missing_field"},
		{"signal, bad base64", signal(`{"valueBase64":"*"}`), "dead invalid_attributes"},
		{"signal, bad request in it", signal(inner(`{"organization":`)), "dead malformed_json"},
		{"signal, refused request in it", signal(inner(`{"organization":"bad","id":"in-signal"}`)), "rejected required"},
		{"signal, good request in it", signal(inner(`{"organization":"bad","id":"by-signal","type":"noop"}`)), "requested"},
	}
}

// TestBadInputToTheWorkersTopics: what stands in the topics of the sessions and of the inboxes and cannot be read is passed
// over; who wrote it writes again.
func TestBadInputToTheWorkersTopics(t *testing.T) {
	h := newHostileSender(t)
	for _, value := range []string{"", "{", "null", strings.Repeat("[", 100_000), "\xff", `{"session":"x","slots":-1}`, `{"slots":99999999999999999999}`} {
		for _, topic := range []string{h.topics.Sessions(), h.topics.Inboxes()} {
			for _, typ := range []string{"opstream.session.heartbeat.v1", "opstream.attempt.offered.v1", "opstream.attempt.cancel.v1", "nobody.knows"} {
				rec := binaryMode("w", value, head("ce_type", typ))
				rec.Topic, rec.Partition, rec.Key = topic, 0, nil
				h.put(rec)
			}
		}
		h.put(&kgo.Record{Topic: h.topics.Sessions()})
		h.put(&kgo.Record{Topic: h.topics.Inboxes()})
	}
	for p := range int32(hostilePartitions) {
		h.follow(p)
	}
	h.settle()
}

// TestASessionThatIsNone: a heartbeat that can be read but comes of no worker, with all the room that there can be and an inbox
// that there is not, gets work, and loses it with its lease.
func TestASessionThatIsNone(t *testing.T) {
	h := newHostileSender(t)
	for i, more := range []string{`"inbox":999999,"lease":"1s"`, `"inbox":2147483647,"lease":"1s"`, `"inbox":0,"lease":"1ns"`} {
		rec := binaryMode("w", fmt.Sprintf(`{"session":"\u0000ghost-%d","pool":"","types":["ghosts",""," "],"slots":2147483647,"queue":2147483647,"state":"running","sequence":1,%s}`, i, more),
			head("ce_type", "opstream.session.heartbeat.v1"))
		rec.Topic, rec.Partition = h.topics.Sessions(), 0
		h.put(rec)
	}
	for i := range 6 {
		id := fmt.Sprint("for-ghosts-", i)
		rec := binaryMode(id, strings.Replace(with(id, ""), "noop", "ghosts", 1))
		h.put(rec)
		h.follow(rec.Partition)
	}
	h.settle()
	eventually(t, 20*time.Second, func() (bool, string) {
		var list api.List
		if err := h.json("/v1/operations?organization=bad&status=ready", &list); err != nil {
			return false, err.Error()
		}
		return len(list.Operations) == 6 && strings.Contains(list.Operations[0].Why, "no worker"), fmt.Sprintf("%+v", list.Operations)
	})
}

// TestTooLargeForTheBroker: the broker's own limit stands before ours, and our client says so before anything is sent.
func TestTooLargeForTheBroker(t *testing.T) {
	h := newHostileSender(t)
	huge := strings.Repeat("x", 50<<20)
	err := h.kafka.ProduceSync(t.Context(), binaryMode("huge", with("huge", `"data":"`+huge+`"`))).FirstErr()
	if !errors.Is(err, kerr.MessageTooLarge) {
		t.Errorf("expected the broker to refuse 50 MiB, but got %v", err)
	}
	crm, err := producers.New(producers.Config{Brokers: h.s.cfg.brokers, Source: "/crm", Options: h.s.cfg.clientOptions()})
	if err != nil {
		t.Fatal(err)
	}
	defer crm.Close(context.WithoutCancel(t.Context()))
	err = crm.Request(t.Context(), &producers.Request{Organization: "bad", ID: "huge", Type: "noop", Data: huge})
	if fault, ok := errors.AsType[*producers.Error](err); !ok || fault.Code != schemas.TooLarge || !errors.Is(err, producers.ErrGiveUp) {
		t.Errorf("expected the client to refuse 50 MiB for good, but got %v", err)
	}
	status, _, body := h.http(http.MethodPost, "/v1/operations", nil, with("huge", `"data":"`+huge+`"`))
	if p := problem(t, body); status != http.StatusRequestEntityTooLarge || p.Code != api.TooLarge {
		t.Errorf("expected 413 for 50 MiB, but got %d: %s", status, body)
	}
	file := with("one", "") + "\n" + with("huge", `"data":"`+huge+`"`) + "\n" + with("two", "") + "\n"
	run(t, file, "op", "submit", "--from", "-").expect(t, exitRefused, "accepted 2, unchanged 0, refused 1 (3 lines", "too_large")
	status, _, body = h.http(http.MethodPost, "/v1/operations:batch", http.Header{"Content-Type": {"application/jsonl"}}, file)
	answers := lines[api.BatchLine](t, string(body))
	if status != http.StatusOK || len(answers) != 4 || answers[1].Problem == nil || answers[1].Problem.Code != api.TooLarge || !answers[2].Unchanged {
		t.Errorf("expected the long line to be refused and its neighbours to be known, but got %d: %s", status, body)
	}
	h.follow(0)
	h.settle()
}

func problem(t testing.TB, body []byte) api.Problem {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal(body, &p); err != nil {
		t.Errorf("expected a problem, but got %.200q: %v", body, err)
	}
	return p
}

package projections

import (
	"bytes"
	"context"
	"fmt"
	"reflect"
	"strings"

	"github.com/opstream/opstream/domain/operation"
)

// Source is a journal that can be read again from its beginning.
type Source interface {
	// Ends returns the offset after the last record of every partition.
	Ends(ctx context.Context) (map[int32]int64, error)
	// Read shows the valid events of a partition from offset 0 on that stand before the given offset, in order, and returns the
	// position there. What show is given it may keep.
	Read(ctx context.Context, partition int32, to int64, show func(Entry) error) (Position, error)
}

// Difference is something that the tables have and the journal does not say, or the other way round.
type Difference struct {
	Partition  int32
	Place      operation.Place // of the operation's request, or of a rejection; -1 for positions and counts
	Org        string
	ID         operation.ID
	What       string
	Want, Have string // of the journal, of the tables
}

func (d Difference) String() string {
	return fmt.Sprintf("partition %d offset %d, operation %q of organization %q: %s: the journal says %s, the tables say %s",
		d.Partition, d.Place, d.ID, d.Org, d.What, d.Want, d.Have)
}

// Report is what Verify found.
type Report struct {
	Events      int64           // folded
	Operations  int64           // rows compared
	Rejections  int64           // rejections compared
	Counts      int64           // counts compared
	Lag         map[int32]int64 // offsets by which the tables are behind the journal's end, where they are
	Lost        map[int32]int64 // offsets by which the journal ends before the tables, where it does: it is not the one that they were made from
	Differing   int64           // all differences
	Differences []Difference    // the first of them
}

// OK says whether the tables are what the journal says.
func (r *Report) OK() bool { return r.Differing == 0 }

// MaxDifferences is how many differences a report tells in full.
const MaxDifferences = 100

// Verify folds the journal from its beginning to where the tables stand, one event after another through
// operation.State.Apply and without any of the machinery of [Projector], and compares every row of every table with it. The
// tables are compared as they were at one moment; they may be written meanwhile.
//
// It remembers about one KiB for each operation of one partition that has not ended, about 300 bytes for each that has,
// and 16 bytes for each rejection of all partitions.
func Verify(ctx context.Context, store Store, journal Source) (Report, error) {
	ends, err := journal.Ends(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("find the ends of the journal: %w", err)
	}
	v := &verifier{journal: journal, ends: ends, rejections: map[Key]uint64{}, counts: map[Count]int64{}}
	v.report.Lag = map[int32]int64{}
	err = store.Dump(ctx, Visitor{
		Positions: func(p []Position) error {
			v.begin(p)
			return nil
		},
		Operation: func(row *Row, history []byte) error { return v.operation(ctx, row, history) },
		Rejection: func(r *Rejection) error { return v.rejection(ctx, r) },
		Count:     func(c Count) error { return v.count(ctx, c) },
		Fault: func(k Key, what string) error {
			v.differ(Difference{Partition: k.Partition(), Place: k.Place(), What: "the store contradicts itself", Want: "nothing of it", Have: what})
			return nil
		},
	})
	if err != nil {
		return v.report, fmt.Errorf("compare the tables with the journal: %w", err)
	}
	if err := v.advance(ctx, MaxPartition+1); err != nil {
		return v.report, err
	}
	for k := range v.rejections {
		v.differ(Difference{Partition: k.Partition(), Place: k.Place(), What: "a rejection is missing", Want: "one", Have: "none"})
	}
	for c, n := range v.counts {
		if n != 0 {
			v.differ(Difference{Partition: -1, Place: -1, Org: c.Organization, What: countText(c), Want: fmt.Sprint(n), Have: "0"})
		}
	}
	return v.report, nil
}

func countText(c Count) string {
	return fmt.Sprintf("the number of operations of type %q, status %v, wait %q", c.Type, c.Status, c.Wait)
}

type verifier struct {
	journal   Source
	ends      map[int32]int64
	positions []Position // not begun yet
	report    Report

	partition  int32 // that expected is of, -1 before the first
	expected   map[Key]*expectation
	rejections map[Key]uint64
	counts     map[Count]int64 // with N 0
}

// expectation is what the journal says of an operation.
type expectation struct {
	state           *operation.State // until it has ended
	ended           []byte           // the state, encoded
	events, request checksum
}

// checksum tells texts apart that were not made to deceive it (64-bit FNV-1a, and the length).
type checksum struct {
	sum uint64
	n   int64
}

func (c *checksum) write(b []byte) {
	h := c.sum
	if c.n == 0 {
		h = 14695981039346656037
	}
	for _, x := range b {
		h = (h ^ uint64(x)) * 1099511628211
	}
	c.sum, c.n = h, c.n+int64(len(b))
}

func sumOf(b []byte) checksum {
	var c checksum
	c.write(b)
	return c
}

func (c checksum) String() string { return fmt.Sprintf("%d bytes with check sum %016x", c.n, c.sum) }

func (v *verifier) differ(d Difference) {
	v.report.Differing++
	if len(v.report.Differences) < MaxDifferences {
		v.report.Differences = append(v.report.Differences, d)
	}
}

func (v *verifier) begin(positions []Position) {
	v.positions, v.partition = positions, -1
	for partition, end := range v.ends {
		v.report.Lag[partition] = end
	}
	for _, p := range positions {
		// The tables may have passed the end that was found before.
		v.report.Lag[p.Partition] = max(v.ends[p.Partition]-p.Next, 0)
	}
	for partition, lag := range v.report.Lag {
		if lag == 0 {
			delete(v.report.Lag, partition)
		}
	}
}

// advance folds all partitions up to this one, and reports what the tables should have had of those before.
func (v *verifier) advance(ctx context.Context, partition int32) error {
	for v.partition < partition {
		for key, want := range v.expected {
			s := want.decode()
			v.differ(Difference{Partition: key.Partition(), Place: key.Place(), Org: s.Org, ID: s.ID, What: "the operation is missing", Want: s.Status.String(), Have: "none"})
		}
		v.expected = nil
		if len(v.positions) == 0 || v.positions[0].Partition > partition {
			v.partition = partition
			return nil
		}
		p := v.positions[0]
		v.positions = v.positions[1:]
		v.partition = p.Partition
		if err := v.fold(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// fold makes the expectations of one partition.
func (v *verifier) fold(ctx context.Context, p Position) error {
	v.expected = map[Key]*expectation{}
	latest := map[Ref]Key{}
	var buf []byte
	var at operation.Time
	got, err := v.journal.Read(ctx, p.Partition, p.Next, func(e Entry) error {
		v.report.Events++
		ev := &e.Event
		at = ev.At
		if !about(ev) {
			return nil
		}
		ref := Ref{p.Partition, ev.Org, ev.ID}
		if ev.Kind == operation.Requested {
			latest[ref] = KeyOf(p.Partition, e.Place)
			v.expected[latest[ref]] = &expectation{state: &operation.State{}}
		}
		key, known := latest[ref]
		if !known {
			switch {
			case ev.Kind == operation.Rejected:
				r := rejection(&e)
				v.rejections[KeyOf(e.Partition, e.Place)] = rejectionSum(&r)
			case ev.Kind.Changes() && ev.Kind != operation.Deleted: // what never was may be deleted, see package partition
				v.differ(Difference{Partition: e.Partition, Place: e.Place, Org: ev.Org, ID: ev.ID, What: "the event " + ev.Kind.String() + " is about no operation", Want: "a request before it", Have: "none"})
			}
			return nil
		}
		x := v.expected[key]
		if ev.Kind.Changes() {
			s := x.decode()
			s.Apply(ev, e.Place)
			if ev.Request != nil {
				x.request = sumOf(ev.Request.Raw)
				r := *ev.Request
				r.Raw, r.Data = nil, nil
				s.Request = &r
			}
			if s.Status == operation.StatusDeleted {
				delete(v.expected, key)
				delete(latest, ref)
				return nil
			}
			x.state, x.ended = s, nil
			if s.Status.Terminal() {
				x.state, x.ended = nil, AppendState(nil, s)
			}
		}
		buf = AppendHistory(buf[:0], ev, e.Place)
		x.events.write(buf)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read partition %d of the journal: %w", p.Partition, err)
	}
	if got.Next < p.Next {
		if v.report.Lost == nil {
			v.report.Lost = map[int32]int64{}
		}
		v.report.Lost[p.Partition] = p.Next - got.Next
	}
	if got.Next != p.Next || got.At != p.At || !bytes.Equal(got.Chain, p.Chain) {
		v.differ(Difference{Partition: p.Partition, Place: -1, What: "the position", Want: positionText(got), Have: positionText(p)})
	}
	if got.At != at {
		v.differ(Difference{Partition: p.Partition, Place: -1, What: "the time of the last event", Want: at.Go().String(), Have: got.At.Go().String()})
	}
	for _, x := range v.expected {
		s := x.decode()
		c := Count{Type: s.Request.Type, Status: s.Status, Wait: s.Wait()}
		v.counts[c]++
		c.Organization = s.Org
		v.counts[c]++
	}
	return nil
}

func positionText(p Position) string {
	return fmt.Sprintf("offset %d, chain %.150q, time %v", p.Next, p.Chain, p.At.Go())
}

func rejectionSum(r *Rejection) uint64 {
	b := AppendRejection(nil, r)
	b = fmt.Appendf(b, "%d", r.At)
	return sumOf(b).sum
}

// decode returns the state; it is the expectation's own while the operation has not ended.
func (x *expectation) decode() *operation.State {
	if x.state != nil {
		return x.state
	}
	s := &operation.State{}
	if err := DecodeState(x.ended, s); err != nil {
		// invariant: AppendState wrote it a moment ago
		panic(fmt.Sprintf("expected to read the state that was just written, but: %v", err))
	}
	return s
}

func (v *verifier) operation(ctx context.Context, row *Row, history []byte) error {
	if err := v.advance(ctx, row.Partition); err != nil {
		return err
	}
	v.report.Operations++
	key := row.Key()
	d := Difference{Partition: row.Partition, Place: row.RequestedPlace, Org: row.Org, ID: row.ID}
	x := v.expected[key]
	if x == nil {
		d.What, d.Want, d.Have = "an operation that is not in the journal", "none", row.Status.String()
		v.differ(d)
		return nil
	}
	delete(v.expected, key)
	if have := sumOf(row.Request.Raw); have != x.request {
		d.What, d.Want, d.Have = "the request", x.request.String(), have.String()
		v.differ(d)
	}
	if have := sumOf(history); have != x.events {
		d.What, d.Want, d.Have = "the history", x.events.String(), have.String()
		v.differ(d)
	}
	want := x.decode()
	if bytes.Equal(AppendState(nil, want), AppendState(nil, &row.State)) {
		return nil
	}
	for _, f := range fieldsApart(want, &row.State) {
		d.What, d.Want, d.Have = f[0], f[1], f[2]
		v.differ(d)
	}
	return nil
}

// fieldsApart lists name and both values of the fields that differ, without the request's payload.
func fieldsApart(want, have *operation.State) [][3]string {
	var out [][3]string
	compare := func(prefix string, a, b reflect.Value) {
		for i := range a.NumField() {
			name := a.Type().Field(i).Name
			if name == "Request" || name == "Raw" || name == "Data" {
				continue
			}
			x, y := a.Field(i).Interface(), b.Field(i).Interface()
			if !reflect.DeepEqual(x, y) {
				out = append(out, [3]string{prefix + name, show(x), show(y)})
			}
		}
	}
	compare("", reflect.ValueOf(*want), reflect.ValueOf(*have))
	compare("Request.", reflect.ValueOf(*want.Request), reflect.ValueOf(*have.Request))
	return out
}

func show(v any) string {
	text := fmt.Sprintf("%+v", v)
	if r := reflect.ValueOf(v); r.Kind() == reflect.Pointer && !r.IsNil() {
		text = fmt.Sprintf("%+v", r.Elem().Interface())
	}
	if b, ok := v.([]byte); ok {
		text = fmt.Sprintf("%q", b)
	}
	if len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "") + " …"
	}
	return text
}

func (v *verifier) rejection(ctx context.Context, r *Rejection) error {
	if err := v.advance(ctx, MaxPartition+1); err != nil {
		return err
	}
	v.report.Rejections++
	key := KeyOf(r.Partition, r.Place)
	want, ok := v.rejections[key]
	delete(v.rejections, key)
	if have := rejectionSum(r); !ok || want != have {
		d := Difference{Partition: r.Partition, Place: r.Place, Org: r.Org, ID: r.ID, What: "a rejection", Want: "another one", Have: show(r)}
		if !ok {
			d.Want = "none"
		}
		v.differ(d)
	}
	return nil
}

func (v *verifier) count(ctx context.Context, c Count) error {
	if err := v.advance(ctx, MaxPartition+1); err != nil {
		return err
	}
	v.report.Counts++
	have := c.N
	c.N = 0
	want := v.counts[c]
	delete(v.counts, c)
	if want != have {
		v.differ(Difference{Partition: -1, Place: -1, Org: c.Organization, What: countText(c), Want: fmt.Sprint(want), Have: fmt.Sprint(have)})
	}
	return nil
}

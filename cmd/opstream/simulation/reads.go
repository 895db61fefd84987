package simulation

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
)

// moment is what an operation was after one event.
type moment struct {
	place operation.Place
	at    time.Duration // when the event was sent, by the world's time
	state operation.State
}

// gone says whether the operation is in the tables no more.
func (m *moment) gone() bool { return m.state.Status == operation.StatusDeleted }

// placeIn is what positions say of a partition, -1 when it is nothing.
func placeIn(positions api.Positions, partition int32) operation.Place {
	for _, p := range positions {
		if p.Partition == partition {
			return p.Place
		}
	}
	return -1
}

// during lists what the operation was at a time when the tables had asOf at least, and the answer had not come yet: the last moment
// up to asOf, if there is one, and all later ones that may have been before the answer.
func (t *track) during(asOf operation.Place, answered time.Duration) []*moment {
	var out []*moment
	for i := range t.moments {
		m := &t.moments[i]
		switch {
		case m.place <= asOf:
			out = append(out[:0], m)
		case m.at <= answered:
			out = append(out, m)
		}
	}
	return out
}

// find returns the operation of a name: a name lives in one partition, whatever strays.
func (f *fold) find(org, id string) (ref, *track) {
	for _, r := range f.order {
		if r.org == org && string(r.id) == id {
			return r, f.ops[r]
		}
	}
	return ref{}, nil
}

func micro(t *time.Time) int64 {
	if t == nil {
		return 0
	}
	return t.UnixMicro()
}

// shownAs writes down what the API shows of an operation. Lists do not show everything.
func shownAs(o *api.Operation, full bool) string {
	text := fmt.Sprintf("%s %s/%s type %s wait %q blocked by %q token %q key %q priority %d attempt %d failures %d session %q sequence %d until %d created %d modified %d started %d completed %d",
		o.Status, o.Organization, o.ID, o.Type, o.Wait, o.BlockedBy, o.DependencyToken, o.PartitionKey, o.Priority, o.Attempt, o.Failures, o.Session,
		o.Sequence, micro(o.Until), o.CreatedAt.UnixMicro(), o.ModifiedAt.UnixMicro(), micro(o.StartedAt), micro(o.CompletedAt))
	if o.By != nil {
		text += fmt.Sprintf(" by %q because %q", o.By.Who, o.By.Reason)
	}
	if o.Failure != nil {
		text += fmt.Sprintf(" failure %s %q", o.Failure.Code, o.Failure.Message)
	}
	if full {
		var request struct {
			Data json.RawMessage `json:"data"`
		}
		if err := json.Unmarshal(o.Request, &request); err != nil {
			text += fmt.Sprintf(" request %v", err)
		}
		text += fmt.Sprintf(" data %s progress %s result %s", compact(request.Data), compact(o.Progress), compact(o.Result))
	}
	return text
}

// folded writes down what shownAs should say.
func folded(s *operation.State, full bool) string {
	q := s.Request
	wait := s.Wait().String()
	text := fmt.Sprintf("%s %s/%s type %s wait %q blocked by %q token %q key %q priority %d attempt %d failures %d session %q sequence %d until %d created %d modified %d started %d completed %d",
		s.Status, s.Org, s.ID, q.Type, wait, s.BlockedBy, q.DependencyToken, q.Key(), q.Priority, s.Attempt, s.Failures, s.Session,
		s.RequestedPlace, s.Until, s.CreatedAt, s.ModifiedAt, s.StartedAt, s.CompletedAt)
	if s.By != (operation.By{}) {
		text += fmt.Sprintf(" by %q because %q", s.By.Who, s.By.Reason)
	}
	if s.Failure != nil {
		text += fmt.Sprintf(" failure %s %q", s.Failure.Code, s.Failure.Message)
	}
	if full {
		text += fmt.Sprintf(" data %s progress %s result %s", compact(q.Data), compact(s.Progress), compact(s.Result))
	}
	return text
}

func compact(data []byte) string {
	if len(data) == 0 {
		return ""
	}
	var b bytes.Buffer
	if err := json.Compact(&b, data); err != nil {
		return err.Error()
	}
	return b.String()
}

// checkRow holds a row against the journal: it is what the operation was at the row's position, that had come to be when the
// answer came, and nothing that the answer claims to know is missing.
func (w *world) checkRow(f *fold, what string, row *api.Operation, full bool, asOf api.Positions, answered time.Duration) {
	at, err := api.ParsePosition(row.Position)
	if err != nil {
		w.violation("%s was shown %s/%s without a position: %v", what, row.Organization, row.ID, err)
		return
	}
	t := f.ops[ref{at.Partition, row.Organization, operation.ID(row.ID)}]
	if t == nil {
		w.violation("%s was shown %s/%s at %s, which the journal does not know", what, row.Organization, row.ID, at)
		return
	}
	var m *moment
	for i := range t.moments {
		if t.moments[i].place == at.Place {
			m = &t.moments[i]
		}
	}
	if m == nil {
		w.violation("%s was shown %s/%s at %s, where nothing has changed it", what, row.Organization, row.ID, at)
		return
	}
	if is, should := shownAs(row, full), folded(&m.state, full); is != should {
		w.violation("%s was shown at %s:\n%s, but the journal says:\n%s", what, at, is, should)
	}
	if m.at > answered {
		w.violation("%s was shown %s/%s at %s, which was written at %s, after the answer at %s", what, row.Organization, row.ID, at, m.at, answered)
	}
	if known := placeIn(asOf, at.Partition); !slices.Contains(t.during(known, answered), m) {
		w.violation("%s was shown %s/%s at %s as of %s, but it has changed since", what, row.Organization, row.ID, at, asOf)
	}
}

// checkReads judges what clients were shown.
func (w *world) checkReads(f *fold) {
	for _, r := range w.history.reads {
		what := r.String()
		if r.err != nil {
			if r.who == "operator" {
				w.violation("%s: in the quiet phase it must be answered, but: %v", what, r.err)
			}
			continue
		}
		for _, p := range r.after {
			if have := placeIn(r.asOf, p.Partition); have < p.Place {
				w.violation("%s after %s was answered as of %s", what, r.after, r.asOf)
			}
		}
		for _, p := range r.asOf {
			if entries := f.entries[p.Partition]; int64(p.Place) >= int64(len(entries)) || entries[p.Place].at > r.ended {
				w.violation("%s was answered as of %s, but there was no %s yet", what, r.asOf, p)
			}
		}
		switch r.plan.kind {
		case readOne, readHistory:
			w.checkOne(f, what, r)
		case readList, readSome:
			w.checkList(f, what, r)
		case readCounts:
			w.checkCounts(f, what, r)
		}
	}
}

func (w *world) checkOne(f *fold, what string, r *read) {
	at, t := f.find(r.org, r.id)
	for i := range r.rows {
		w.checkRow(f, what, &r.rows[i], true, r.asOf, r.ended)
	}
	if t == nil {
		return // a row or an event would have been a violation, and missing is right
	}
	known := placeIn(r.asOf, at.partition)
	if r.missing {
		possible := known < t.moments[0].place
		for _, m := range t.during(known, r.ended) {
			possible = possible || m.gone()
		}
		if !possible {
			w.violation("%s was answered as of %s that there is no such operation, but it was requested at %d-%d", what, r.asOf, at.partition, t.moments[0].place)
		}
		return
	}
	if r.plan.kind != readHistory {
		return
	}
	last := operation.Place(-1)
	shown := map[operation.Place]bool{}
	for i := range r.events {
		e := &r.events[i]
		p, err := api.ParsePosition(e.Position)
		if err != nil || p.Partition != at.partition || int64(p.Place) >= int64(len(f.entries[at.partition])) {
			w.violation("%s was shown an event at %q, which is not there: %v", what, e.Position, err)
			return
		}
		entry := &f.entries[p.Partition][p.Place]
		ev := &entry.event
		if !entry.valid || ev.Org != r.org || string(ev.ID) != r.id || ev.Kind.String() != e.Event || uint32(ev.Attempt) != e.Attempt || ev.At.Go().UnixMicro() != e.At.UnixMicro() || ev.CommandID != e.CommandID {
			w.violation("%s was shown %s attempt %d of command %q at %s, but there is %s %s/%s attempt %d of command %q, valid %t", what, e.Event, e.Attempt, e.CommandID, p, ev.Kind, ev.Org, ev.ID, ev.Attempt, ev.CommandID, entry.valid)
		}
		if p.Place <= last || entry.at > r.ended {
			w.violation("%s was shown %s, sent at %s, after %d", what, p, entry.at, last)
		}
		last = p.Place
		shown[p.Place] = true
	}
	for _, m := range t.moments {
		if m.place <= known && !shown[m.place] && !m.gone() {
			w.violation("%s was not shown %d-%d, as of %s", what, at.partition, m.place, r.asOf)
		}
	}
}

func (w *world) checkList(f *fold, what string, r *read) {
	matches := func(m *moment) bool {
		return !m.gone() && (r.plan.kind == readList || slices.Contains(r.plan.statuses, m.state.Status))
	}
	shown := map[ref]bool{}
	for i := range r.rows {
		row := &r.rows[i]
		// Later pages know more than the first one says.
		w.checkRow(f, what, row, false, r.asOf, r.ended)
		at, _ := f.find(row.Organization, row.ID)
		if shown[at] {
			w.violation("%s was shown %s twice", what, at)
		}
		shown[at] = true
		if status, _ := operation.ParseStatus(row.Status); row.Organization != r.org || r.plan.kind == readSome && !slices.Contains(r.plan.statuses, status) {
			w.violation("%s was shown %s, which is %s", what, at, row.Status)
		}
	}
	for _, at := range f.order {
		t := f.ops[at]
		if at.org != r.org || shown[at] || placeIn(r.asOf, at.partition) < t.moments[0].place {
			continue
		}
		all := true
		for _, m := range t.during(placeIn(r.asOf, at.partition), r.ended) {
			all = all && matches(m)
		}
		if all {
			w.violation("%s was not shown %s, as of %s", what, at, r.asOf)
		}
	}
}

func (w *world) checkCounts(f *fold, what string, r *read) {
	var least, most int64
	for _, at := range f.order {
		t := f.ops[at]
		if at.org != r.org {
			continue
		}
		some, all := false, placeIn(r.asOf, at.partition) >= t.moments[0].place
		for _, m := range t.during(placeIn(r.asOf, at.partition), r.ended) {
			some, all = some || !m.gone(), all && !m.gone()
		}
		if all {
			least++
		}
		if some {
			most++
		}
	}
	sums := [2]int64{}
	for _, s := range r.counts.ByStatus {
		sums[0] += s.Count
	}
	for _, t := range r.counts.ByType {
		sums[1] += t.Count
	}
	if n := r.counts.Total; n < least || n > most || n != sums[0] || n != sums[1] {
		w.violation("%s as of %s was told that there are %d (%d by status, %d by type), but there were %d to %d", what, r.asOf, n, sums[0], sums[1], least, most)
	}
}

// checkStreams judges what clients heard without asking.
func (w *world) checkStreams(f *fold) {
	for _, s := range w.history.streams {
		what := fmt.Sprintf("%s, who heard of projector%d from %s on,", s.who, s.node, s.began)
		last := map[ref]operation.Place{}
		for i := range s.changes {
			c := &s.changes[i].change
			at, err := api.ParsePosition(c.Position)
			r := ref{at.Partition, c.Organization, operation.ID(c.ID)}
			t := f.ops[r]
			if err != nil || t == nil {
				w.violation("%s was told of %s/%s at %q, which the journal does not know", what, c.Organization, c.ID, c.Position)
				continue
			}
			var m *moment
			for i := range t.moments {
				if t.moments[i].place == at.Place {
					m = &t.moments[i]
				}
			}
			if m == nil || m.state.Status.String() != c.Status || m.state.Wait().String() != c.Wait || m.at > s.changes[i].at || m.state.ModifiedAt.Go().UnixMicro() != c.At.UnixMicro() {
				w.violation("%s was told at %s that %s is %s %s at %s, but the journal says %+v", what, s.changes[i].at, r, c.Status, c.Wait, at, m)
				continue
			}
			if before, ok := last[r]; ok && before >= at.Place {
				w.violation("%s was told of %s at %d after %d", what, r, at.Place, before)
			}
			last[r] = at.Place
		}
		if !s.final || w.plan.Twin && s.node == 0 { // of what a twin writes, a node does not hear
			continue
		}
		for _, r := range f.order {
			t := f.ops[r]
			m := &t.moments[len(t.moments)-1]
			if !m.gone() && m.place > placeIn(s.asOf, r.partition) && last[r] != m.place {
				w.violation("%s was not told of %s at %d, but last at %d", what, r, m.place, last[r])
			}
		}
	}
}

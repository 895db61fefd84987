package schemas

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
)

// logRecord is an unsealed record.
func logRecord(value string) *kgo.Record {
	return EncodeEvent(&operation.Event{Kind: operation.Opened, At: now, Owner: value}, []byte("k"), 3)
}

// sealed seals one record for each value with a copy of chain, and returns the copy.
func sealed(chain Chain, values ...string) ([]*kgo.Record, Chain) {
	var out []*kgo.Record
	for _, v := range values {
		rec := logRecord(v)
		chain.Seal(rec)
		out = append(out, rec)
	}
	return out, chain
}

// log puts records at the offsets 0, 1, 2 …, each a copy of its own.
func log(recs ...*kgo.Record) []*kgo.Record {
	var out []*kgo.Record
	for i, r := range recs {
		c := *r
		c.Offset = int64(i)
		c.Value = bytes.Clone(r.Value)
		c.Key = bytes.Clone(r.Key)
		c.Headers = nil
		for _, h := range r.Headers {
			c.Headers = append(c.Headers, kgo.RecordHeader{Key: h.Key, Value: bytes.Clone(h.Value)})
		}
		out = append(out, &c)
	}
	return out
}

// verdicts judges the records and returns one letter for each: V, - (void), B.
func verdicts(t *testing.T, chain *Chain, recs []*kgo.Record) string {
	t.Helper()
	out := ""
	for _, r := range recs {
		before := *chain
		v, err := chain.Check(r)
		out += map[Verdict]string{Valid: "V", Void: "-", Broken: "B"}[v]
		var broken *ErrBroken
		if (v == Broken) != errors.As(err, &broken) {
			t.Errorf("expected an error with Broken only, but got %v with %s", err, v)
		}
		if v == Broken && *chain != before {
			t.Errorf("expected the chain to stay as it was, but it changed from %s to %s", before, *chain)
		}
		if v == Valid && (chain.Last != r.Offset || chain.Next != r.Offset+1) {
			t.Errorf("expected the chain to stand behind offset %d, but got %s", r.Offset, chain)
		}
	}
	return out
}

func header(rec *kgo.Record, key string) *kgo.RecordHeader {
	for i := range rec.Headers {
		if rec.Headers[i].Key == key {
			return &rec.Headers[i]
		}
	}
	return nil
}

func TestChainJudgesRecords(t *testing.T) {
	a, afterA := sealed(Chain{}, "a0", "a1", "a2", "a3")
	atTwo := Chain{}
	for _, r := range log(a[:2]...) {
		if v, err := atTwo.Check(r); v != Valid {
			t.Fatal(v, err)
		}
	}
	b, _ := sealed(atTwo, "b2", "b3", "b4")
	stale, _ := sealed(Chain{}, "s0", "s1", "s2")
	foreign := &kgo.Record{Key: []byte("k"), Value: []byte("{}")}
	change := func(at int, f func(r *kgo.Record)) []*kgo.Record {
		recs := log(a...)
		f(recs[at])
		return recs
	}
	flip := func(b []byte) { b[len(b)/2] ^= 1 }

	for _, c := range []struct {
		name string
		log  []*kgo.Record
		want string
	}{
		{"in order", log(a...), "VVVV"},
		{"a stale writer's pipelined appends land late", log(a[0], a[1], a[2], stale[0], stale[1], stale[2]), "VVV---"},
		{"a stale writer's appends land at their places", log(a[0], stale[1], stale[2]), "V--"},
		{"two writers from one place: the first in the log counts", log(a[0], a[1], b[0], a[2], b[1], a[3]), "VVV---"},
		{"two writers interleaved: a gap of void records throws the rest off", log(a[0], a[1], a[2], b[0], a[3], b[1], b[2]), "VVV----"},
		{"a record twice", log(a[0], a[1], a[1], a[2]), "VV--"},
		{"two records swapped", log(a[0], a[2], a[1], a[3]), "V---"},
		{"a record missing, the offsets closed up", log(a[0], a[2], a[3]), "V--"},
		{"a record missing, its offset left", []*kgo.Record{log(a...)[0], log(a...)[2], log(a...)[3]}, "V--"},
		{"a foreign record", log(a[0], foreign, a[1]), "V--"},
		{"value altered", change(1, func(r *kgo.Record) { flip(r.Value) }), "VB"},
		{"key altered", change(1, func(r *kgo.Record) { flip(r.Key) }), "VB"},
		{"a header's value altered", change(2, func(r *kgo.Record) { flip(header(r, HeaderTime).Value) }), "VVB"},
		{"a header's name altered", change(2, func(r *kgo.Record) { header(r, HeaderSource).Key = "ce_sourcf" }), "VVB"},
		{"a header added", change(0, func(r *kgo.Record) {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: "traceparent", Value: []byte("1")})
		}), "B"},
		{"a header removed", change(0, func(r *kgo.Record) { r.Headers = r.Headers[1:] }), "B"},
		{"headers swapped", change(0, func(r *kgo.Record) { r.Headers[0], r.Headers[1] = r.Headers[1], r.Headers[0] }), "B"},
		{"a byte moved from key to value", change(0, func(r *kgo.Record) { r.Value, r.Key = append([]byte("k"), r.Value...), nil }), "B"},
		{"chain altered", change(1, func(r *kgo.Record) { flip(header(r, HeaderChain).Value) }), "VB"},
		{"prev altered: another history", change(1, func(r *kgo.Record) { flip(header(r, HeaderPrev).Value) }), "V---"},
		{"place altered: decided for elsewhere", change(1, func(r *kgo.Record) { header(r, HeaderPlace).Value = []byte("7") }), "V---"},
		{"place doubled", change(1, func(r *kgo.Record) { r.Headers = append(r.Headers, *header(r, HeaderPlace)) }), "V---"},
		{"place malformed", change(1, func(r *kgo.Record) { header(r, HeaderPlace).Value = []byte("+1") }), "V---"},
		{"chain missing", change(3, func(r *kgo.Record) { r.Headers = r.Headers[:len(r.Headers)-1] }), "VVV-"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var chain Chain
			got := verdicts(t, &chain, c.log[:min(len(c.log), len(c.want))])
			if got != c.want {
				t.Errorf("expected %s, but got %s (chain %s)", c.want, got, chain)
			}
		})
	}

	t.Run("writer and reader agree", func(t *testing.T) {
		var chain Chain
		verdicts(t, &chain, log(a...))
		if chain != afterA {
			t.Errorf("expected %s, but got %s", afterA, chain)
		}
	})
	t.Run("records read again change nothing", func(t *testing.T) {
		chain := afterA
		if got := verdicts(t, &chain, log(a...)); got != "----" || chain != afterA {
			t.Errorf("expected void records and %s, but got %s and %s", afterA, got, chain)
		}
	})
	t.Run("a writer goes on behind void records", func(t *testing.T) {
		recs := log(a[0], a[1], stale[0], stale[1])
		var chain Chain
		verdicts(t, &chain, recs)
		more, want := sealed(chain, "c")
		more[0].Offset = 4
		if v, err := chain.Check(more[0]); v != Valid || chain != want {
			t.Errorf("expected the record to be valid and %s, but got %s %v and %s", want, v, err, chain)
		}
	})
	t.Run("a gap in the offsets", func(t *testing.T) {
		chain := afterA
		jumped := chain
		jumped.Next = 9 // as of a writer that has read void records up to there, which were trimmed since
		recs, _ := sealed(jumped, "j")
		recs[0].Offset = 9
		if v, _ := chain.Check(recs[0]); v != Valid || chain.Next != 10 {
			t.Errorf("expected valid and 10, but got %s and %s", v, chain)
		}
	})
	t.Run("a record sealed again", func(t *testing.T) {
		rec := logRecord("x")
		first, second := Chain{}, afterA
		first.Seal(rec)
		headers := len(rec.Headers)
		second.Seal(rec)
		rec.Offset = 4
		chain := afterA
		if v, err := chain.Check(rec); v != Valid || len(rec.Headers) != headers {
			t.Errorf("expected valid with %d headers, but got %s %v with %d", headers, v, err, len(rec.Headers))
		}
		if id := string(header(rec, HeaderID).Value); id != "3-4" {
			t.Errorf("expected the id 3-4, but got %s", id)
		}
	})
}

// A second history of more records than a writer can have under way is no stale writer's.
func TestChainRaisesTheAlarmOverAnotherHistory(t *testing.T) {
	first, _ := sealed(Chain{}, "a0")
	_, alt := sealed(Chain{}, "z0")
	var chain Chain
	if v, err := chain.Check(first[0]); v != Valid {
		t.Fatal(v, err)
	}
	rec := logRecord("z")
	for i := range MaxInFlight {
		alt.Seal(rec)
		rec.Offset = int64(i + 1)
		if v, err := chain.Check(rec); v != Void {
			t.Fatalf("record %d: expected void, but got %s %v", i, v, err)
		}
	}
	if chain.Alt != MaxInFlight {
		t.Fatalf("expected %d records of another history, but counted %d", MaxInFlight, chain.Alt)
	}
	text, err := chain.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	var restored Chain
	if err := restored.UnmarshalText(text); err != nil || restored != chain {
		t.Fatalf("expected %s, but got %s %v", chain, restored, err)
	}
	alt.Seal(rec)
	rec.Offset = MaxInFlight + 1
	if v, err := restored.Check(rec); v != Broken || err == nil {
		t.Errorf("expected broken, but got %s %v", v, err)
	}
	valid, _ := sealed(chain, "b")
	valid[0].Offset = MaxInFlight + 1
	if v, err := chain.Check(valid[0]); v != Valid || chain.Alt != 0 {
		t.Errorf("expected a valid record to end the other history, but got %s %v and %s", v, err, chain)
	}
}

// Two writers fight over a partition: they append batches that were decided on what they knew, some of them late, some
// never acknowledged. Whoever reads the log sees one history, and it is that of the records whose writers were told so.
func TestChainLeavesOneHistory(t *testing.T) {
	seeds := 300
	if testing.Short() {
		seeds = 50
	}
	for seed := range uint64(seeds) {
		r := rand.New(rand.NewPCG(seed, 1))
		type writer struct {
			chain   Chain
			read    int
			flying  []*kgo.Record
			after   Chain
			pending [][]*kgo.Record // given up, may still land
		}
		var (
			journal      []*kgo.Record
			writers      [2]writer
			acknowledged = map[string]bool{}
			made         int
		)
		land := func(recs []*kgo.Record) (ok bool) {
			ok = true
			for _, rec := range recs {
				c := *rec
				c.Offset = int64(len(journal))
				c.Headers = append([]kgo.RecordHeader(nil), rec.Headers...)
				journal = append(journal, &c)
				at, _ := parseInt(header(rec, HeaderPlace).Value)
				ok = ok && at == c.Offset
			}
			return ok
		}
		reread := func(w *writer) {
			for ; w.read < len(journal); w.read++ {
				if v, err := w.chain.Check(journal[w.read]); v == Broken {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
		}
		for range 300 {
			w := &writers[r.IntN(2)]
			switch k := r.IntN(10); {
			case k < 4 && w.flying == nil: // decide
				w.after = w.chain
				for range 1 + r.IntN(4) {
					made++
					rec := logRecord(fmt.Sprint(made))
					w.after.Seal(rec)
					w.flying = append(w.flying, rec)
				}
			case k < 7 && w.flying != nil: // the append lands and is answered
				if land(w.flying) {
					// At its places means valid: everything below was known, and nothing came between.
					for _, rec := range w.flying {
						acknowledged[string(rec.Value)] = true
					}
					w.chain, w.read = w.after, len(journal)
				} else {
					reread(w)
				}
				w.flying = nil
			case k == 7 && w.flying != nil: // not answered
				w.pending = append(w.pending, w.flying)
				w.flying = nil
				if r.IntN(2) == 0 {
					reread(w)
				}
			case k == 8 && len(w.pending) > 0: // lands late
				land(w.pending[0])
				w.pending = w.pending[1:]
			case k == 9 && w.flying == nil:
				reread(w)
			}
		}
		var chain, prefix Chain
		valid := map[string]bool{}
		for i, rec := range journal {
			v, err := chain.Check(rec)
			if v == Broken {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if v == Valid {
				valid[string(rec.Value)] = true
			}
			// A reader that stops anywhere and starts again from its stored chain judges alike.
			if i == len(journal)/2 {
				if err := prefix.UnmarshalText([]byte(chain.String())); err != nil || prefix != chain {
					t.Fatalf("seed %d: expected %s, but got %s %v", seed, chain, prefix, err)
				}
			}
		}
		for _, rec := range journal[len(journal)/2:] {
			if _, err := prefix.Check(rec); err != nil {
				t.Fatal(err)
			}
		}
		if prefix != chain {
			t.Errorf("seed %d: expected %s after a restart, but got %s", seed, chain, prefix)
		}
		for value := range acknowledged {
			if !valid[value] {
				t.Errorf("seed %d: expected what was acknowledged to be valid, but %s is void", seed, value)
			}
		}
		for i := range writers {
			writers[i].flying = nil
			reread(&writers[i])
			if writers[i].chain != chain {
				t.Errorf("seed %d: expected writer %d to know %s, but it knows %s", seed, i, chain, writers[i].chain)
			}
		}
	}
}

// TestChainAtItsEnd reads journals to their ends: one that ends in another history than its own is not whole.
func TestChainAtItsEnd(t *testing.T) {
	all, _ := sealed(Chain{}, "a", "b", "c", "d", "e", "f")
	stale, _ := sealed(Chain{Next: 2}, "x", "y") // as if nothing had been before them
	owner := func(next int64) []*kgo.Record {
		_, known := sealed(Chain{}, "a", "b")
		known.Next = next
		recs, _ := sealed(known, "opened")
		return recs
	}
	for _, c := range []struct {
		name     string
		recs     []*kgo.Record
		verdicts string
		offset   int64 // at which it is broken, -1 for nowhere
	}{
		{"nothing", nil, "", -1},
		{"whole", all, "VVVVVV", -1},
		{"another record instead of the third", append(append(all[:2:2], logRecord("z")), all[3:]...), "VV----", 2},
		{"the third and the fourth have changed places", append(append(all[:2:2], all[3], all[2]), all[4:]...), "VV----", 2},
		{"another record instead of the first", append([]*kgo.Record{logRecord("z")}, all[1:]...), "------", 0},
		{"another record instead of the last", append(all[:5:5], logRecord("z")), "VVVVV-", -1}, // nothing tells of it
		{"a stale writer, and the owner after it", append(append(all[:2:2], stale...), owner(4)...), "VV--V", -1},
		{"a stale writer, and nobody after it", append(all[:2:2], stale...), "VV--", 2},
	} {
		var chain Chain
		if got := verdicts(t, &chain, log(c.recs...)); got != c.verdicts {
			t.Errorf("%s: expected %s, but got %s", c.name, c.verdicts, got)
		}
		err := chain.AtEnd()
		var broken *ErrBroken
		if errors.As(err, &broken) != (c.offset >= 0) || broken != nil && broken.Offset != c.offset {
			t.Errorf("%s: expected the chain to be broken at %d, but got %v", c.name, c.offset, err)
		}
	}
}

func TestChainText(t *testing.T) {
	for _, c := range []Chain{{}, {Next: 17, Last: 16, Sum: [32]byte{31: 1}}, {Next: 1 << 62, Last: 5, Alt: 3, AltSum: [32]byte{1}}} {
		var got Chain
		if err := got.UnmarshalText([]byte(c.String())); err != nil || got != c {
			t.Errorf("expected %s, but got %s, %v", c, got, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "1.2.3", "-1.0." + zeros, "1.x." + zeros, "1.0." + zeros + "00", "1.0." + zeros + ".1", "1.0." + zeros + ".0." + zeros, "1.0." + zeros + ".1.zz"} {
		got := Chain{Next: 5}
		if err := got.UnmarshalText([]byte(bad)); err == nil || got != (Chain{Next: 5}) {
			t.Errorf("%q: expected an error and no change, but got %s, %v", bad, got, err)
		}
	}
}

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"

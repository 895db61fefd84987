package worker

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/opstream/opstream/domain/operation"
)

// model is the session of the design's protocol, word for word: sets without bounds.
type model struct {
	low                  map[int32]operation.Place
	seen, running, ended map[spot]bool
}

func (m *model) deliver(at spot, low operation.Place) verdict {
	switch {
	case at.place < m.low[at.partition]:
		return isRefused
	case m.seen[at] && m.ended[at]:
		return isEnded
	case m.seen[at]:
		return isRunning
	}
	if low > m.low[at.partition] {
		m.low[at.partition] = low
		for p := range m.seen {
			if p.partition == at.partition && p.place < low && !m.running[p] {
				delete(m.seen, p)
				delete(m.ended, p)
			}
		}
	}
	m.seen[at], m.running[at] = true, true
	return isNew
}

// The memory gives the protocol's verdicts whatever the schedule: items again, late, out of order, with old marks; ends
// in any order; places far apart and close together.
func TestMemoryIsTheProtocol(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		m := model{map[int32]operation.Place{}, map[spot]bool{}, map[spot]bool{}, map[spot]bool{}}
		memory := newMemory()
		type item struct {
			at  spot
			low operation.Place
		}
		var sent []item
		var open []spot
		var next [2]operation.Place
		stride := []operation.Place{1, 4, 600, 100_000}[r.IntN(4)]
		trace := ""
		for range 300 {
			switch k := r.IntN(10); {
			case k < 4: // a new item, its mark at the oldest open place of the partition
				partition := r.IntN(2)
				next[partition] += 1 + operation.Place(r.Int64N(int64(stride)))
				it := item{spot{int32(partition), next[partition]}, next[partition]}
				for _, o := range open {
					if o.partition == it.at.partition {
						it.low = min(it.low, o.place)
					}
				}
				sent = append(sent, it)
				open = append(open, it.at)
				if r.IntN(5) == 0 {
					continue // it is late
				}
				k = 9
				fallthrough
			case k < 7 && len(sent) > 0 || k == 9 && len(sent) > 0:
				it := sent[len(sent)-1]
				if k < 7 {
					it = sent[r.IntN(len(sent))]
				}
				trace += fmt.Sprintf("deliver %v low %d\n", it.at, it.low)
				got, a := memory.judge(it.at)
				if want := m.deliver(it.at, it.low); got != want {
					t.Fatalf("seed %d: expected verdict %d for %v, but got %d; the schedule:\n%s", seed, want, it.at, got, trace)
				}
				if (a != nil) != (got == isRunning) {
					t.Fatalf("seed %d: expected an attempt with verdict %d, but got %v", seed, got, a)
				}
				if got == isNew {
					memory.raise(it.at.partition, it.low)
					memory.begin(it.at, &attempt{at: it.at})
				}
			case len(open) > 0: // a handler ends
				i := r.IntN(len(open))
				at := open[i]
				if !m.running[at] {
					continue
				}
				trace += fmt.Sprintf("end %v\n", at)
				delete(m.running, at)
				m.ended[at] = true
				memory.end(at, &answer{at: at})
				open = append(open[:i], open[i+1:]...)
			}
		}
		kept := 0
		for at := range m.ended {
			if at.place >= m.low[at.partition] {
				kept++
				if a := memory.answer(at); a == nil || a.at != at {
					t.Fatalf("seed %d: expected the answer of %v, but got %v", seed, at, a)
				}
			}
		}
		size := 0
		for _, p := range memory.partitions {
			size += p.size()
			for at := range p.pages {
				if at < p.low>>pageBits {
					t.Fatalf("seed %d: page %d is kept, but the mark is at %d", seed, at, p.low)
				}
			}
		}
		if size < kept || size > kept+2*(1<<pageBits) {
			t.Fatalf("seed %d: expected about %d places to be remembered, but there are %d", seed, kept, size)
		}
	}
}

// While one attempt runs for long, what ends above it costs a bit, not a report.
func TestMemoryIsBounded(t *testing.T) {
	m := newMemory()
	m.begin(spot{0, 1}, &attempt{})
	body := make([]byte, 10_000)
	const n = 200_000
	for i := range n {
		at := spot{0, operation.Place(2 + 4*i)}
		m.raise(0, 1)
		m.begin(at, &attempt{})
		m.end(at, &answer{at: at, command: operation.Command{Result: body}})
	}
	if pages := len(m.partitions[0].pages); pages > n*4>>pageBits+1 {
		t.Errorf("expected about %d pages, but got %d", n*4>>pageBits, pages)
	}
	if m.answers.bytes > maxAnswerBytes || len(m.answers.ring) > maxAnswers {
		t.Errorf("expected at most %d bytes of %d answers, but got %d of %d", maxAnswerBytes, maxAnswers, m.answers.bytes, len(m.answers.ring))
	}
	for _, place := range []operation.Place{2, 2 + 4*(n-1)} {
		if v, _ := m.judge(spot{0, place}); v != isEnded {
			t.Errorf("expected place %d to be known, but the verdict is %d", place, v)
		}
	}
	if m.answer(spot{0, 2}) != nil || m.answer(spot{0, 2 + 4*(n-1)}) == nil {
		t.Error("expected the last report to be kept, and the first to be forgotten")
	}
	m.raise(0, 2+4*n)
	if pages := len(m.partitions[0].pages); pages != 0 && pages != 1 {
		t.Errorf("expected the pages below the mark to be gone, but %d are left", pages)
	}
}

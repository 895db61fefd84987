package partition

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/opstream/opstream/domain/operation"
)

// IDHash stands for an organization and an id in the window of known ids.
type IDHash [16]byte

// hashID hashes an operation's identity; kind keeps ids of operations and of commands apart.
func hashID(kind byte, org, id string) IDHash {
	var buf [384]byte
	b := append(buf[:0], kind)
	b = binary.AppendUvarint(b, uint64(len(org)))
	b = append(append(b, org...), id...)
	sum := sha256.Sum256(b)
	return IDHash(sum[:16])
}

const (
	kindOperation = 'o'
	kindCommand   = 'c'
)

// bodyHash tells two requests under one id apart.
func bodyHash(raw []byte) uint64 {
	sum := sha256.Sum256(raw)
	return binary.BigEndian.Uint64(sum[:8])
}

// Known is an id that the partition has seen and that is not live: an operation that has ended, or a command.
type Known struct {
	Hash   IDHash
	Body   uint64 // of the operation's request; 0 for a command
	Status operation.Status
}

// window remembers the last entries that were added, at most its capacity. Adding an id again supersedes its old entry.
type window struct {
	entries []Known // ring
	first   int     // index of the oldest entry
	seq     uint64  // entries ever added
	newest  map[IDHash]uint64
	max     int
}

func newWindow(capacity int) window {
	return window{newest: make(map[IDHash]uint64), max: capacity}
}

func (w *window) add(k Known) {
	if len(w.entries) < w.max {
		w.entries = append(w.entries, k)
	} else {
		old := w.entries[w.first].Hash
		if w.newest[old] == w.seq-uint64(w.max) {
			delete(w.newest, old)
		}
		w.entries[w.first] = k
		w.first = (w.first + 1) % w.max
	}
	w.newest[k.Hash] = w.seq
	w.seq++
}

// at returns entry number seq, counted from the first one ever added.
func (w *window) at(seq uint64) *Known {
	return &w.entries[int(seq%uint64(w.max))]
}

func (w *window) find(h IDHash) *Known {
	seq, ok := w.newest[h]
	if !ok {
		return nil
	}
	return w.at(seq)
}

// since lists the entries from number seq on, oldest first.
func (w *window) since(seq uint64) []Known {
	if oldest := w.seq - uint64(len(w.entries)); seq < oldest {
		seq = oldest
	}
	out := make([]Known, 0, w.seq-seq)
	for ; seq < w.seq; seq++ {
		out = append(out, *w.at(seq))
	}
	return out
}

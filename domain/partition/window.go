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

// commandHash tells two commands under one id apart: what is asked for, and of which operation.
func commandHash(kind operation.CommandKind, id operation.ID) uint64 {
	var buf [160]byte
	return bodyHash(append(append(buf[:0], byte(kind)), id...))
}

// Known is an id that the partition has seen and that is not live: an operation that has ended, or a command.
type Known struct {
	Hash   IDHash
	Body   uint64 // of the operation's request, or of the command
	Status operation.Status
}

// window remembers the last entries that were added, at most its capacity. Adding an id again supersedes its old entry.
//
// Entries stand in a ring, and an open-addressing table of their indices finds them: 40 to 48 bytes an id, where a map of
// hashes took twice that, and how many ids can be remembered is how late a copy of a request may come and be known for one.
type window struct {
	entries []Known // ring; entry number n stands at n modulo max
	seq     uint64  // entries ever added
	max     int
	table   []uint32 // index into entries, plus 1; 0 is free. The newest entry of a hash is the one that is in it
}

func newWindow(capacity int) window {
	return window{max: capacity, table: make([]uint32, 16)}
}

func (w *window) add(k Known) {
	at := int(w.seq % uint64(w.max))
	w.seq++
	if at < len(w.entries) {
		w.evict(at)
		w.entries[at] = k
	} else {
		w.entries = append(w.entries, k)
		if 2*len(w.entries) > len(w.table) {
			w.grow()
			return
		}
	}
	w.enter(at)
}

// slot returns where a hash stands in the table, or the free slot where it belongs.
func (w *window) slot(h *IDHash) int {
	mask := len(w.table) - 1
	i := int(binary.LittleEndian.Uint64(h[:])) & mask
	for w.table[i] != 0 && w.entries[w.table[i]-1].Hash != *h {
		i = (i + 1) & mask
	}
	return i
}

func (w *window) enter(at int) { w.table[w.slot(&w.entries[at].Hash)] = uint32(at + 1) }

// grow doubles the table; entries are entered from the oldest to the newest, so that the newest of a hash stays.
func (w *window) grow() {
	w.table = make([]uint32, 2*len(w.table))
	for at := range w.entries { // the ring has not wrapped yet
		w.enter(at)
	}
}

// evict takes an entry out of the table, unless a newer one of its hash is there.
func (w *window) evict(at int) {
	i := w.slot(&w.entries[at].Hash)
	if w.table[i] != uint32(at+1) {
		return
	}
	// Close the gap: whatever follows without a free slot between must still be found from where it belongs.
	mask := len(w.table) - 1
	w.table[i] = 0
	for j := (i + 1) & mask; w.table[j] != 0; j = (j + 1) & mask {
		home := int(binary.LittleEndian.Uint64(w.entries[w.table[j]-1].Hash[:])) & mask
		if (j-home)&mask >= (j-i)&mask {
			w.table[i], w.table[j] = w.table[j], 0
			i = j
		}
	}
}

// at returns entry number seq, counted from the first one ever added.
func (w *window) at(seq uint64) *Known { return &w.entries[int(seq%uint64(w.max))] }

func (w *window) find(h IDHash) *Known {
	if n := w.table[w.slot(&h)]; n != 0 {
		return &w.entries[n-1]
	}
	return nil
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

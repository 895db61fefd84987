package schemas

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/internal/safeguard"
)

// MaxInFlight bounds the records that one writer may have under way. So many records of a stale writer may stand in the
// journal at the places that they were meant for, each continuing the one before; more of them are an alarm.
const MaxInFlight = 100_000

// Verdict says what a record of the journal counts for.
type Verdict uint8

// The verdicts.
const (
	Void   Verdict = iota // nobody applies it: a stale writer's, or no record of ours
	Valid                 // it continues the history
	Broken                // the history was tampered with: stop, and call a person
)

func (v Verdict) String() string { return [...]string{"void", "valid", "broken"}[v] }

// ErrBroken says how a chain is broken.
type ErrBroken struct {
	Offset int64
	Reason string
}

func (e *ErrBroken) Error() string {
	return fmt.Sprintf("the journal's chain is broken at offset %d: %s; stop applying this partition and compare it with a copy", e.Offset, e.Reason)
}

// Chain is what one knows of one partition's journal: where its next record must stand, and the hash that it must continue.
// The zero value is the beginning of every partition. It is comparable; two readers of the same records have equal chains.
//
// A record is valid when its place (ce_place) is the offset that it stands at and its chain (ce_chain) continues that of
// the last valid record. The chain is SHA-256 over the hash before, the key, the value and every header but ce_chain, in
// order, each with its length before it (see sum). ce_prev holds the first eight bytes of the hash before, so that a record
// that was decided on another history can be told from one that was altered.
//
// Nothing may touch a record between Seal and the broker: a client whose hooks add headers breaks the chain.
type Chain struct {
	Next int64    // the offset behind the last record that was read, valid or void
	Last int64    // the place of the last valid record; means nothing while Sum is zero
	Sum  [32]byte // the hash of the last valid record; zero before the first

	// Another history beside the valid one: the last record that stood at its place without continuing Sum, and how many
	// such records have continued one another up to it.
	AltSum [32]byte
	Alt    int64
}

var base64url = base64.RawURLEncoding.Strict()

const (
	prevBytes = 8
	prevText  = 11 // prevBytes in base64url
	chainText = 43 // sha256.Size in base64url
)

func prefixText(sum *[32]byte) (text [prevText]byte) {
	base64url.Encode(text[:], sum[:prevBytes])
	return text
}

var hashing = sync.Pool{New: func() any { b := make([]byte, 0, 4096); return &b }}

// sum hashes a record that continues prev. Lengths are written as uvarints; nil and empty are the same, because not every
// client keeps them apart.
func sum(prev *[32]byte, rec *kgo.Record) [32]byte {
	pooled := hashing.Get().(*[]byte)
	b := append((*pooled)[:0], prev[:]...)
	b = binary.AppendUvarint(b, uint64(len(rec.Key)))
	b = append(b, rec.Key...)
	b = binary.AppendUvarint(b, uint64(len(rec.Value)))
	b = append(b, rec.Value...)
	for i := range rec.Headers {
		h := &rec.Headers[i]
		if h.Key == HeaderChain {
			continue
		}
		b = binary.AppendUvarint(b, uint64(len(h.Key)))
		b = append(b, h.Key...)
		b = binary.AppendUvarint(b, uint64(len(h.Value)))
		b = append(b, h.Value...)
	}
	out := sha256.Sum256(b)
	if cap(b) <= 1<<20 { // one huge record must not stay in memory for ever
		*pooled = b
	}
	hashing.Put(pooled)
	return out
}

// Seal makes rec the next record of the journal: it sets ce_place to c.Next, ce_id to partition and place, ce_prev and
// ce_chain, and advances. A writer seals with a copy of what it knows, appends in that order, and believes the copy when
// the broker has answered with these very offsets. A record can be sealed again after it turned out void.
func (c *Chain) Seal(rec *kgo.Record) {
	b := make([]byte, 0, 2*20+12+prevText+chainText)
	b = appendInt(b, c.Next)
	place := b[:len(b):len(b)]
	b = append(appendInt(b, int64(rec.Partition)), '-')
	b = append(b, place...)
	id := b[len(place):len(b):len(b)]
	prev := prefixText(&c.Sum)
	b = append(b, prev[:]...)
	set(rec, HeaderPlace, place)
	set(rec, HeaderID, id)
	set(rec, HeaderPrev, b[len(b)-prevText:len(b):len(b)])
	c.Sum = sum(&c.Sum, rec)
	from := len(b)
	b = base64url.AppendEncode(b, c.Sum[:])
	set(rec, HeaderChain, b[from:])
	c.Last = c.Next
	c.Next++
	c.AltSum, c.Alt = [32]byte{}, 0
}

// set gives a header its value, in place if it is there.
func set(rec *kgo.Record, key string, value []byte) {
	for i := range rec.Headers {
		if rec.Headers[i].Key == key {
			rec.Headers[i].Value = value
			return
		}
	}
	rec.Headers = append(rec.Headers, kgo.RecordHeader{Key: key, Value: value})
}

// Check judges the next record of the partition; records must come in the order of their offsets. Valid advances the
// chain; Void skips the record. With Broken, and only then, there is an error, an *[ErrBroken], and c stays as it was.
//
// A record below c.Next has been judged before: it is void, and changes nothing. A gap in the offsets (records that were
// trimmed, or that a broker keeps for itself) is no fault by itself: the first record behind it is valid if it continues
// the chain, which shows that no valid record is missing.
func (c *Chain) Check(rec *kgo.Record) (Verdict, error) {
	if rec.Offset < c.Next {
		return Void, nil
	}
	var place, prev, chain []byte
	doubled := false
	take := func(slot *[]byte, value []byte) {
		doubled = doubled || *slot != nil
		*slot = value
	}
	for i := range rec.Headers {
		switch h := &rec.Headers[i]; h.Key {
		case HeaderPlace:
			take(&place, h.Value)
		case HeaderPrev:
			take(&prev, h.Value)
		case HeaderChain:
			take(&chain, h.Value)
		}
	}
	// A record that was not decided for its offset, or that has no chain, is a leaving.
	at, ok := parseInt(place)
	if doubled || !ok || at != rec.Offset && !safeguard.NoPlace || len(prev) != prevText || len(chain) != chainText {
		c.Next = rec.Offset + 1
		return Void, nil
	}
	if safeguard.NoPlace {
		*c = Chain{Next: rec.Offset + 1, Last: rec.Offset, Sum: sum(&c.Sum, rec)}
		return Valid, nil
	}
	if want := prefixText(&c.Sum); bytes.Equal(prev, want[:]) {
		next := sum(&c.Sum, rec)
		var text [chainText]byte
		base64url.Encode(text[:], next[:])
		if !bytes.Equal(chain, text[:]) {
			return Broken, &ErrBroken{rec.Offset, "the record continues the history, but its bytes are not those that were sealed"}
		}
		*c = Chain{Next: rec.Offset + 1, Last: rec.Offset, Sum: next}
		return Valid, nil
	}
	return c.other(rec, prev, chain)
}

// other keeps count of a history beside the valid one. Its first record's own hash has to be taken at its word.
func (c *Chain) other(rec *kgo.Record, prev, chain []byte) (Verdict, error) {
	var claimed [32]byte
	if n, err := base64url.Decode(claimed[:], chain); err != nil || n != len(claimed) {
		c.Next = rec.Offset + 1
		return Void, nil //nolint:nilerr // that it is no chain is the verdict
	}
	alt := int64(1)
	if want := prefixText(&c.AltSum); c.Alt > 0 && bytes.Equal(prev, want[:]) && sum(&c.AltSum, rec) == claimed {
		alt = c.Alt + 1
	}
	if alt > MaxInFlight {
		return Broken, &ErrBroken{rec.Offset, fmt.Sprintf("%d records at their places continue one another, but not the history", alt)}
	}
	c.Next, c.AltSum, c.Alt = rec.Offset+1, claimed, alt
	return Void, nil
}

// AtEnd is for who has read a partition to its end: it is an *[ErrBroken] when that end is another history, which no valid record
// follows. Check cannot know that there is none, and takes such records for a stale writer's, as long as they are not too many. But a
// writer's first record continues the history wherever that stands, so the last word of a partition is a valid one, but for the moment in
// which a new owner has not spoken yet. If it stays, a record was removed or moved: everything behind it is void then to
// whoever reads from the beginning, and its writers, who know the end, go on after it.
func (c *Chain) AtEnd() error {
	if c.Alt == 0 {
		return nil
	}
	first := int64(0)
	if c.Sum != [32]byte{} {
		first = c.Last + 1
	}
	return &ErrBroken{first, fmt.Sprintf("from here on no record continues the history, though the last %d stand at their places and continue one another: a record was removed, or moved", c.Alt)}
}

// MarshalText writes the chain for a checkpoint or a projection's position: next, last and hash, with dots between, then
// the other history if there is one.
func (c Chain) MarshalText() ([]byte, error) { return c.append(nil), nil }

func (c Chain) String() string { return string(c.append(nil)) }

func (c Chain) append(dst []byte) []byte {
	dst = append(appendInt(dst, c.Next), '.')
	dst = append(appendInt(dst, c.Last), '.')
	dst = hex.AppendEncode(dst, c.Sum[:])
	if c.Alt > 0 {
		dst = append(dst, '.')
		dst = append(appendInt(dst, c.Alt), '.')
		dst = hex.AppendEncode(dst, c.AltSum[:])
	}
	return dst
}

// UnmarshalText reads what MarshalText has written.
func (c *Chain) UnmarshalText(text []byte) error {
	parts := strings.Split(string(text), ".")
	ok := len(parts) == 3 || len(parts) == 5
	number := func(i int) int64 {
		n, fine := parseInt([]byte(parts[i]))
		ok = ok && fine && n >= 0
		return n
	}
	hash := func(i int) (sum [32]byte) {
		b, err := hex.DecodeString(parts[i])
		ok = ok && err == nil && copy(sum[:], b) == len(sum) && len(b) == len(sum)
		return sum
	}
	var out Chain
	if ok {
		out.Next, out.Last, out.Sum = number(0), number(1), hash(2)
		if len(parts) == 5 {
			out.Alt, out.AltSum = number(3), hash(4)
			ok = ok && out.Alt > 0
		}
	}
	if !ok {
		return fmt.Errorf("expected a chain such as 17.16.<64 hexadecimal digits>, but got %.100q", text)
	}
	*c = out
	return nil
}

package answers

import (
	"encoding/base64"
	"strconv"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/schemas"
)

const (
	// lookBack is how many records before the end a reader begins, to know the chain there.
	lookBack = 64
	// settledAfter is how many records must have continued a history before it is believed for good.
	settledAfter = 32
)

// follower checks the chain of a partition that it may not have read from the beginning.
type follower struct {
	chain   schemas.Chain
	known   bool // chain is that of a record that was read
	settled int  // records that have continued it, up to settledAfter
}

// startAt returns where to begin reading a journal that holds the offsets from first up to end, and the follower for it.
func startAt(first, end int64) (int64, follower) {
	from := max(first, end-lookBack)
	if from == 0 {
		return 0, follower{known: true, settled: settledAfter} // the beginning: nothing is unknown
	}
	return from, follower{chain: schemas.Chain{Next: from}}
}

// valid says whether the next record counts. The error is a *schemas.ErrBroken.
func (f *follower) valid(rec *kgo.Record) (bool, error) {
	if !f.known {
		return f.adopt(rec), nil
	}
	verdict, err := f.chain.Check(rec)
	switch {
	case err != nil && f.settled < settledAfter:
		// A hash that was taken at its word may have been wrong. The next record is as good a beginning.
		*f = follower{chain: schemas.Chain{Next: rec.Offset + 1}}
		return false, nil
	case err != nil:
		return false, err
	case verdict == schemas.Valid:
		if f.settled < settledAfter {
			f.settled++
		}
		return true, nil
	case f.settled < settledAfter && f.chain.Alt > int64(f.settled)+1:
		f.chain = schemas.Chain{Next: f.chain.Next, Last: rec.Offset, Sum: f.chain.AltSum}
		f.settled = min(int(f.chain.Alt), settledAfter)
		return true, nil
	}
	return false, nil
}

// adopt takes a record at its word that stands where it says that it stands.
func (f *follower) adopt(rec *kgo.Record) bool {
	if rec.Offset < f.chain.Next {
		return false
	}
	f.chain.Next = rec.Offset + 1
	at, chain := int64(-1), []byte(nil)
	for i := range rec.Headers {
		switch h := &rec.Headers[i]; h.Key {
		case schemas.HeaderPlace:
			if n, err := strconv.ParseInt(string(h.Value), 10, 64); err == nil {
				at = n
			}
		case schemas.HeaderChain:
			chain = h.Value
		}
	}
	if at != rec.Offset || base64.RawURLEncoding.DecodedLen(len(chain)) != len(f.chain.Sum) {
		return false
	}
	if _, err := base64.RawURLEncoding.Decode(f.chain.Sum[:], chain); err != nil {
		return false
	}
	f.chain.Last, f.known, f.settled = rec.Offset, true, 0
	return true
}

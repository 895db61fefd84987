package projections

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/fnv"

	"github.com/opstream/opstream/domain/operation"
)

// CodeInvalidCursor is the code of every CursorError, for the wire.
const CodeInvalidCursor = "invalid_cursor"

// CursorError says that a cursor is not one that the same list gave.
type CursorError struct{ Reason string }

// Code is the stable code of the error.
func (e *CursorError) Code() string { return CodeInvalidCursor }

func (e *CursorError) Error() string {
	return "expected a cursor that the same list gave, but " + e.Reason + "; begin the list again without a cursor"
}

// Mark is a place in a list: the row after which the next page begins.
type Mark struct {
	Created operation.Time
	Key     Key
}

const (
	cursorVersion = 1
	cursorSize    = 1 + 1 + 4 + 8 + 8 + 4 // version, order, filter, mark, check sum
)

// Cursor writes m as an opaque string that [ParseCursor] accepts for the same filter and order only.
func Cursor(m Mark, filter *Filter, order Order) string {
	b := make([]byte, 0, cursorSize)
	b = append(b, cursorVersion, byte(order))
	b = binary.BigEndian.AppendUint32(b, fingerprint(filter))
	b = binary.BigEndian.AppendUint64(b, uint64(m.Created))
	b = binary.BigEndian.AppendUint64(b, uint64(m.Key))
	b = binary.BigEndian.AppendUint32(b, sum(b))
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParseCursor reads a cursor of this filter and order. Anything else is a *CursorError.
func ParseCursor(cursor string, filter *Filter, order Order) (Mark, error) {
	if len(cursor) != base64.RawURLEncoding.EncodedLen(cursorSize) {
		return Mark{}, &CursorError{fmt.Sprintf("it has %d characters", len(cursor))}
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil {
		return Mark{}, &CursorError{"it has characters that none has"}
	}
	if b[0] != cursorVersion {
		return Mark{}, &CursorError{fmt.Sprintf("its version is %d", b[0])}
	}
	if body := len(b) - 4; binary.BigEndian.Uint32(b[body:]) != sum(b[:body]) {
		return Mark{}, &CursorError{"it was changed"}
	}
	if Order(b[1]) != order {
		return Mark{}, &CursorError{"the order is another one"}
	}
	if binary.BigEndian.Uint32(b[2:]) != fingerprint(filter) {
		return Mark{}, &CursorError{"the filter is another one"}
	}
	return Mark{Created: operation.Time(binary.BigEndian.Uint64(b[6:])), Key: Key(binary.BigEndian.Uint64(b[14:]))}, nil
}

// sum guards against mistakes, not against malice: a forged cursor can only name a place in a list that its bearer may read.
func sum(b []byte) uint32 {
	h := fnv.New32a()
	h.Write(b) // a hash never fails
	return h.Sum32()
}

// fingerprint tells filters apart.
func fingerprint(f *Filter) uint32 {
	b := appendString(nil, f.Organization)
	b = binary.AppendUvarint(b, uint64(len(f.Statuses)))
	for _, s := range f.Statuses {
		b = append(b, byte(s))
	}
	b = binary.AppendUvarint(b, uint64(len(f.Waits)))
	for _, w := range f.Waits {
		b = append(b, byte(w))
	}
	b = binary.AppendUvarint(b, uint64(len(f.Types)))
	for _, t := range f.Types {
		b = appendString(b, t)
	}
	b = appendString(b, f.DependencyToken)
	b = appendString(b, f.CorrelationID)
	for _, t := range [...]operation.Time{f.CreatedFrom, f.CreatedTo, f.ModifiedFrom, f.ModifiedTo} {
		b = binary.AppendVarint(b, int64(t))
	}
	return sum(b)
}

package api

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opstream/opstream/domain/operation"
)

// Position is a place in one partition's journal, on the wire "<partition>-<place>".
type Position struct {
	Partition int32
	Place     operation.Place
}

func (p Position) String() string {
	return strconv.FormatInt(int64(p.Partition), 10) + "-" + strconv.FormatInt(int64(p.Place), 10)
}

// ParsePosition is the inverse of String.
func ParsePosition(s string) (Position, error) {
	partition, place, found := strings.Cut(s, "-")
	n, err1 := parseDigits(partition, 31)
	m, err2 := parseDigits(place, 63)
	if !found || err1 != nil || err2 != nil {
		return Position{}, fmt.Errorf("expected a position such as 3-1042, but got %q; use the one that an answer carried", clip(s))
	}
	return Position{int32(n), operation.Place(m)}, nil
}

// parseDigits reads a number without sign or leading zeros, so that a position has one spelling.
func parseDigits(s string, bits int) (uint64, error) {
	if s == "" || len(s) > 1 && s[0] == '0' || s[0] < '0' || s[0] > '9' {
		return 0, errors.New("expected digits")
	}
	return strconv.ParseUint(s, 10, bits)
}

// positionsMax bounds a list of positions; there is one per partition, and no topic has more partitions than that.
const positionsMax = 1024

// Positions are places of several partitions, on the wire separated by commas.
type Positions []Position

// ParsePositions reads a list as callers give it: in any order, of a partition named twice the later place counts.
func ParsePositions(s string) (Positions, error) {
	if strings.Count(s, ",") >= positionsMax {
		return nil, fmt.Errorf("expected at most %d positions, but got more; one per partition is enough", positionsMax)
	}
	var list Positions
	for part := range strings.SplitSeq(s, ",") {
		p, err := ParsePosition(part)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b Position) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(b.Place, a.Place))
	})
	return slices.CompactFunc(list, func(a, b Position) bool { return a.Partition == b.Partition }), nil
}

func (l Positions) String() string {
	var b strings.Builder
	for i, p := range l {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(p.String())
	}
	return b.String()
}

// clip shortens what a caller sent, for messages.
func clip(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

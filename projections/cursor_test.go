package projections

import (
	"errors"
	"testing"

	"github.com/opstream/opstream/domain/operation"
)

// FuzzCursor: a cursor is taken by the list that gave it and by no other, and any text is either a cursor or told not to be.
func FuzzCursor(f *testing.F) {
	f.Add("", "o", uint8(0), int64(0), int64(0))
	f.Add("AAAA", "", uint8(1), int64(-1), int64(1)<<62)
	f.Add(Cursor(Mark{Created: 5, Key: 6}, &Filter{Organization: "o"}, OldestFirst), "o", uint8(OldestFirst), int64(5), int64(6))
	f.Fuzz(func(t *testing.T, text, org string, order uint8, created, key int64) {
		filter := Filter{Organization: org}
		if m, err := ParseCursor(text, &filter, Order(order)); err == nil {
			if again := Cursor(m, &filter, Order(order)); again != text {
				t.Errorf("expected one spelling of a cursor, but got %q for %q", again, text)
			}
		} else if _, ok := errors.AsType[*CursorError](err); !ok {
			t.Errorf("expected a *CursorError, but got %v", err)
		}
		want := Mark{Created: operation.Time(created), Key: Key(key)}
		c := Cursor(want, &filter, Order(order))
		if got, err := ParseCursor(c, &filter, Order(order)); err != nil || got != want {
			t.Errorf("expected %+v, but got %+v, %v", want, got, err)
		}
		if _, err := ParseCursor(c, &filter, Order(order)+1); err == nil {
			t.Errorf("expected the cursor of another order to be refused")
		}
		if _, err := ParseCursor(c, &Filter{Organization: org + "x"}, Order(order)); err == nil {
			t.Errorf("expected the cursor of another filter to be refused")
		}
	})
}

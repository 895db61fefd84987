package optype_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/opstream/opstream/domain/optype"
)

func TestTable(t *testing.T) {
	codes, names := map[int]bool{}, map[string]bool{}
	var restricted []int
	all := optype.All()
	for _, typ := range all {
		if codes[typ.Code] || names[typ.Name] {
			t.Errorf("%s is in the table twice", typ.Label())
		}
		codes[typ.Code], names[typ.Name] = true, true
		if !optype.ValidName(typ.Name) || typ.Code <= 0 || typ.Code >= optype.CustomMin {
			t.Errorf("%s has no valid name or number", typ.Label())
		}
		byName, _ := optype.ByName(typ.Name)
		if byCode, ok := optype.ByCode(typ.Code); !ok || byName != typ || byCode != typ {
			t.Errorf("%s is not found", typ.Label())
		}
		if typ.Restricted {
			restricted = append(restricted, typ.Code)
		}
	}
	if !slices.IsSortedFunc(all, func(a, b optype.Type) int { return a.Code - b.Code }) {
		t.Error("expected the table to be by number")
	}
	if want := []int{9, 16, 18, 19, 20, 22, 24, 25, 27, 31}; !slices.Equal(restricted, want) {
		t.Errorf("expected the platform's own to be %v, but got %v", want, restricted)
	}
	if typ, _ := optype.ByCode(13); typ.Name != "bulk-delete" {
		t.Errorf("expected 13 to be bulk-delete, but it is %q", typ.Name)
	}
	all[0].Name = "changed"
	if typ, _ := optype.ByCode(1); typ.Name != "system-event" {
		t.Error("expected All to be a copy, but it is the table")
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"bulk-delete": true, "helpdesk.close-ticket": true, "a": true, "v2": true, strings.Repeat("a", optype.MaxName): true,
		"": false, "-a": false, "a-": false, "a--b": false, "a.-b": false, "Bulk": false, "a b": false, "ä": false, "a_b": false,
		strings.Repeat("a", optype.MaxName+1): false,
	} {
		if got := optype.ValidName(name); got != want {
			t.Errorf("%q: expected valid %v, but got %v", name, want, got)
		}
	}
}

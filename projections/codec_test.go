package projections

import (
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/opstream/opstream/domain/operation"
)

// fill gives every field of v a value of its own, so that one that is not stored is missed.
func fill(r *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(r, v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(r, v.Elem())
	case reflect.Slice:
		v.SetBytes([]byte{byte(1 + r.IntN(255))})
	case reflect.String:
		v.SetString(strings.Repeat("x", 1+r.IntN(9)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(r.Float64() + 1)
	case reflect.Int, reflect.Int8, reflect.Int32, reflect.Int64:
		v.SetInt(1 + int64(r.IntN(100)))
	default:
		v.SetUint(1 + uint64(r.IntN(10)))
	}
}

func TestStateIsStoredWhole(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		var s operation.State
		fill(r, reflect.ValueOf(&s).Elem())
		s.Request.Raw, s.Request.Data = nil, nil
		whole := AppendState(nil, &s)
		var got operation.State
		if err := DecodeState(whole, &got); err != nil {
			t.Fatalf("decode: %v", err)
		}
		if !reflect.DeepEqual(got, s) {
			t.Fatalf("expected %v, but these fields are not stored: %v", s, fieldsApart(&s, &got))
		}
		for i := range whole {
			if err := DecodeState(whole[:i], &got); err == nil {
				t.Fatalf("expected an error for the first %d of %d bytes, but got none", i, len(whole))
			}
		}
	}
}

func TestEventIsStoredWhole(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	row := &Row{Partition: 3, State: operation.State{Request: &operation.Request{Name: "the request"}}}
	for range 200 {
		var e operation.Event
		fill(r, reflect.ValueOf(&e).Elem())
		e.Kind = operation.Requested
		e.Owner, e.To, e.Body = "", 0, nil // events of the partition have these
		e.Request, row.Org, row.ID = row.Request, e.Org, e.ID
		whole := AppendHistory(nil, &e, 77)
		got, err := DecodeHistory(nil, whole, row, -1, 10)
		if err != nil {
			t.Fatalf("decode: %v", err)
		}
		if want := []Entry{{3, 77, e}}; !reflect.DeepEqual(got, want) {
			t.Fatalf("expected %+v, but got %+v", want, got)
		}
		for i := 1; i < len(whole); i++ {
			if _, err := DecodeHistory(nil, whole[:i], row, -1, 10); err == nil {
				t.Fatalf("expected an error for the first %d of %d bytes, but got none", i, len(whole))
			}
		}
	}
}

func TestRejectionIsStoredWhole(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var want Rejection
	fill(r, reflect.ValueOf(&want).Elem())
	got := Rejection{Partition: want.Partition, Place: want.Place, At: want.At}
	if err := DecodeRejection(AppendRejection(nil, &want), &got); err != nil || got != want {
		t.Errorf("expected %+v, but got %+v, %v", want, got, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{stateVersion, 0xff, 0xff, 3})
	f.Fuzz(func(_ *testing.T, b []byte) {
		var s operation.State
		var r Rejection
		_ = DecodeState(b, &s) // must only not panic, nor take more memory than b has
		_ = DecodeRejection(b, &r)
		_, _ = DecodeHistory(nil, b, &Row{State: operation.State{Request: &operation.Request{}}}, -1, 100)
	})
}

package schemas

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestPlainRun compares the eight bytes at a time with one at a time: every byte at every place, between others that might
// borrow or carry.
func TestPlainRun(t *testing.T) {
	slow := func(b []byte) int {
		for i, c := range b {
			if c < ' ' || c >= 0x80 || c == '"' || c == '\\' {
				return i
			}
		}
		return len(b)
	}
	for length := range 20 {
		for at := range length {
			for c := range 256 {
				for _, fill := range []byte{' ', '!', '#', '[', ']', '~', 0x7f, 'a'} {
					b := bytes.Repeat([]byte{fill}, length)
					b[at] = byte(c)
					if got, want := plainRun(b), slow(b); got != want {
						t.Fatalf("%q: expected %d plain bytes, but got %d", b, want, got)
					}
				}
			}
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		b := make([]byte, rng.IntN(40))
		for i := range b {
			b[i] = byte(rng.IntN(256))
			if rng.IntN(4) > 0 {
				b[i] = ' ' + byte(rng.IntN(95))
			}
		}
		if got, want := plainRun(b), slow(b); got != want {
			t.Fatalf("%q: expected %d plain bytes, but got %d", b, want, got)
		}
	}
}

func TestWellFormed(t *testing.T) {
	for in, want := range map[string]Code{
		`{"a": [1, "b"]}`: "", ` 1 `: "", `"x"`: "", ``: MalformedJSON, `1,"id":2`: MalformedJSON, `1}`: MalformedJSON, `{"a":`: MalformedJSON,
		"\"\xff\"": InvalidUTF8, nested(MaxDepth): "", nested(MaxDepth + 1): TooDeep,
	} {
		got := Code("")
		if err := WellFormed([]byte(in)); err != nil {
			got = err.Code
		}
		if got != want {
			t.Errorf("%.40q: expected %q, but got %q", in, want, got)
		}
	}
}

package schemas

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strconv"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/opstream/opstream/domain/operation"
)

// A reader pulls one JSON text apart: strict (RFC 8259, UTF-8, no duplicate members, names by case, a bounded number of
// levels), and without allocating but for what it returns. It is hand-written for its errors, not for its speed, which is
// that of package json with a struct: it names member and code, reads on behind a value that is refused so that the
// answer can say whom it is for, stops at too many levels without a pass of its own, and takes different members by the message's
// kind. A test compares it with package jsontext on hostile inputs.
//
// Its methods do nothing once the text has turned out to be undecodable (err). A value of the wrong type or out of bounds is
// noted as a refusal, the first one counts, and reading goes on.
type reader struct {
	b       []byte
	i       int
	depth   int
	deepest int    // levels that may be open
	name    []byte // of the member that next stands at
	prefix  string // of the object that is read, for messages: "retry."
	err     *DecodeError
	refusal *Refusal
	// The names of the members read so far, of all open objects: where they stand in b. A name with escapes stands in odd,
	// and from is negative. Positions, not slices, so that a reader need not be on the heap.
	names   [maxMembers]struct{ from, to int32 }
	count   int
	odd     [][]byte
	escaped bool // the last text had escapes

	// open skips members that are not known, see the package comment.
	open   bool
	dataAt int // where the data of the last request begins
}

// maxMembers bounds the members of all open objects: more than any message has.
const maxMembers = 64

func newReader(b []byte, limit int) reader {
	r := reader{b: b, deepest: MaxDepth}
	if len(b) > limit {
		r.err = &DecodeError{Code: TooLarge, Reason: fmt.Sprintf("expected at most %d bytes, but got %d", limit, len(b))}
	}
	return r
}

// newOwnReader reads what only we write. There, values that were taken from outside at MaxDepth stand within objects of ours,
// so more levels have to be readable: what was accepted once must never become unreadable by being kept.
func newOwnReader(b []byte) reader {
	r := newReader(b, maxOwnBytes)
	r.deepest, r.open = maxOwnDepth, true
	return r
}

func (r *reader) fail(code Code, format string, args ...any) {
	if r.err == nil {
		r.err = &DecodeError{Code: code, Field: r.field(), Reason: fmt.Sprintf(format, args...)}
	}
}

func (r *reader) refuse(code Code, format string, args ...any) {
	if r.refusal == nil && r.err == nil {
		r.refusal = &Refusal{Code: code, Field: r.field(), Reason: fmt.Sprintf(format, args...)}
	}
}

// field names the member that is being read; names from outside are cut, for they end up in logs.
func (r *reader) field() string {
	name := r.name
	if len(name) > 64 {
		name = append(append([]byte(nil), name[:64]...), "..."...)
	}
	return r.prefix + string(bytes.ToValidUTF8(name, []byte("?")))
}

func (r *reader) syntax(expected string) {
	if r.i >= len(r.b) {
		r.fail(MalformedJSON, "expected %s, but the text ends after %d bytes", expected, len(r.b))
		return
	}
	r.fail(MalformedJSON, "expected %s at byte %d, but found %s", expected, r.i, r.found())
}

// found shows the character that the reader stands at, whole: a byte of it would look like another one (the first of a byte order
// mark and the first of a typographic quote do not look like either), and nobody would find that in the text.
func (r *reader) found() string {
	c, size := utf8.DecodeRune(r.b[r.i:])
	switch {
	case c == utf8.RuneError && size == 1:
		return fmt.Sprintf("the byte %#x", r.b[r.i])
	case c == '\ufeff':
		return "a byte order mark"
	default:
		return strconv.QuoteRune(c)
	}
}

func (r *reader) space() {
	for r.i < len(r.b) {
		switch r.b[r.i] {
		case ' ', '\t', '\n', '\r':
			r.i++
		default:
			return
		}
	}
}

// peek returns the next byte, 0 at the end.
func (r *reader) peek() byte {
	if r.i < len(r.b) {
		return r.b[r.i]
	}
	return 0
}

// end checks that nothing follows the text, and returns what is wrong with it.
func (r *reader) end() *DecodeError {
	if r.err == nil {
		r.space()
		if r.i < len(r.b) {
			r.name, r.prefix = nil, ""
			r.fail(MalformedJSON, "expected the text to end at byte %d, but found %s", r.i, r.found())
		}
	}
	return r.err
}

// own is end for messages that only we write: there a refusal means that the bytes are none of ours.
func (r *reader) own() *DecodeError {
	if err := r.end(); err != nil {
		return err
	}
	if r.refusal != nil {
		return &DecodeError{Code: r.refusal.Code, Field: r.refusal.Field, Reason: r.refusal.Reason}
	}
	return nil
}

// WellFormed says what is wrong with a JSON text that is to be spliced into a message, nil if nothing is: it is one whole value, not
// nested deeper than MaxDepth. It is what of [CheckJSON] must hold before the message is written and read again.
func WellFormed(b []byte) *DecodeError {
	r := reader{b: b, deepest: MaxDepth}
	r.skip()
	return r.end()
}

// object enters an object; the result is for next. A value of another type is skipped, and next ends at once.
func (r *reader) object() int {
	if r.err != nil {
		return -1
	}
	r.space()
	if r.peek() != '{' {
		r.mismatch("an object")
		return -1
	}
	if r.depth++; r.depth > r.deepest {
		r.fail(TooDeep, "expected at most %d levels", r.deepest)
		return -1
	}
	r.i++
	return r.count
}

// next goes to the next member's value, its name in r.name; it returns false behind the object's end.
func (r *reader) next(first int) bool {
	if r.err != nil || first < 0 {
		return false
	}
	r.space()
	if r.peek() == '}' {
		r.i++
		r.depth--
		r.count = first
		return false
	}
	if r.count > first {
		if r.peek() != ',' {
			r.syntax("a comma or the end of the object")
			return false
		}
		r.i++
		r.space()
	}
	if r.peek() != '"' {
		r.syntax("a member's name")
		return false
	}
	from := r.i + 1
	r.name = r.text()
	if r.err != nil {
		return false
	}
	for i := first; i < r.count; i++ {
		n := &r.names[i]
		if n.from >= 0 && int(n.to-n.from) == len(r.name) && string(r.b[n.from:n.to]) == string(r.name) ||
			n.from < 0 && string(r.odd[n.to]) == string(r.name) {
			r.fail(DuplicateField, "the member stands in the object twice")
			return false
		}
	}
	if r.count == maxMembers { // only objects with unknown members can come so far
		r.fail(UnknownField, "expected at most %d members", maxMembers)
		return false
	}
	n := &r.names[r.count]
	n.from, n.to = int32(from), int32(from+len(r.name))
	if r.escaped {
		n.from, n.to = -1, int32(len(r.odd))
		r.odd = append(r.odd, r.name)
	}
	r.count++
	r.space()
	if r.peek() != ':' {
		r.syntax("a colon")
		return false
	}
	r.i++
	r.space()
	return true
}

// unknown deals with a member that this version does not know: it is skipped where a newer version of ours may have written it, and
// refused where it is more likely misspelt.
func (r *reader) unknown() {
	if r.open {
		r.skip()
		return
	}
	r.fail(UnknownField, "no such member in this message")
}

// enter is object for the value of the current member, with its name in messages until leave; the first result is for
// leave.
func (r *reader) enter(member string) (outer string, first int) {
	outer, first = r.prefix, r.object()
	r.prefix = outer + member + "."
	return outer, first
}

func (r *reader) leave(outer string) {
	if r.err == nil {
		r.prefix, r.name = outer, nil
	}
}

// array enters an array; element follows, with 0, 1, 2 … until it returns false. A value of another type is skipped.
func (r *reader) array() (ok bool) {
	if r.err != nil {
		return false
	}
	if r.peek() != '[' {
		r.mismatch("an array")
		return false
	}
	if r.depth++; r.depth > r.deepest {
		r.fail(TooDeep, "expected at most %d levels", r.deepest)
		return false
	}
	r.i++
	return true
}

// element goes to element i of an array.
func (r *reader) element(i int) bool {
	if r.err != nil {
		return false
	}
	r.space()
	if r.peek() == ']' {
		r.i++
		r.depth--
		return false
	}
	if i > 0 {
		if r.peek() != ',' {
			r.syntax("a comma or the end of the array")
			return false
		}
		r.i++
		r.space()
		if r.peek() == ']' {
			r.syntax("a value")
			return false
		}
	}
	return true
}

// mismatch skips a value that has not the type it must have.
func (r *reader) mismatch(expected string) {
	if r.err != nil {
		return
	}
	found := "nothing"
	switch c := r.peek(); {
	case c == '"':
		found = "a string"
	case c == '{':
		found = "an object"
	case c == '[':
		found = "an array"
	case c == 't' || c == 'f':
		found = "a boolean"
	case c == 'n':
		found = "null"
	case c == '-' || c >= '0' && c <= '9':
		found = "a number"
	}
	r.skip()
	r.refuse(InvalidType, "expected %s, but got %s", expected, found)
}

// raw returns the bytes of the value that follows, as they stand.
func (r *reader) raw() []byte {
	if r.err != nil {
		return nil
	}
	from := r.i
	r.skip()
	if r.err != nil {
		return nil
	}
	return r.b[from:r.i]
}

// rawCopy is raw for values that outlive the record, of messages that only we write.
func (r *reader) rawCopy() []byte { return bytes.Clone(r.raw()) }

// opaque returns a compact copy of a value from outside, whose objects must not name a member twice either: of two readers
// one would take the first, the other the last.
func (r *reader) opaque(limit int) []byte {
	raw := r.raw()
	if raw == nil {
		return nil
	}
	if (raw[0] == '{' || raw[0] == '[') && !jsontext.Value(raw).IsValid() {
		r.fail(DuplicateField, "an object in it names the same member twice")
		return nil
	}
	out := compact(make([]byte, 0, len(raw)), raw)
	if len(out) > limit {
		r.refuse(TooLong, "expected at most %d bytes of JSON, but got %d", limit, len(out))
		return nil
	}
	return out
}

// compact appends valid JSON without the white space between its tokens; everything else stays byte for byte.
func compact(dst, src []byte) []byte {
	from, inString := 0, false
	for i := 0; i < len(src); i++ {
		if inString {
			if i += plainRun(src[i:]); i == len(src) {
				break
			}
		}
		switch c := src[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case !inString && (c == ' ' || c == '\t' || c == '\n' || c == '\r'):
			dst = append(dst, src[from:i]...)
			from = i + 1
		}
	}
	return append(dst, src[from:]...)
}

// skip goes behind the value that follows, checking it.
func (r *reader) skip() {
	if r.err != nil {
		return
	}
	r.space()
	switch c := r.peek(); {
	case c == '"':
		r.skipString()
	case c == '{' || c == '[':
		r.skipNested(c)
	case c == 't':
		r.literal("true")
	case c == 'f':
		r.literal("false")
	case c == 'n':
		r.literal("null")
	case c == '-' || c >= '0' && c <= '9':
		r.number()
	default:
		r.syntax("a value")
	}
}

func (r *reader) skipNested(open byte) {
	if r.depth++; r.depth > r.deepest {
		r.fail(TooDeep, "expected at most %d levels", r.deepest)
		return
	}
	r.i++
	r.space()
	closing := open + 2 // as ASCII has it
	if r.peek() == closing {
		r.i++
		r.depth--
		return
	}
	for r.err == nil {
		r.space()
		if open == '{' {
			if r.peek() != '"' {
				r.syntax("a member's name")
				return
			}
			r.skipString()
			r.space()
			if r.err == nil && r.peek() != ':' {
				r.syntax("a colon")
			}
			r.i++
		}
		r.skip()
		r.space()
		switch {
		case r.err != nil:
			return
		case r.peek() == ',':
			r.i++
		case r.peek() == closing:
			r.i++
			r.depth--
			return
		default:
			r.syntax("a comma or the end of the object or array")
		}
	}
}

func (r *reader) literal(word string) {
	if len(r.b)-r.i < len(word) || string(r.b[r.i:r.i+len(word)]) != word {
		r.syntax("a value")
		return
	}
	r.i += len(word)
}

// number goes behind a number and returns its bytes.
func (r *reader) number() []byte {
	from := r.i
	if r.peek() == '-' {
		r.i++
	}
	digits := func() bool {
		start := r.i
		for c := r.peek(); c >= '0' && c <= '9'; c = r.peek() {
			r.i++
		}
		return r.i > start
	}
	if r.peek() == '0' {
		r.i++
	} else if !digits() {
		r.syntax("a digit")
		return nil
	}
	if r.peek() == '.' {
		r.i++
		if !digits() {
			r.syntax("a digit")
			return nil
		}
	}
	if c := r.peek(); c == 'e' || c == 'E' {
		r.i++
		if c := r.peek(); c == '+' || c == '-' {
			r.i++
		}
		if !digits() {
			r.syntax("a digit")
			return nil
		}
	}
	return r.b[from:r.i]
}

// skipString goes behind a string and returns what stands between its quotes, and whether it has escapes or is not ASCII.
func (r *reader) skipString() (body []byte, escaped bool) {
	r.i++
	from, wide := r.i, false
	for {
		if r.i += plainRun(r.b[r.i:]); r.i >= len(r.b) {
			break
		}
		switch c := r.b[r.i]; {
		case c == '"':
			body = r.b[from:r.i]
			r.i++
			if wide && !utf8.Valid(body) {
				r.fail(InvalidUTF8, "the text is not UTF-8")
			}
			return body, escaped
		case c == '\\':
			escaped = true
			if !r.escape() {
				return nil, true
			}
		case c < ' ':
			r.syntax("no control character in a string")
			return nil, escaped
		default:
			wide = wide || c >= utf8.RuneSelf
			r.i++
		}
	}
	r.syntax("the end of the string")
	return nil, escaped
}

// plainRun returns how many bytes at the beginning of b need no second look in a string: ASCII but control characters, quotes
// and backslashes. It looks at eight at a time, because most of most requests is the text of strings.
func plainRun(b []byte) int {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(b); i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		quote, slash := w^'"'*ones, w^'\\'*ones
		// The lowest high bit that is set is that of the first such byte; above it a borrow may have set others.
		odd := (w | (w-' '*ones)&^w | (quote-ones)&^quote | (slash-ones)&^slash) & high
		if odd != 0 {
			return i + bits.TrailingZeros64(odd)/8
		}
	}
	for i < len(b) && b[i] >= ' ' && b[i] < utf8.RuneSelf && b[i] != '"' && b[i] != '\\' {
		i++
	}
	return i
}

// escape goes behind one escape sequence, a pair of surrogates being one.
func (r *reader) escape() bool {
	if r.i+1 >= len(r.b) {
		r.i = len(r.b)
		r.syntax("the end of the string")
		return false
	}
	switch r.b[r.i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		r.i += 2
		return true
	case 'u':
		c, ok := hex4(r.b[r.i+2:])
		if !ok {
			break
		}
		if !utf16.IsSurrogate(c) {
			r.i += 6
			return true
		}
		if rest := r.b[r.i+6:]; len(rest) >= 6 && rest[0] == '\\' && rest[1] == 'u' {
			if low, ok := hex4(rest[2:]); ok && utf16.DecodeRune(c, low) != utf8.RuneError {
				r.i += 12
				return true
			}
		}
		r.fail(InvalidUTF8, "half of a surrogate pair at byte %d", r.i)
		return false
	}
	r.i++
	r.syntax("an escape sequence")
	return false
}

func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	var n rune
	for _, c := range b[:4] {
		switch {
		case c >= '0' && c <= '9':
			n = n<<4 | rune(c-'0')
		case c >= 'a' && c <= 'f':
			n = n<<4 | rune(c-'a'+10)
		case c >= 'A' && c <= 'F':
			n = n<<4 | rune(c-'A'+10)
		default:
			return 0, false
		}
	}
	return n, true
}

// text returns the string that follows, without escapes; it may be a part of the input.
func (r *reader) text() []byte {
	if r.err != nil {
		return nil
	}
	if r.peek() != '"' {
		r.mismatch("a string")
		return nil
	}
	body, escaped := r.skipString()
	r.escaped = escaped
	if r.err != nil || !escaped {
		return body
	}
	out := make([]byte, 0, len(body))
	for i := 0; i < len(body); {
		if body[i] != '\\' {
			out = append(out, body[i])
			i++
			continue
		}
		switch c := body[i+1]; c {
		case 'u':
			c, _ := hex4(body[i+2:])
			i += 6
			if utf16.IsSurrogate(c) {
				low, _ := hex4(body[i+2:])
				c = utf16.DecodeRune(c, low)
				i += 6
			}
			out = utf8.AppendRune(out, c)
			continue
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		default:
			out = append(out, c)
		}
		i += 2
	}
	return out
}

func (r *reader) str() string { return string(r.text()) }

// integer returns the integer that follows, between low and high.
func (r *reader) integer(low, high int64) int64 {
	if r.err != nil {
		return 0
	}
	if c := r.peek(); c != '-' && (c < '0' || c > '9') {
		r.mismatch("a whole number")
		return 0
	}
	text := r.number()
	if r.err != nil {
		return 0
	}
	n, ok := parseInt(text)
	if !ok {
		if bytes.ContainsAny(text, ".eE") {
			r.refuse(InvalidType, "expected a whole number without fraction or exponent, but got %.40s", text)
			return 0
		}
		r.refuse(OutOfRange, "expected a number from %d to %d, but got %.40s", low, high, text)
		return 0
	}
	if n < low || n > high {
		r.refuse(OutOfRange, "expected a number from %d to %d, but got %d", low, high, n)
		return 0
	}
	return n
}

func (r *reader) float() float64 {
	if r.err != nil {
		return 0
	}
	if c := r.peek(); c != '-' && (c < '0' || c > '9') {
		r.mismatch("a number")
		return 0
	}
	text := r.number()
	if r.err != nil {
		return 0
	}
	f, err := strconv.ParseFloat(string(text), 64)
	if err != nil {
		r.refuse(OutOfRange, "expected a number of double precision, but got %.40s", text)
		return 0
	}
	return f
}

func (r *reader) boolean() bool {
	if r.err != nil {
		return false
	}
	switch r.peek() {
	case 't':
		r.literal("true")
		return true
	case 'f':
		r.literal("false")
	default:
		r.mismatch("true or false")
	}
	return false
}

func (r *reader) instant() operation.Time {
	text := r.text()
	if text == nil || r.err != nil {
		return 0
	}
	t, ok := parseTime(text)
	if !ok {
		r.refuse(InvalidTime, "expected an RFC 3339 time in the years 1 to 9999, but got %.64q", text)
	}
	return t
}

func (r *reader) duration() time.Duration {
	text := r.text()
	if text == nil || r.err != nil {
		return 0
	}
	d, err := time.ParseDuration(string(text))
	if err != nil || len(text) > 64 {
		r.refuse(InvalidDuration, "expected a duration such as 90s, 2m or 1h30m, but got %.64q", text)
		return 0
	}
	return d
}

// parseInt is strconv.ParseInt for the integers of JSON, without the conversion to a string.
func parseInt(b []byte) (int64, bool) {
	negative := len(b) > 0 && b[0] == '-'
	if negative {
		b = b[1:]
	}
	if len(b) == 0 || len(b) > 19 {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	switch {
	case negative && n <= 1<<63:
		return -int64(n), true
	case !negative && n < 1<<63:
		return int64(n), true
	}
	return 0, false
}

// The first instants of the years 1 and 10000, in microseconds.
const (
	firstTime = operation.Time(-62_135_596_800_000_000)
	afterTime = operation.Time(253_402_300_800_000_000)
)

// parseTime reads an RFC 3339 time of the years 1 to 9999 (in UTC), rounding down to microseconds.
func parseTime(b []byte) (operation.Time, bool) {
	if len(b) > 64 {
		return 0, false
	}
	var t time.Time
	if err := t.UnmarshalText(b); err != nil {
		return 0, false
	}
	at := operation.Time(t.UnixMicro())
	return at, at >= firstTime && at < afterTime
}

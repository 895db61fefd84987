package schemas

import (
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/opstream/opstream/domain/operation"
)

// The encoders append to a slice by hand: they run several times for every operation.

func appendInt(dst []byte, n int64) []byte { return strconv.AppendInt(dst, n, 10) }

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string: as it is but for quotes, backslashes and control characters; bytes that are not
// UTF-8 become U+FFFD, so that nothing that we write is unreadable.
func appendString[T ~string | ~[]byte](dst []byte, s T) []byte {
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			end := min(i+utf8.UTFMax, len(s))
			if r, size := utf8.DecodeRuneInString(string(s[i:end])); r != utf8.RuneError || size != 1 {
				i += size
				continue
			}
		}
		dst = append(dst, s[from:i]...)
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c < ' ':
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		default:
			dst = append(dst, "\uFFFD"...)
		}
		i++
		from = i
	}
	dst = append(dst, s[from:]...)
	return append(dst, '"')
}

// appendTime appends an RFC 3339 time in UTC, with microseconds when it has any.
func appendTime(dst []byte, at operation.Time) []byte {
	t := time.UnixMicro(int64(at)).UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	dst = append(dst, byte('0'+year/1000%10), byte('0'+year/100%10), byte('0'+year/10%10), byte('0'+year%10), '-')
	dst = append(append2(dst, int(month)), '-')
	dst = append(append2(dst, day), 'T')
	dst = append(append2(dst, hour), ':')
	dst = append(append2(dst, minute), ':')
	dst = append2(dst, second)
	if micro := t.Nanosecond() / 1000; micro != 0 {
		dst = append(dst, '.', byte('0'+micro/100_000), byte('0'+micro/10_000%10), byte('0'+micro/1000%10),
			byte('0'+micro/100%10), byte('0'+micro/10%10), byte('0'+micro%10))
	}
	return append(dst, 'Z')
}

func append2(dst []byte, n int) []byte { return append(dst, byte('0'+n/10), byte('0'+n%10)) }

// appendDuration appends d in Go's syntax without the units that are zero: 2m, not 2m0s.
func appendDuration(dst []byte, d time.Duration) []byte {
	if d == 0 {
		return append(dst, '0', 's')
	}
	if d < 0 {
		dst, d = append(dst, '-'), -d
	}
	if h := int64(d / time.Hour); h > 0 {
		dst = append(appendInt(dst, h), 'h')
		d -= time.Duration(h) * time.Hour
	}
	if m := int64(d / time.Minute); m > 0 {
		dst = append(appendInt(dst, m), 'm')
		d -= time.Duration(m) * time.Minute
	}
	switch {
	case d >= time.Millisecond:
		dst = append(dst, d.String()...)
	case d > 0: // not in µs, to stay with ASCII
		dst = append(appendInt(dst, int64(d)), 'n', 's')
	}
	return dst
}

// An object being appended. Members with zero values are left out by the methods that end in Opt.
type object struct {
	b     []byte
	comma bool
}

func (o *object) open() {
	o.b = append(o.b, '{')
	o.comma = false
}

func (o *object) close() {
	o.b = append(o.b, '}')
	o.comma = true
}

// member appends a name, which must need no escapes, and a colon.
func (o *object) member(name string) {
	if o.comma {
		o.b = append(o.b, ',')
	}
	o.comma = true
	o.b = append(o.b, '"')
	o.b = append(o.b, name...)
	o.b = append(o.b, '"', ':')
}

func (o *object) str(name, s string) {
	o.member(name)
	o.b = appendString(o.b, s)
}

func (o *object) strOpt(name, s string) {
	if s != "" {
		o.str(name, s)
	}
}

func (o *object) int(name string, n int64) {
	o.member(name)
	o.b = appendInt(o.b, n)
}

func (o *object) intOpt(name string, n int64) {
	if n != 0 {
		o.int(name, n)
	}
}

func (o *object) bool(name string, v bool) {
	o.member(name)
	o.b = strconv.AppendBool(o.b, v)
}

func (o *object) float(name string, f float64) {
	o.member(name)
	o.b = strconv.AppendFloat(o.b, f, 'g', -1, 64)
}

func (o *object) time(name string, t operation.Time) {
	o.member(name)
	o.b = append(appendTime(append(o.b, '"'), t), '"')
}

func (o *object) timeOpt(name string, t operation.Time) {
	if t != 0 {
		o.time(name, t)
	}
}

func (o *object) duration(name string, d time.Duration) {
	o.member(name)
	o.b = append(appendDuration(append(o.b, '"'), d), '"')
}

func (o *object) durationOpt(name string, d time.Duration) {
	if d != 0 {
		o.duration(name, d)
	}
}

// raw splices JSON in as it is.
func (o *object) raw(name string, json []byte) {
	o.member(name)
	if len(json) == 0 {
		json = null
	}
	o.b = append(o.b, json...)
}

func (o *object) rawOpt(name string, json []byte) {
	if len(json) > 0 {
		o.raw(name, json)
	}
}

var null = []byte("null")

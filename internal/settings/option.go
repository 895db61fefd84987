package settings

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kind says how the text of a value is read.
type Kind uint8

// The kinds of values.
const (
	Text     Kind = iota // any text
	Number               // a whole number
	Switch               // true or false
	Duration             // as Go writes them: 15s, 2m30s
	List                 // texts; with commas between them where there is only one line
	Password             // a secret: file:/path, env:NAME, or itself
	Address              // of a database: a text that may hold a password, or a reference to one
)

// String is the name for people, as help shows it.
func (k Kind) String() string {
	return [...]string{"string", "int", "bool", "duration", "strings", "secret", "address"}[k]
}

// Option is one line of the table.
type Option struct {
	Name    string // file key and flag
	Kind    Kind
	Default string // as text
	Help    string // one sentence, without a full stop
	Roles   []string
	// Check refuses one value, of a list each of its elements; nil takes everything that the kind takes. Its error says what
	// was expected and what was found.
	Check func(text string) error
}

// Secret says whether values are kept from whoever reads what the program prints.
func (o *Option) Secret() bool { return o.Kind == Password || o.Kind == Address }

// Env is the name of the option in the environment.
func (o *Option) Env(prefix string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(o.Name, "-", "_"))
}

// check holds a value against the option's kind and its own check. The value is not quoted where it may be a secret.
func (o *Option) check(values []string) error {
	if o.Kind != List && len(values) != 1 {
		return fmt.Errorf("expected one value, but got %d", len(values))
	}
	var faults []error
	for _, text := range values {
		if err := o.checkOne(text); err != nil {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

func (o *Option) checkOne(text string) error {
	switch o.Kind {
	case Number:
		if _, err := strconv.ParseInt(text, 0, 32); err != nil {
			return fmt.Errorf("expected a whole number, but got %q", clip(text))
		}
	case Switch:
		if _, err := strconv.ParseBool(text); err != nil {
			return fmt.Errorf("expected true or false, but got %q", clip(text))
		}
	case Duration:
		if _, err := time.ParseDuration(text); err != nil {
			return fmt.Errorf("expected a duration such as 15s or 2m, but got %q", clip(text))
		}
	case List:
		if strings.TrimSpace(text) == "" {
			return errors.New("expected no empty element in the list, but there is one")
		}
	case Password, Address:
		if ref := Secret(text).Reference(); ref != "" && strings.TrimSpace(ref[strings.IndexByte(ref, ':')+1:]) == "" {
			return fmt.Errorf("expected %sNAME to name where the secret is, but it names nothing", ref)
		}
	case Text:
	}
	if o.Check != nil {
		return o.Check(text)
	}
	return nil
}

// Shown is a value as it may be printed: a secret that stands there itself is not, a reference to one is.
func (o *Option) Shown(values []string) string {
	text := strings.Join(values, ",")
	switch {
	case text == "" || !o.Secret():
		return text
	case Secret(text).Reference() != "":
		return text
	case o.Kind == Address:
		return maskAddress(text)
	}
	return masked
}

// masked stands for a secret.
const masked = "***"

// keywordPassword finds passwords in a connection string of the form "host=… password=…".
var keywordPassword = regexp.MustCompile(`(?i)\b(\w*password)\s*=\s*('(?:[^'\\]|\\.)*'?|\S*)`)

// maskAddress hides what may be a password in the address of a database. An address in which it cannot be found for sure is
// hidden whole.
func maskAddress(text string) string {
	if !strings.Contains(text, "://") {
		if strings.Contains(text, "@") && strings.Contains(text, ":") {
			return masked
		}
		return keywordPassword.ReplaceAllString(text, "$1="+masked)
	}
	u, err := url.Parse(text)
	if err != nil || strings.Contains(u.Host, "@") || strings.Contains(u.Path, "@") || u.Opaque != "" {
		return masked
	}
	// Written by hand: net/url would escape the asterisks.
	var b strings.Builder
	b.WriteString(u.Scheme + "://")
	if u.User != nil {
		b.WriteString(url.PathEscape(u.User.Username()))
		if _, has := u.User.Password(); has {
			b.WriteString(":" + masked)
		}
		b.WriteString("@")
	}
	b.WriteString(u.Host + u.EscapedPath())
	if u.RawQuery != "" {
		b.WriteString("?")
		for i, pair := range strings.Split(u.RawQuery, "&") {
			if i > 0 {
				b.WriteString("&")
			}
			name, _, has := strings.Cut(pair, "=")
			plain, err := url.QueryUnescape(name)
			if has && (err != nil || strings.Contains(strings.ToLower(plain), "password")) {
				pair = name + "=" + masked
			}
			b.WriteString(pair)
		}
	}
	if u.Fragment != "" {
		return masked // a password with a # that was not escaped looks like this
	}
	return b.String()
}

// split reads a list that stands on one line.
func split(text string) []string {
	if strings.TrimSpace(text) == "" {
		return []string{}
	}
	out := strings.Split(text, ",")
	for i := range out {
		out[i] = strings.TrimSpace(out[i])
	}
	return out
}

// clip bounds what is quoted of a value.
func clip(text string) string {
	const most = 80
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

// Table is all options of a program.
type Table []Option

// Find returns the option of a name, or nil.
func (t Table) Find(name string) *Option {
	if i := slices.IndexFunc(t, func(o Option) bool { return o.Name == name }); i >= 0 {
		return &t[i]
	}
	return nil
}

// nearest returns the name that was most likely meant, or "" when none is near.
func nearest(name string, names []string) string {
	best, least := "", max(2, len(name)/4)+1
	for _, n := range names {
		if max(len(n), len(name))-min(len(n), len(name)) >= least {
			continue
		}
		if d := distance(name, n); d < least {
			best, least = n, d
		}
	}
	return best
}

// distance is the number of letters to add, drop or change between a and b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := before
			if a[i] != b[j] {
				change++
			}
			before = row[j+1]
			row[j+1] = min(change, before+1, row[j]+1)
		}
	}
	return row[len(b)]
}

package operation_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
)

// TestRules plays the tables in testdata/*.txt.
//
// A line is a command, "->" and the answer: the events (with what counts in them), or "rejected" and the code, or "-"; then
// in brackets what the operation is. "at" sets the clock, in seconds after the beginning. A line that begins with "==" begins
// another operation. Everything after "//" is for the reader.
func TestRules(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("expected tables in testdata, but got %d (%v)", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, file, []byte(play(t, string(text))))
		})
	}
}

// play answers every line of a table anew.
func play(t *testing.T, text string) string {
	var out strings.Builder
	p := &player{now: t0}
	for n, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		asked, comment, commented := strings.Cut(line, "//")
		command, _, _ := strings.Cut(asked, "->")
		command = strings.TrimRight(command, " ")
		switch words := strings.Fields(command); {
		case len(words) == 0:
			out.WriteString(strings.TrimRight(line, " "))
		case words[0] == "==":
			p = &player{now: t0}
			out.WriteString(line)
		case words[0] == "at":
			p.now = p.time(words[1])
			out.WriteString(line)
		default:
			answer, err := p.do(words)
			if err != nil {
				t.Fatalf("line %d: %v", n+1, err)
			}
			fmt.Fprintf(&out, "%-44s -> %s", command, answer)
			if commented {
				out.WriteString("  //" + comment)
			}
		}
		out.WriteByte('\n')
	}
	return out.String()
}

type player struct {
	s     operation.State
	now   operation.Time
	place operation.Place
}

func (p *player) time(seconds string) operation.Time {
	f, err := strconv.ParseFloat(seconds, 64)
	if err != nil {
		return 0
	}
	return t0 + operation.Time(f*1e6)
}

// do gives one command and returns the answer.
func (p *player) do(words []string) (string, error) {
	c := operation.Command{Org: "contoso", ID: "op", Attempt: p.s.Attempt, Session: p.s.Session}
	found := false
	for kind := operation.CommandKind(0); kind < operation.CommandKinds; kind++ {
		if kind.String() == words[0] {
			c.Kind, found = kind, true
		}
	}
	if !found {
		return "", fmt.Errorf("expected a command, but got %q", words[0])
	}
	if c.Kind == operation.Dispatch {
		c.Session = "w1"
	}
	if c.Kind == operation.Fail {
		c.Failure = &operation.Failure{Code: "boom"}
	}
	if c.Kind == operation.Submit || c.Kind == operation.Retry {
		c.Request = &operation.Request{ID: "op", Organization: "contoso", Type: "bulk-email", Raw: []byte("{}")}
		if c.Kind == operation.Retry && p.s.Request != nil {
			again := *p.s.Request
			c.Request = &again
		}
	}
	c.Policy = &retry.Policy{MaxAttempts: 3, Initial: time.Second, Multiplier: 2, Max: time.Minute}
	for _, word := range words[1:] {
		key, value, _ := strings.Cut(word, "=")
		number, _ := strconv.Atoi(value)
		switch key {
		case "type":
			c.Request.Type = value
		case "body":
			c.Request.Raw = []byte(value)
		case "postpone":
			c.Request.PostponeUntil = p.time(value)
		case "tries": // attempts/seconds until the operation is given up
			n, giveUp, _ := strings.Cut(value, "/")
			tries, _ := strconv.Atoi(n)
			seconds, _ := strconv.Atoi(giveUp)
			c.Request.Retry = &retry.Policy{MaxAttempts: tries, Initial: time.Second, Multiplier: 3, GiveUpAfter: time.Duration(seconds) * time.Second}
		case "behind", "upstream":
			c.Upstream = operation.ID(value)
		case "failed":
			c.Failure = &operation.Failure{}
		case "until":
			c.Until = p.time(value)
		case "attempt":
			c.Attempt = operation.Attempt(number)
		case "session":
			c.Session = operation.SessionID(value)
		case "started":
			c.StartedAt = p.time(value)
		case "class":
			class, ok := retry.ParseClass(value)
			if !ok {
				return "", fmt.Errorf("expected a class, but got %q", value)
			}
			c.Failure.Class = class
		case "error":
			code, err := strconv.ParseUint(value, 0, 32)
			if err != nil {
				return "", err
			}
			c.Failure.ErrorCode = int32(uint32(code))
		case "event":
			c.Event = value
		case "carry":
			c.Carry = []byte(value)
		case "progress":
			c.Progress = []byte(value)
		case "result":
			c.Result = []byte(value)
		case "by":
			c.By.Who = value
		default:
			return "", fmt.Errorf("expected an argument, but got %q", word)
		}
	}
	events, rejection := decide(&p.s, &c, p.now)
	var answer []string
	if rejection != nil {
		answer = append(answer, "rejected "+string(rejection.Code))
	}
	for i := range events {
		e := &events[i]
		p.place++
		p.s.Apply(e, p.place)
		answer = append(answer, describe(e))
	}
	if len(answer) == 0 {
		answer = []string{"-"}
	}
	return strings.Join(answer, ", ") + " [" + what(&p.s) + "]", nil
}

func seconds(at operation.Time) string {
	return strconv.FormatFloat(float64(at-t0)/1e6, 'f', -1, 64)
}

func describe(e *operation.Event) string {
	text := e.Kind.String()
	add := func(show bool, format string, value any) {
		if show {
			text += fmt.Sprintf(" "+format, value)
		}
	}
	add(e.Kind == operation.Dispatched, "attempt=%v", e.Attempt)
	add(e.Until != 0, "until=%v", seconds(e.Until))
	add(e.Failure != nil && e.Failure.Code != "", "error=%v", failure(e.Failure))
	add(e.Event != "", "event=%v", e.Event)
	add(e.Upstream != "", "upstream=%v", e.Upstream)
	add(e.Code != "", "code=%v", e.Code)
	return text
}

func failure(f *operation.Failure) string {
	if f == nil {
		return ""
	}
	if f.Class == retry.Unknown {
		return f.Code
	}
	return f.Code + "/" + f.Class.String()
}

// what says what the operation is: its status, its holds and what belongs to them, and what the next attempt is given.
func what(s *operation.State) string {
	text := s.Status.String()
	for i, name := range []string{"dependency", "paused", "event", "postponed", "retry"} {
		if s.Holds&(1<<i) != 0 {
			text += " " + name
			switch operation.Holds(1 << i) {
			case operation.HoldDependency:
				text += ":" + string(s.BlockedBy)
				if s.Blocked {
					text += "!"
				}
			case operation.HoldEvent:
				text += ":" + s.WaitsFor
			case operation.HoldPostponed, operation.HoldRetry:
				text += ":" + seconds(s.Until)
			}
		}
	}
	if s.Until != 0 && s.Holds&(operation.HoldPostponed|operation.HoldRetry) == 0 {
		text += " until:" + seconds(s.Until)
	}
	if s.Carry != nil {
		text += " carry:" + string(s.Carry)
	}
	if s.Failures != 0 {
		text += fmt.Sprintf(" failures:%d", s.Failures)
	}
	return text
}

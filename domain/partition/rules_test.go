package partition_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/domain/retry"
)

var update = flag.Bool("update", false, "write the answers that the code gives into testdata")

// TestRules plays the tables in testdata/*.txt.
//
// A line is a command and, after "->", all the events of its step and of the Settle that follows it; "//" begins a remark and
// "==" another partition. A line that begins with "|" answers more. Commands of operations begin with the operation:
//
//	a submit token=k policy=block prio=9 org=o type=t postpone=10   (type defaults to mail, org to contoso)
//	a succeed | fail [class=retry] | return | start | yield | stop  (of the open attempt, or attempt= session=)
//	a cancel | pause | resume | postpone until=10 | retry | delete  [cmd=id]
//
// and others are of the partition: "at 10" (the clock, in seconds), "hear s room=4 types=mail lease=15 draining ended",
// "deaf 10" (heartbeats are known up to then), "crash" (a new engine replays the journal), "set known=2 failed=2 partitions=4 initial=0",
// "wake", "show a …", "open s", "overdue", "live". "at=7" reads an input again that stands at offset 7 of its topic.
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
			got := play(t, string(text))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want := strings.Split(string(text), "\n")
			for i, line := range strings.Split(got, "\n") {
				if i >= len(want) || want[i] != line {
					t.Fatalf("line %d: expected\n%s\nbut got\n%s\n(go test -update writes it)", i+1, strings.Join(want[min(i, len(want)):min(i+3, len(want))], "\n"), line)
				}
			}
			if !bytes.Equal(text, []byte(got)) {
				t.Fatal("expected as many lines as the table has, but got fewer")
			}
		})
	}
}

func play(t *testing.T, text string) string {
	var out strings.Builder
	p := newPlayer()
	for n, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		if strings.HasPrefix(line, "|") {
			continue
		}
		asked, remark, remarked := strings.Cut(line, "//")
		command, _, _ := strings.Cut(asked, "->")
		command = strings.TrimRight(command, " ")
		switch words := strings.Fields(command); {
		case len(words) == 0:
			out.WriteString(strings.TrimRight(line, " "))
		case words[0] == "==":
			p = newPlayer()
			out.WriteString(line)
		default:
			if remarked {
				remark = "  //" + remark
			}
			answers, err := p.line(words)
			if err != nil {
				t.Fatalf("line %d: %v", n+1, err)
			}
			if len(answers) == 0 && words[0] != "set" {
				answers = []string{"-"}
			}
			for i, answer := range answers {
				if i == 0 {
					fmt.Fprintf(&out, "%-40s -> %s%s", command, answer, remark)
				} else {
					fmt.Fprintf(&out, "\n|%-39s    %s", "", answer)
				}
			}
			if len(answers) == 0 {
				out.WriteString(command + remark)
			}
		}
		out.WriteByte('\n')
	}
	return out.String()
}

type player struct {
	cfg     partition.Config
	e       *partition.Engine
	now     operation.Time
	journal []operation.Event
	offsets map[string]int64
	orgs    map[operation.ID]string
	types   map[operation.ID]*operation.Request
	opened  map[operation.ID]operation.State // the last attempt that was seen open
}

func newPlayer() *player {
	p := &player{
		cfg: testConfig(), now: t0, offsets: map[string]int64{}, orgs: map[operation.ID]string{},
		types: map[operation.ID]*operation.Request{}, opened: map[operation.ID]operation.State{},
	}
	p.e = partition.New(p.cfg)
	return p
}

func (p *player) time(text string) operation.Time {
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return -1
	}
	return t0 + operation.Time(f*1e6)
}

// take gathers the events, and keeps them as the journal.
func (p *player) take() []string {
	var lines []string
	for _, ev := range p.e.Take() {
		lines = append(lines, describe(&ev))
		p.journal = append(p.journal, ev)
		if s := p.e.State(ev.Org, ev.ID); s != nil && s.Status.Locked() {
			p.opened[ev.ID] = *s
		}
	}
	return lines
}

func (p *player) settle(cause operation.Cause) []string {
	p.e.HeardThrough(p.now)
	p.e.Settle(cause, p.now)
	return p.take()
}

func (p *player) line(words []string) ([]string, error) {
	clock := operation.Cause{Topic: "clock"}
	switch words[0] {
	case "at":
		p.now = p.time(words[1])
		return p.settle(clock), nil
	case "settle":
		return p.settle(clock), nil
	case "deaf": // the actor has not read the heartbeats since
		p.now = p.time(words[1])
		p.e.Settle(clock, p.now)
		return append(p.take(), fmt.Sprintf("silent=%v", p.e.Silent(p.now))), nil
	case "missed": // heartbeats until now
		p.e.Missed(p.now)
		return nil, nil
	case "set":
		for _, word := range words[1:] {
			key, value, _ := strings.Cut(word, "=")
			n, _ := strconv.Atoi(value)
			switch key {
			case "known":
				p.cfg.KnownMax = n
			case "failed":
				p.cfg.FailedMax = n
			case "partitions":
				p.cfg.Partitions = n
			case "initial":
				p.cfg.Policy = func(string) *retry.Policy {
					return &retry.Policy{MaxAttempts: 3, Initial: time.Duration(n) * time.Second}
				}
			default:
				return nil, fmt.Errorf("expected a setting, but got %q", word)
			}
		}
		p.e = partition.New(p.cfg)
		return nil, nil
	case "open":
		p.e.Open(words[1], p.now)
		return p.take(), nil
	case "crash":
		p.e = partition.New(p.cfg)
		for i := range p.journal {
			p.e.Replay(&p.journal[i], operation.Place(i))
		}
		p.e.Recovered()
		p.e.Grace(p.now)
		return p.settle(clock), nil
	case "cut": // the last events are lost, and the engine with them
		n, _ := strconv.Atoi(words[1])
		p.journal = p.journal[:len(p.journal)-n]
		return p.line([]string{"crash"})
	case "wake":
		at := p.e.NextWake()
		if at == 0 {
			return []string{"never"}, nil
		}
		return []string{"at " + seconds(at)}, nil
	case "live":
		return []string{strconv.Itoa(p.e.Live())}, nil
	case "overdue":
		var ids []string
		p.e.Overdue(p.now, false, func(s *operation.State) { ids = append(ids, string(s.ID)) })
		return ids, nil
	case "show":
		var lines []string
		for _, id := range words[1:] {
			s := p.e.State(p.org(operation.ID(id)), operation.ID(id))
			if s == nil {
				lines = append(lines, id+" is not live")
				continue
			}
			text := fmt.Sprintf("%s is %s %s", id, s.Status, s.Wait())
			if s.BlockedBy != "" {
				text += " behind " + string(s.BlockedBy)
			}
			if s.Blocked {
				text += " blocked"
			}
			lines = append(lines, strings.TrimRight(text, " "))
		}
		return lines, nil
	case "hear":
		hb := partition.Heartbeat{Session: operation.SessionID(words[1]), Types: []string{"mail"}, Room: 100, Lease: 15 * time.Second}
		for _, word := range words[2:] {
			key, value, _ := strings.Cut(word, "=")
			n, _ := strconv.Atoi(value)
			switch key {
			case "room":
				hb.Room = n
			case "types":
				hb.Types = strings.Split(value, ",")
			case "lease":
				hb.Lease = time.Duration(n) * time.Second
			case "draining":
				hb.Draining = true
			case "ended":
				hb.Ended = true
			default:
				return nil, fmt.Errorf("expected an argument, but got %q", word)
			}
		}
		p.e.Hear(&hb, p.now)
		return p.settle(clock), nil
	}
	return p.command(words)
}

func (p *player) org(id operation.ID) string {
	if org := p.orgs[id]; org != "" {
		return org
	}
	return "contoso"
}

func (p *player) command(words []string) ([]string, error) {
	if len(words) < 2 {
		return nil, fmt.Errorf("expected a command, but got %q", words)
	}
	var cs []*operation.Command
	for _, id := range strings.Split(words[0], ",") {
		c, err := p.build(operation.ID(id), words[1], words[2:])
		if err != nil {
			return nil, err
		}
		cs = append(cs, c)
	}
	for _, c := range cs {
		if place, wants := p.e.Do(c, p.now); wants {
			c.Request = p.journal[place].Request
			p.e.Do(c, p.now)
		}
	}
	return p.settle(cs[len(cs)-1].Cause), nil
}

func (p *player) build(id operation.ID, verb string, args []string) (*operation.Command, error) {
	c := &operation.Command{ID: id}
	found := false
	for kind := operation.Submit; kind <= operation.Return; kind++ {
		if kind.String() == verb {
			c.Kind, found = kind, true
		}
	}
	if !found {
		return nil, fmt.Errorf("expected a command, but got %q", verb)
	}
	c.Cause = operation.Cause{Topic: partition.Requests}
	if c.Kind.Report() {
		c.Cause.Topic = partition.Reports
		last := p.opened[id]
		c.Attempt, c.Session = last.Attempt, last.Session
	}
	c.Cause.Offset = p.offsets[c.Cause.Topic]
	if c.Kind == operation.Fail {
		c.Failure = &operation.Failure{Code: "boom", Class: retry.Fail}
	}
	kind, token, policy, prio, postpone := "mail", "", operation.UpstreamRelease, operation.PriorityDefault, operation.Time(0)
	again := false
	for _, word := range args {
		key, value, _ := strings.Cut(word, "=")
		n, _ := strconv.Atoi(value)
		switch key {
		case "org":
			p.orgs[id] = value
		case "type":
			kind = value
		case "token":
			token = value
		case "policy":
			policy, _ = operation.ParseUpstreamPolicy(value)
		case "prio":
			prio = n
		case "postpone":
			postpone = p.time(value)
		case "until":
			c.Until = p.time(value)
		case "class":
			c.Failure.Class, _ = retry.ParseClass(value)
		case "attempt":
			c.Attempt = operation.Attempt(n)
		case "session":
			c.Session = operation.SessionID(value)
		case "started":
			c.StartedAt = p.time(value)
		case "cmd":
			c.CommandID = value
		case "at":
			c.Cause.Offset, again = int64(n), true
		default:
			return nil, fmt.Errorf("expected an argument, but got %q", word)
		}
	}
	if !again {
		p.offsets[c.Cause.Topic]++
	}
	if c.Kind == operation.Start && c.StartedAt == 0 {
		c.StartedAt = p.now
	}
	c.Org = p.org(id)
	if c.Kind == operation.Submit {
		c.Request = request(c.Org, string(id), kind, token, policy, int8(prio), postpone)
	}
	return c, nil
}

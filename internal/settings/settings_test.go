package settings_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opstream/opstream/internal/settings"
)

func table() settings.Table {
	return settings.Table{
		{Name: "brokers", Kind: settings.List, Default: "localhost:9092"},
		{Name: "slots", Kind: settings.Number, Default: "64"},
		{Name: "sync", Kind: settings.Switch, Default: "false"},
		{Name: "lease", Kind: settings.Duration, Default: "15s"},
		{Name: "log", Default: "info", Check: func(text string) error {
			if text == "loud" {
				return errors.New("expected less")
			}
			return nil
		}},
		{Name: "password", Kind: settings.Password},
		{Name: "database", Kind: settings.Address},
	}
}

func write(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func resolve(t testing.TB, file string, env []string, flags map[string][]string) (*settings.Result, string) {
	t.Helper()
	in := settings.Input{Prefix: "APP_", Environ: env, Flags: flags, Ignored: []string{"APP_TEST_*", "APP_CONFIG"}}
	if file != "" {
		in.File = write(t, file)
	}
	r, err := table().Resolve(in)
	if err == nil {
		return r, ""
	}
	if in.File == "" {
		return r, err.Error()
	}
	return r, strings.ReplaceAll(err.Error(), in.File, "a.yaml")
}

func TestTheLastOneThatSpeaksWins(t *testing.T) {
	const file = "slots: 1\nlease: 1s\nlog: file\nbrokers: [a, b]\n"
	env := []string{"APP_LEASE=2s", "APP_LOG=env", "APP_SYNC=", "APP_BROKERS=c, d", "OTHER=1"}
	flags := map[string][]string{"log": {"first", "flag"}, "brokers": {"e,f", "g"}}
	r, faults := resolve(t, file, env, flags)
	if faults != "" {
		t.Fatal(faults)
	}
	var got []string
	for _, v := range r.Values {
		at := v.Source.At
		if i := strings.LastIndex(at, ".yaml"); i >= 0 {
			at = at[i-1:]
		}
		got = append(got, fmt.Sprintf("%s=%s %s %s", v.Option.Name, strings.Join(v.Values, "|"), v.Source.From, at))
	}
	want := []string{
		"brokers=e|f|g flag --brokers", "slots=1 file a.yaml:1", "sync=false default ", "lease=2s environment APP_LEASE",
		"log=flag flag --log", "password= default ", "database= default ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("expected\n%s\nbut got\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
	if r, _ := resolve(t, file, env, nil); r.Get("brokers").Text() != "c,d" {
		t.Errorf("expected the environment's brokers, but got %v", r.Get("brokers").Values)
	}
	if r, _ := resolve(t, file, nil, nil); r.Get("brokers").Text() != "a,b" {
		t.Errorf("expected the file's brokers, but got %v", r.Get("brokers").Values)
	}
}

// TestFaults: everything that is wrong is told at once, with its place.
func TestFaults(t *testing.T) {
	for _, c := range []struct {
		name, file string
		env        []string
		flags      map[string][]string
		want       []string // in this order; nothing for a configuration that is right
	}{
		{name: "all at once", file: "slot: 1\nsync: perhaps\n\nlease: soon\nslots: many\n", env: []string{"APP_SLOTS=x"}, flags: map[string][]string{"log": {"loud"}}, want: []string{
			"a.yaml:1: expected a known option, but got \"slot\"; did you mean slots?", "a.yaml:2: sync: expected true or false, but got \"perhaps\"",
			"a.yaml:4: lease: expected a duration", "a.yaml:5: slots: expected a whole number", "APP_SLOTS: expected a whole number", "--log: expected less",
		}},
		{name: "near none", file: "something-else-entirely: 1\n", want: []string{"a.yaml:1: expected a known option, but got \"something-else-entirely\", which is near none"}},
		{name: "underscores", file: "pass_word: env:X\n", want: []string{"did you mean password?"}},
		{name: "twice", file: "slots: 1\nlog: a\nslots: 1\n", want: []string{"a.yaml:3: expected slots once, but it stands in line 1 already"}},
		{name: "nested", file: "log:\n  level: info\n", want: []string{"a.yaml:2: log: expected a value, but got a mapping"}},
		{name: "a list for one", file: "slots: [1, 2]\n", want: []string{"a.yaml:1: slots: expected a value, but got a list"}},
		{name: "a list in a list", file: "brokers: [a, [b]]\n", want: []string{"a.yaml:1: brokers: expected a value, but got a list"}},
		{name: "an empty element", file: "brokers: a,,b\n", want: []string{"a.yaml:1: brokers: expected no empty element"}},
		{name: "nothing", file: "slots:\nlog: ~\n", want: []string{"a.yaml:1: slots: expected a value, but there is none", "a.yaml:2: log: expected a value"}},
		{name: "not YAML", file: "slots: [\n", want: []string{"a.yaml: expected YAML, but: yaml: line 1"}},
		{name: "tabs", file: "\tslots: 1\n", want: []string{"a.yaml: expected YAML"}},
		{name: "a list", file: "- slots\n", want: []string{"a.yaml:1: expected lines of the form name: value, but got a list"}},
		{name: "a word", file: "slots\n", want: []string{"a.yaml:1: expected lines of the form"}},
		{name: "two documents", file: "slots: 1\n---\nslots: 2\n", want: []string{"a.yaml: expected one document"}},
		{name: "anchor", file: "log: &a info\npassword: *a\n", want: []string{"a.yaml:1: log: expected no anchor", "a.yaml:2: password: expected a value, but got an alias"}},
		{name: "merge", file: "<<: {slots: 1}\n", want: []string{"a.yaml:1: expected a known option, but got \"<<\""}},
		{name: "a key that is none", file: "? [slots]\n: 1\n", want: []string{"a.yaml:1: expected the name of an option, but got a list"}},
		{name: "tag", file: "log: !secret x\n", want: []string{"a.yaml:1: log: expected a value without a tag"}},
		{name: "binary", file: "log: !!binary aGVsbG8=\n", want: []string{"without a tag"}},
		{name: "out of range", file: "slots: 99999999999\n", want: []string{"expected a whole number"}},
		{name: "half a reference", env: []string{"APP_PASSWORD=env:"}, want: []string{"APP_PASSWORD: expected env:NAME to name"}},
		{name: "a secret on the command line", flags: map[string][]string{"password": {"hunter2"}}, want: []string{"--password: expected a reference to the secret"}},
		{name: "huge", file: "log: \"" + strings.Repeat("x", 300<<10) + "\"\n", want: []string{"a.yaml: expected a configuration of at most"}},
		{name: "deep", file: strings.Repeat("[", 200_000), want: []string{"a.yaml: expected YAML"}},
		{name: "an anchor bomb", file: bomb(), want: []string{"a.yaml:1: expected a known option", "near none"}},

		{name: "right", file: "# nothing but this\n"},
		{name: "empty", file: ""},
		{name: "begun", file: "---\nslots: 0x10\nsync: True\nbrokers: a, b\nlog: 1\ndatabase: \"\"\n...\n"},
		{name: "a reference on the command line", flags: map[string][]string{"password": {"file:/run/secrets/p"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, faults := resolve(t, c.file, c.env, c.flags)
			rest := faults
			for _, want := range c.want {
				i := strings.Index(rest, want)
				if i < 0 {
					t.Fatalf("expected, in order,\n%s\nbut got\n%.2000s", strings.Join(c.want, "\n"), faults)
				}
				rest = rest[i+len(want):]
			}
			if len(c.want) == 0 && faults != "" {
				t.Errorf("expected no fault, but got\n%s", faults)
			}
			if strings.Contains(faults, "hunter2") || len(faults) > 4000 {
				t.Errorf("expected a bounded message without the secret, but got %.4000s", faults)
			}
		})
	}
	if _, err := table().Resolve(settings.Input{File: filepath.Join(t.TempDir(), "none.yaml")}); err == nil || !strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("expected a file that is missing to be told of, but got %v", err)
	}
	if _, err := table().Resolve(settings.Input{File: t.TempDir()}); err == nil {
		t.Error("expected a folder to be refused as a file, but it was not")
	}
}

// bomb is a document that would grow to a billion elements were its aliases followed.
func bomb() string {
	var b strings.Builder
	b.WriteString("a: &a [x, x, x, x, x, x, x, x, x, x]\n")
	for c := 'b'; c < 'k'; c++ {
		fmt.Fprintf(&b, "%c: &%c [", c, c)
		for range 10 {
			fmt.Fprintf(&b, "*%c, ", c-1)
		}
		b.WriteString("]\n")
	}
	return b.String()
}

func TestUnknownVariables(t *testing.T) {
	env := []string{
		"APP_SLOT=1", "APP_KAFKAESQUE=1", "APP_LOG=info",
		"APP_TEST_X=1", "APP_CONFIG=x", // of others
		"APP_SERVICE_HOST=10.0.0.1", "APP_SERVICE_PORT=80", "APP_SERVICE_PORT_HTTP=80", "APP_PORT=tcp://10.0.0.1:80", "APP_PORT_80_TCP_ADDR=10.0.0.1", "APP_API_PORT_80_TCP=x",
	}
	r, faults := resolve(t, "", env, nil)
	want := []string{
		`expected a known variable, but got "APP_KAFKAESQUE", which is near none`,
		`expected a known variable, but got "APP_SLOT"; did you mean APP_SLOTS?`,
	}
	if faults != "" || !slices.Equal(r.Unknown, want) {
		t.Errorf("expected\n%s\nbut got\n%s\n%s", strings.Join(want, "\n"), strings.Join(r.Unknown, "\n"), faults)
	}
}

func TestOnlyWhatIsUsedIsReadFromTheEnvironment(t *testing.T) {
	r, err := table().Resolve(settings.Input{Prefix: "APP_", Environ: []string{"APP_SLOTS=x", "APP_LOG=debug"}, Used: func(name string) bool { return name == "log" }})
	if err != nil || r.Get("log").Text() != "debug" || r.Get("slots").Text() != "64" || len(r.Unknown) != 0 {
		t.Errorf("expected log=debug and slots=64, but got %v, %v", r, err)
	}
}

func TestSecret(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "secret")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("SECRET_OF_TEST", "from env")
	file := settings.Secret("file:" + path)
	put("one\n")
	for _, c := range []struct {
		secret settings.Secret
		want   string
	}{{"itself", "itself"}, {"", ""}, {"env:SECRET_OF_TEST", "from env"}, {file, "one"}} {
		if got, err := c.secret.Read(); err != nil || got != c.want {
			t.Errorf("expected %q, but got %q, %v", c.want, got, err)
		}
	}
	for content, want := range map[string]string{"two": "two", "two\r\n": "two", " two \n\n": " two \n"} {
		put(content)
		if got, err := file.Read(); err != nil || got != want {
			t.Errorf("%q: expected %q, but got %q, %v", content, want, got, err)
		}
	}
	put("\n")
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, s := range []settings.Secret{file, "env:NO_SUCH_VARIABLE_OF_TEST", settings.Secret("file:" + dir), settings.Secret("file:" + large), "file:" + "none"} {
		if got, err := s.Read(); err == nil || got != "" {
			t.Errorf("%s: expected an error, but got %q", s.Reference(), got)
		}
	}

	const hunter = settings.Secret("hunter2")
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", hunter, "in", struct{ S settings.Secret }{hunter})
	encoded, err := json.Marshal(map[string]any{"a": hunter, "b": []settings.Secret{hunter}})
	if err != nil {
		t.Fatal(err)
	}
	for _, printed := range []string{
		fmt.Sprint(hunter), fmt.Sprintf("%v %+v %#v %s %q %x %d", hunter, hunter, hunter, hunter, hunter, hunter, hunter),
		fmt.Sprintf("%v %+v %#v", struct{ S settings.Secret }{hunter}, &struct{ S settings.Secret }{hunter}, struct{ S settings.Secret }{hunter}), string(encoded), log.String(),
	} {
		if strings.Contains(printed, "hunter") || strings.Contains(printed, "68756e746572") || !strings.Contains(printed, "***") {
			t.Errorf("expected the secret to be masked, but got %s", printed)
		}
	}
}

func TestShown(t *testing.T) {
	database, password, log := table().Find("database"), table().Find("password"), table().Find("log")
	for _, c := range []struct {
		option     *settings.Option
		text, want string
	}{
		{log, "plain", "plain"},
		{password, "", ""},
		{password, "hunter2", "***"},
		{password, "file:/run/secrets/p", "file:/run/secrets/p"},
		{password, "env:P", "env:P"},
		{database, "tables.db", "tables.db"},
		{database, "sqlite:/data/tables.db", "sqlite:/data/tables.db"},
		{database, "file:/run/secrets/url", "file:/run/secrets/url"},
		{database, "postgres://user:hunter2@host:5432/db?sslmode=verify-full", "postgres://user:***@host:5432/db?sslmode=verify-full"},
		{database, "postgres://user@host/db", "postgres://user@host/db"},
		{database, "postgres://user:@host/db", "postgres://user:***@host/db"},
		{database, "postgres://host/db?user=u&password=hunter2&sslpassword=hunter2", "postgres://host/db?user=u&password=***&sslpassword=***"},
		{database, "postgres://host/db?pass%77ord=hunter2", "postgres://host/db?pass%77ord=***"},
		{database, "postgres://user:hunter2#x@host/db", "***"},
		{database, "postgres://user:hunter2/x@host/db", "***"},
		{database, "postgres://user:hun@ter2@host/db", "postgres://user:***@host/db"},
		{database, "postgres://user:hunter2%@host/db", "***"},
		{database, "host=h password=hunter2 user=u", "host=h password=*** user=u"},
		{database, `host=h PASSWORD = 'hunter2 \' x' user=u`, "host=h PASSWORD=*** user=u"},
		{database, "user:hunter2@tcp(host)/db", "***"},
	} {
		if got := c.option.Shown([]string{c.text}); got != c.want {
			t.Errorf("%s: expected %s, but got %s", c.text, c.want, got)
		}
	}
}

// FuzzFile: whatever stands in a file, reading it ends soon, takes little, and either gives every option a value that its kind takes or
// says what is wrong.
func FuzzFile(f *testing.F) {
	f.Add([]byte("slots: 1\nbrokers: [a, b]\nlog: \"x\"\n"))
	f.Add([]byte("slots: 1\nslots: 2\n"))
	f.Add([]byte(bomb()))
	f.Add([]byte("a: &a [*a]\n? *a\n: *a\n"))
	f.Add([]byte("<<: *x\nlog: !!binary x\n--- \n%YAML 1.1\n"))
	f.Add([]byte(strings.Repeat("{? ", 3000)))
	f.Add([]byte("log: |\n\xff\xfe\n\x00"))
	path := filepath.Join(f.TempDir(), "a.yaml")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		r, err := table().Resolve(settings.Input{Prefix: "APP_", File: path})
		runtime.ReadMemStats(&after)
		if used, most := after.TotalAlloc-before.TotalAlloc, uint64(16<<20+2000*len(data)); used > most {
			t.Errorf("expected at most %d bytes to be used for %d, but it was %d", most, len(data), used)
		}
		if err != nil {
			if err.Error() == "" {
				t.Error("expected an error that says something")
			}
			return
		}
		for i := range r.Values {
			v := &r.Values[i]
			if v.Option.Kind != settings.List && len(v.Values) != 1 {
				t.Errorf("expected one value of %s, but got %q", v.Option.Name, v.Values)
			}
			if v.Option.Kind == settings.Duration {
				if _, err := time.ParseDuration(v.Text()); err != nil {
					t.Errorf("expected a duration, but got %q", v.Text())
				}
			}
			if v.Source.From == settings.FromEnv || v.Source.From == settings.FromFlag {
				t.Errorf("expected no other source than the file, but got %s", v.Source)
			}
		}
	})
}

package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opstream/opstream/internal/settings"
)

var update = flag.Bool("update", false, "write the tables of options and metrics into deploy/README.md")

// writeFile puts text into a file of a test's folder.
func writeFile(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// withoutOptions clears the environment of options for a test.
func withoutOptions(t *testing.T) {
	t.Helper()
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, envPrefix) {
			t.Setenv(name, "")
		}
	}
}

// printed is what config print --output json says of each option.
func printed(t *testing.T, args ...string) map[string]shownOption {
	t.Helper()
	r := run(t, "", append([]string{"config", "print", "--output", "json"}, args...)...)
	var list []shownOption
	if err := json.Unmarshal([]byte(r.out), &list); err != nil || r.code != exitOK {
		t.Fatalf("expected JSON, but got %v: %s", err, r)
	}
	out := map[string]shownOption{}
	for _, o := range list {
		out[o.Name] = o
	}
	return out
}

func TestConfigPrintTellsValuesAndSources(t *testing.T) {
	withoutOptions(t)
	file := writeFile(t, "opstream.yaml", "brokers: [a:1, b:2]\nslots: 7\nlease: 20s\nkafka-sasl-password: hunter2\ndatabase: postgres://user:hunter2@host/db\n")
	t.Setenv("OPSTREAM_LEASE", "30s")
	t.Setenv("OPSTREAM_SLOTS", "8")
	t.Setenv("OPSTREAM_KAFKA_SASL_CLIENT_SECRET", "env:HOME")
	args := []string{"--config", file, "--slots", "9", "--sync", "--noop", "x,y", "--noop", "z"}
	got := printed(t, args...)
	for name, want := range map[string]string{
		"brokers": "a:1,b:2 file " + file + ":1", "slots": "9 flag --slots", "lease": "30s environment OPSTREAM_LEASE", "sync": "true flag --sync",
		"noop": "x,y,z flag --noop", "log": "info default ", "kafka-sasl-password": "*** file " + file + ":4",
		"kafka-sasl-client-secret": "env:HOME environment OPSTREAM_KAFKA_SASL_CLIENT_SECRET", "database": "postgres://user:***@host/db file " + file + ":5",
	} {
		if o := got[name]; fmt.Sprintf("%s %s %s", o.Value, o.From, o.At) != want {
			t.Errorf("%s: expected %q, but got %+v", name, want, o)
		}
	}
	if _, there := got["server"]; there {
		t.Error("expected the options of serve alone, but server is among them")
	}
	t.Setenv("OPSTREAM_CONFIG", file)
	if o := printed(t)["slots"]; o.Value != "8" {
		t.Errorf("expected the file of OPSTREAM_CONFIG to count less than OPSTREAM_SLOTS, but got %+v", o)
	}
	if o := printed(t)["brokers"]; o.From != "file" {
		t.Errorf("expected the file of OPSTREAM_CONFIG to be read, but got %+v", o)
	}
	if o := printed(t, "--config", "")["brokers"]; o.From != "default" {
		t.Errorf("expected --config without a name to mean no file, but got %+v", o)
	}

	// What is printed as YAML says the same when it is read.
	yaml := run(t, "", append([]string{"config", "print", "-o", "yaml"}, args...)...)
	yaml.expect(t, exitOK, "# secret: kafka-sasl-password: \"***\"")
	for _, shown := range []result{yaml, run(t, "", append([]string{"config", "print"}, args...)...), run(t, "", append([]string{"config", "print", "-o", "json"}, args...)...)} {
		if strings.Contains(shown.out+shown.err, "hunter2") {
			t.Errorf("expected no secret, but got %s", shown)
		}
	}
	t.Setenv("OPSTREAM_LEASE", "")
	t.Setenv("OPSTREAM_SLOTS", "")
	again := printed(t, "--config", writeFile(t, "printed.yaml", yaml.out))
	for name, o := range got {
		if o.Secret && o.Value != "env:HOME" {
			continue
		}
		if again[name].Value != o.Value || again[name].From == "default" {
			t.Errorf("%s: expected %q of the file that was printed, but got %+v", name, o.Value, again[name])
		}
	}
}

func TestConfigCheckSaysEverythingAtOnce(t *testing.T) {
	withoutOptions(t)
	file := writeFile(t, "opstream.yaml", "broker: a\nslots: x\nroles: [worker, cook]\n")
	for _, command := range []string{"serve", "config check", "config print"} {
		run(t, "", append(strings.Fields(command), "--config", file, "--log", "loud", "--kafka-sasl-password", "hunter2")...).expect(t, exitUsage,
			file+`:1: expected a known option, but got "broker"; did you mean brokers?`, file+":2: slots: expected a whole number",
			`roles: expected one of scheduler, worker, projector, api, broker, but got "cook"`, "--log: expected one of debug", "--kafka-sasl-password: expected a reference")
	}
	run(t, "", "config", "check", "--kafka-tls-ca", "none.pem", "--kafka-sasl-mechanism", "PLAIN", "--tls-cert", "none.crt", "--kafka-sasl-scope", "x").expect(t, exitUsage,
		"expected kafka-tls to be true with kafka-tls-ca", "expected kafka-sasl-user", "expected kafka-sasl-password", "no kafka-sasl-scope", "tls-cert, tls-key: expected a certificate and its key")
	run(t, "", "config", "check", "--kafka-tls", "--kafka-tls-ca", "none.pem", "--kafka-sasl-mechanism", "OAUTHBEARER").expect(t, exitUsage, "none.pem", "kafka-sasl-token-file or kafka-sasl-token-url")
	run(t, "", "config", "check", "--kafka-sasl-mechanism", "OAUTHBEARER", "--kafka-sasl-token-url", "http://login.example.com/").expect(t, exitUsage, "https")
	run(t, "", "config", "check", "--kafka-sasl-mechanism", "SCRAM-SHA-512", "--kafka-sasl-user", "u", "--kafka-sasl-password", "file:none").expect(t, exitUsage, "kafka-sasl-password", "none")
	run(t, "", "config", "check", "--roles", "worker", "--data", "x").expect(t, exitUsage, "expected the role broker with --data")
	run(t, "", "config", "check", "--database", "file:none.db").expect(t, exitUsage, "database (flag --database)", "a SQLite file is named without file:")
	for option, values := range map[string][]string{
		"listen": {"nope", "", "127.0.0.1:99999"}, "ops-listen": {"9600"}, "kafka": {"127.0.0.1"}, "lease": {"15ms", "-15s", "2h"}, "takeover": {"1ns"},
		"noop": {"Bulk Mail"}, "database": {"postgres://u@host:port/db", "postgres://u@host/db?sslmode=maybe"},
	} {
		for _, value := range values {
			run(t, "", "config", "check", "--"+option, value).expect(t, exitUsage, option)
		}
	}
	run(t, "", "config", "check", "--listen", ":0", "--ops-listen", "[::1]:http", "--lease", "100ms").expect(t, exitOK, "in order")
	run(t, "", "config", "print", "--output", "xml").expect(t, exitUsage, "table, json, yaml")

	t.Setenv("OPSTREAM_SLOT", "1")
	run(t, "", "config", "check").expect(t, exitOK, "in order", "OPSTREAM_SLOT", "OPSTREAM_SLOTS")
	r := run(t, "", "op", "get")
	if strings.Contains(r.err, "OPSTREAM_SLOT") {
		t.Errorf("expected a client to leave the service's variables alone, but got %s", r)
	}
}

// TestVariablesOfTestsAreNobodysMistake: what this project's own tests and tools take from the environment is not warned of.
// TestAddressesThatAreNone: an address of a kind that is not known here is refused before anything takes it for the name of a file, or a
// piece of its password for a host's; and what is said of it does not show the password.
func TestAddressesThatAreNone(t *testing.T) {
	withoutOptions(t)
	for _, address := range []string{
		"mysql://u:hunter2@h/db", "u:hunter2@h/db", "host=h user=u password=hunter2", "postgres:/u:hunter2@h/db", "postgres://u:p@hunter2@h/db",
	} {
		file := writeFile(t, "url", address)
		for _, given := range []string{address, "file:" + file, "env:TABLES"} {
			t.Setenv("TABLES", address)
			t.Setenv("OPSTREAM_DATABASE", given)
			for _, command := range [][]string{{"serve", "--roles", "projector"}, {"config", "check"}, {"verify"}} {
				r := run(t, "", command...)
				r.expect(t, exitUsage, "expected ")
				if strings.Contains(r.out+r.err, "hunter2") {
					t.Errorf("%v with %s: expected the password not to be shown, but got %s", command, given, r)
				}
			}
		}
	}
	for _, address := range []string{"tables.db", "./a@b/tables.db", "postgres://u:p%40q@h/db?application_name=a@b", "postgres://u@h1,h2/db", "COCKROACH://u:p@h/db"} {
		if err := checkAddress(address); err != nil {
			t.Errorf("%s: expected it to be taken, but: %v", address, err)
		}
	}
}

// TestNumbersBelowOne: config check refuses what serve would end with, or would take for something else.
func TestNumbersBelowOne(t *testing.T) {
	withoutOptions(t)
	for _, name := range []string{"slots", "partitions", "backlog-max", "live-max"} {
		for _, number := range []string{"0", "-1"} {
			run(t, "", "config", "check", "--"+name+"="+number).expect(t, exitUsage, "--"+name+": expected a number above 0")
		}
	}
}

// TestAddressesAndPrefixes: what no broker and no topic can be called is refused before anybody asks for it.
func TestAddressesAndPrefixes(t *testing.T) {
	withoutOptions(t)
	for option, bad := range map[string][]string{
		"brokers":      {"https://kafka:9092", "kafka:http", "kafka:0", "kafka:99999", ":9092", "user@kafka:9092", "a kafka:9092", "kafka/1"},
		"topic-prefix": {"a b", "a/b", "ä.", strings.Repeat("x", maxPrefix+1)},
	} {
		for _, value := range bad {
			run(t, "", "config", "check", "--"+option+"="+value).expect(t, exitUsage, "--"+option+": expected")
		}
	}
	for _, good := range []string{"kafka:9092", "10.0.0.1:1", "[::1]:9092", "::1", "kafka", "a.example:9092,b.example:9092"} {
		run(t, "", "config", "check", "--brokers="+good, "--topic-prefix=crm-1.ops_").expect(t, exitOK, "in order")
	}
}

func TestVariablesOfTestsAreNobodysMistake(t *testing.T) {
	withoutOptions(t)
	for _, name := range []string{"OPSTREAM_TEST_BROKERS", "OPSTREAM_SIM_SECONDS", "OPSTREAM_KILL_SEED", "OPSTREAM_REQUIRE_REAL", "OPSTREAM_MEASURE", "OPSTREAM_REAL", "OPSTREAM_OUTAGE_SECONDS", "OPSTREAM_OLD_BINARY", "OPSTREAM_TOOLS_CACHE", "OPSTREAM_SERVICE_HOST", "OPSTREAM_PORT"} {
		t.Setenv(name, "1")
	}
	r := run(t, "", "config", "check")
	r.expect(t, exitOK, "in order")
	if r.err != "" {
		t.Errorf("expected no warning, but got %s", r)
	}
}

// TestClientsTakeTheFile: one file serves the service and those who speak to it.
func TestClientsTakeTheFile(t *testing.T) {
	withoutOptions(t)
	nowhere := freePort(t)
	file := writeFile(t, "opstream.yaml", "brokers: "+nowhere+"\nserver: http://"+nowhere+"\n")
	run(t, "", "deadletter", "list", "--config", file).expect(t, exitUnavailable, nowhere)
	run(t, "", "op", "list", "--config", file).expect(t, exitUnavailable, nowhere)
	t.Setenv("OPSTREAM_CONFIG", file)
	run(t, "", "journal", "tail").expect(t, exitUnavailable, nowhere)
	run(t, "", "op", "list", "--server", "ftp://x").expect(t, exitUsage, "--server")
	wrong := writeFile(t, "opstream.yaml", "server: x\nserve: y\n")
	run(t, "", "op", "list", "--config", wrong).expect(t, exitUsage, wrong+":2")
}

// TestOptionTable holds the table to what the rest relies on.
func TestOptionTable(t *testing.T) {
	seen := map[string]bool{}
	for _, o := range optionTable() {
		if seen[o.Name] || o.Help == "" || strings.HasSuffix(o.Help, ".") || strings.ToLower(o.Name) != o.Name {
			t.Errorf("expected a name of its own in small letters and a sentence without a full stop, but got %+v", o)
		}
		seen[o.Name] = true
	}
	r, err := optionTable().Resolve(settings.Input{Prefix: envPrefix})
	if err != nil {
		t.Errorf("expected the defaults to be in order, but: %v", err)
	}
	for i := range r.Values {
		if o := r.Values[i].Option; o.Secret() && o.Default != "" {
			t.Errorf("expected no default for a secret, but %s has one", o.Name)
		}
	}
}

// section replaces or checks what stands between two markers of deploy/README.md.
func section(t *testing.T, marker, want string) {
	t.Helper()
	path := filepath.Join("..", "..", "deploy", "README.md")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(content), "<!-- "+marker+" -->\n")
	got, after, ok2 := strings.Cut(rest, "<!-- /"+marker+" -->")
	if !ok1 || !ok2 {
		t.Fatalf("expected a section between <!-- %s --> and <!-- /%[1]s --> in %s, but there is none", marker, path)
	}
	if got == want {
		return
	}
	if !*update {
		t.Fatalf("expected the section %s of %s to be what the code says; run go test ./cmd/opstream -run %s -update\ngot\n%s\nwant\n%s", marker, path, t.Name(), got, want)
	}
	if err := os.WriteFile(path, []byte(before+"<!-- "+marker+" -->\n"+want+"<!-- /"+marker+" -->"+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestReadmeHasTheOptions(t *testing.T) {
	var b strings.Builder
	b.WriteString("| option | type | default | roles | |\n| --- | --- | --- | --- | --- |\n")
	for _, o := range optionTable() {
		def, roles := o.Default, strings.Join(o.Roles, ", ")
		if def != "" {
			def = "`" + def + "`"
		}
		if roles == "" {
			roles = "all"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", o.Name, o.Kind, def, roles, o.Help)
	}
	section(t, "options", b.String())
}

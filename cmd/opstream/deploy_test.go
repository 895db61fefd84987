package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// deployFolder holds what runs the service.
const deployFolder = "../../deploy"

func deployFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(deployFolder, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// promisedOptions are the flags, by command, that deploy/promised.txt says will be there.
func promisedOptions(t testing.TB) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for line := range strings.Lines(string(deployFile(t, "promised.txt"))) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			out[line] = true
		}
	}
	return out
}

// commandLine checks a command line of ours against the tree of commands, without running it, and returns its command.
func commandLine(root *cobra.Command, promised map[string]bool, args []string) (*cobra.Command, error) {
	c, rest, err := root.Find(args)
	if err != nil {
		return nil, err
	}
	if c == root {
		return nil, fmt.Errorf("expected a command, but got %q", args)
	}
	name := strings.TrimPrefix(c.CommandPath(), "opstream ")
	for _, arg := range rest {
		if flag, _, _ := strings.Cut(arg, "="); strings.HasPrefix(flag, "--") && promised[name+" "+flag] && c.Flags().Lookup(flag[2:]) == nil {
			c.Flags().String(flag[2:], "", "promised")
		}
	}
	if err := c.ParseFlags(rest); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if c.Args != nil {
		if err := c.Args(c, c.Flags().Args()); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return c, nil
}

// environmentName is the variable that stands for a flag.
func environmentName(flag string) string {
	return "OPSTREAM_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// environment checks that every variable of ours means something to the command.
func environment(c *cobra.Command, promised map[string]bool, names []string) error {
	name := strings.TrimPrefix(c.CommandPath(), "opstream ")
	known := map[string]bool{}
	c.Flags().VisitAll(func(f *pflag.Flag) { known[environmentName(f.Name)] = true })
	for option := range promised {
		if flag, ok := strings.CutPrefix(option, name+" --"); ok {
			known[environmentName(flag)] = true
		}
	}
	// The health check runs in the same container.
	known["OPSTREAM_OPS_LISTEN"] = true
	known["OPSTREAM_LOG"] = true
	for _, n := range names {
		if strings.HasPrefix(n, "OPSTREAM_") && !known[n] {
			return fmt.Errorf("%s has no option for %s", name, n)
		}
	}
	return nil
}

// compose is as much of the Compose specification as is used here; anything else is refused.
type compose struct {
	Name     string                    `json:"name"`
	Services map[string]composeService `json:"services"`
	Networks map[string]struct{}       `json:"networks"`
	Volumes  map[string]struct{}       `json:"volumes"`
}

type composeService struct {
	Image string `json:"image"`
	Build *struct {
		Context    string `json:"context"`
		Dockerfile string `json:"dockerfile"`
	} `json:"build"`
	Hostname        string            `json:"hostname"`
	Restart         string            `json:"restart"`
	User            string            `json:"user"`
	ReadOnly        bool              `json:"read_only"`
	CapDrop         []string          `json:"cap_drop"`
	SecurityOpt     []string          `json:"security_opt"`
	StopGracePeriod string            `json:"stop_grace_period"`
	Networks        []string          `json:"networks"`
	Entrypoint      []string          `json:"entrypoint"`
	Command         composeCommand    `json:"command"`
	Environment     map[string]string `json:"environment"`
	Ports           []string          `json:"ports"`
	Volumes         []string          `json:"volumes"`
	DependsOn       map[string]struct {
		Condition string `json:"condition"`
	} `json:"depends_on"`
	Healthcheck *struct {
		Test        []string `json:"test"`
		Interval    string   `json:"interval"`
		Timeout     string   `json:"timeout"`
		StartPeriod string   `json:"start_period"`
		Retries     int      `json:"retries"`
		Disable     bool     `json:"disable"`
	} `json:"healthcheck"`
	Deploy struct {
		Replicas  int `json:"replicas"`
		Resources struct {
			Limits struct {
				CPUs   string `json:"cpus"`
				Memory string `json:"memory"`
			} `json:"limits"`
		} `json:"resources"`
	} `json:"deploy"`
}

// composeCommand is a line or a list of words.
type composeCommand []string

// UnmarshalJSON takes either form.
func (c *composeCommand) UnmarshalJSON(data []byte) error {
	if data[0] == '[' {
		return json.Unmarshal(data, (*[]string)(c))
	}
	var line string
	err := json.Unmarshal(data, &line)
	*c = strings.Fields(line)
	return err
}

var composeVariable = regexp.MustCompile(`\$\{([A-Z_]+):-([^}]*)\}`)

// readCompose merges files as docker compose does with several -f, as far as they use it: mappings are merged, everything
// else is replaced.
func readCompose(names ...string) (*compose, error) {
	whole := map[string]any{}
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(deployFolder, name))
		if err != nil {
			return nil, err
		}
		data = composeVariable.ReplaceAll(data, []byte("$2"))
		if bytes.Contains(data, []byte("$")) {
			return nil, fmt.Errorf("%s: expected every variable to have a default, as in ${NAME:-default}", name)
		}
		var one map[string]any
		if err := yaml.Unmarshal(data, &one); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		merge(whole, one)
	}
	maps.DeleteFunc(whole, func(key string, _ any) bool { return strings.HasPrefix(key, "x-") })
	data, err := json.Marshal(whole)
	if err != nil {
		return nil, err
	}
	var c compose
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	return &c, decoder.Decode(&c)
}

func merge(into, from map[string]any) {
	for key, v := range from {
		a, ok1 := into[key].(map[string]any)
		b, ok2 := v.(map[string]any)
		if ok1 && ok2 {
			merge(a, b)
			continue
		}
		into[key] = v
	}
}

// check returns everything that is wrong.
func (c *compose) check(promised map[string]bool) []error {
	var faults []error
	fault := func(service, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s: %w", service, fmt.Errorf(format, args...)))
	}
	usedVolumes, usedPorts := map[string]string{}, map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(c.Services)) {
		s := c.Services[name]
		ours := strings.HasPrefix(s.Image, "opstream:")
		ends := strings.HasPrefix(s.Restart, "on-failure")
		switch {
		case s.Image == "" || strings.HasSuffix(s.Image, ":latest") || !strings.Contains(s.Image, ":"):
			fault(name, "expected an image with a version, but got %q", s.Image)
		case !ends && s.Restart != "unless-stopped":
			fault(name, "expected it to be started again when it ends, but restart is %q", s.Restart)
		case s.Deploy.Resources.Limits.CPUs == "" || s.Deploy.Resources.Limits.Memory == "":
			fault(name, "expected limits of CPU and memory")
		}
		healthy := s.Healthcheck != nil && !s.Healthcheck.Disable
		if healthy == ends {
			fault(name, "expected a health check for what goes on, and none for what ends")
		}
		if healthy {
			if len(s.Healthcheck.Test) < 2 || s.Healthcheck.Test[0] != "CMD" || s.Healthcheck.Retries == 0 {
				fault(name, "expected a health check without a shell, with retries, but got %q", s.Healthcheck.Test)
			}
			for _, d := range []string{s.Healthcheck.Interval, s.Healthcheck.Timeout, s.Healthcheck.StartPeriod} {
				if _, err := time.ParseDuration(d); err != nil {
					fault(name, "health check: %v", err)
				}
			}
		}
		for _, n := range s.Networks {
			if _, ok := c.Networks[n]; !ok {
				fault(name, "there is no network %s", n)
			}
		}
		for _, v := range s.Volumes {
			volume, path, _ := strings.Cut(v, ":")
			if _, ok := c.Volumes[volume]; !ok || !strings.HasPrefix(path, "/") {
				fault(name, "expected a volume that is declared and a path, but got %q", v)
			}
			if other := usedVolumes[volume]; other != "" {
				fault(name, "%s has the volume %s already", other, volume)
			}
			usedVolumes[volume] = name
		}
		for _, p := range s.Ports {
			part := strings.Split(p, ":")
			if len(part) != 3 || part[0] != "127.0.0.1" || usedPorts[part[1]] != "" {
				fault(name, "expected a port of its own on this host only, but got %q", p)
				continue
			}
			usedPorts[part[1]] = name
			if listen := s.Environment["OPSTREAM_LISTEN"]; ours && listen != "0.0.0.0:"+part[2] {
				fault(name, "publishes port %s, but listens at %q", part[2], listen)
			}
		}
		for on, how := range s.DependsOn {
			other, ok := c.Services[on]
			otherEnds := strings.HasPrefix(other.Restart, "on-failure")
			switch {
			case !ok:
				fault(name, "depends on %s, which is not there", on)
			case how.Condition == "service_completed_successfully" && !otherEnds:
				fault(name, "waits for the end of %s, which goes on", on)
			case how.Condition == "service_healthy" && (other.Healthcheck == nil || other.Healthcheck.Disable):
				fault(name, "waits for %s to be healthy, which has no health check", on)
			case how.Condition != "service_completed_successfully" && otherEnds:
				fault(name, "expected to wait for the end of %s, but waits for %q", on, how.Condition)
			case !slices.Contains([]string{"service_started", "service_healthy", "service_completed_successfully"}, how.Condition):
				fault(name, "no condition is called %q", how.Condition)
			}
			if c.reaches(on, name, map[string]bool{}) {
				fault(name, "depends on itself over %s", on)
			}
		}
		for key, value := range s.Environment {
			if secret := regexp.MustCompile(`PASSWORD|SECRET|TOKEN|_KEY$`); secret.MatchString(key) && value != "" {
				fault(name, "expected no secret, but %s has a value", key)
			}
		}
		if ours {
			c.checkOurs(name, promised, fault)
		}
	}
	for volume := range c.Volumes {
		if usedVolumes[volume] == "" {
			fault("volumes", "nobody uses %s", volume)
		}
	}
	c.checkKafka(fault)
	return faults
}

func (c *compose) reaches(from, to string, seen map[string]bool) bool {
	if from == to {
		return true
	}
	if seen[from] {
		return false
	}
	seen[from] = true
	for on := range c.Services[from].DependsOn {
		if c.reaches(on, to, seen) {
			return true
		}
	}
	return false
}

func (c *compose) checkOurs(name string, promised map[string]bool, fault func(string, string, ...any)) {
	s := c.Services[name]
	if s.Build == nil || s.Build.Context != ".." || s.Build.Dockerfile != "deploy/Dockerfile" {
		fault(name, "expected to be built from deploy/Dockerfile, but got %+v", s.Build)
	}
	if uid, _, _ := strings.Cut(s.User, ":"); uid == "" || uid == "0" || !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
		fault(name, "expected a user that is not root, a file system that is not written and no capabilities")
	}
	if d, err := time.ParseDuration(s.StopGracePeriod); err != nil || d < 20*time.Second {
		fault(name, "expected a stop to have 20s or more, but got %q", s.StopGracePeriod)
	}
	command, err := commandLine(newRoot(), promised, s.Command)
	if err != nil {
		fault(name, "%v", err)
		return
	}
	if err := environment(command, promised, slices.Collect(maps.Keys(s.Environment))); err != nil {
		fault(name, "%v", err)
	}
	if s.Healthcheck != nil && !s.Healthcheck.Disable {
		if s.Environment["OPSTREAM_OPS_LISTEN"] == "" {
			fault(name, "has a health check, but no OPSTREAM_OPS_LISTEN")
		}
		if test := s.Healthcheck.Test; len(test) < 3 || test[1] != "/opstream" {
			fault(name, "expected the health check to be this program, but got %q", test)
		} else if _, err := commandLine(newRoot(), promised, test[2:]); err != nil {
			fault(name, "health check: %v", err)
		}
	}
	if i := slices.Index(s.Command, "--roles"); s.Command[0] == "serve" {
		if i < 0 {
			fault(name, "expected --roles and its value as two words, but got %q", s.Command)
			return
		}
		for r := range strings.SplitSeq(s.Command[i+1], ",") {
			if !slices.Contains(allRoles, r) {
				fault(name, "there is no role %s", r)
			}
			if (r == roleProjector || r == roleAPI) != (s.Environment["OPSTREAM_DATABASE"] != "") {
				fault(name, "expected a database for the roles projector and api, and for no other")
			}
		}
	}
	var hosts []string
	hosts = append(hosts, strings.Split(s.Environment["OPSTREAM_BROKERS"], ",")...)
	if database := s.Environment["OPSTREAM_DATABASE"]; database != "" {
		// url.Parse takes one port only.
		_, rest, _ := strings.Cut(database, "@")
		list, _, _ := strings.Cut(rest, "/")
		hosts = append(hosts, strings.Split(list, ",")...)
		if u, err := url.Parse(strings.Replace(database, list, "host", 1)); err != nil || u.Scheme != "postgres" {
			fault(name, "expected the URL of a database, but: %v", err)
		} else if _, has := u.User.Password(); has {
			fault(name, "expected no password in OPSTREAM_DATABASE")
		}
	}
	for _, at := range hosts {
		host, port, err := net.SplitHostPort(at)
		to, ok := c.Services[host]
		if err != nil || !ok {
			fault(name, "speaks to %s, which is not there", at)
			continue
		}
		if listens := to.Environment["KAFKA_ADVERTISED_LISTENERS"]; listens != "" && listens != "PLAINTEXT://"+at {
			fault(name, "speaks to %s, which advertises %s", at, listens)
		} else if listens == "" && port != "26257" {
			fault(name, "speaks to %s, where no database listens", at)
		}
	}
}

// checkKafka holds the brokers to one another.
func (c *compose) checkKafka(fault func(string, string, ...any)) {
	var brokers, voters []string
	ids := map[string]string{}
	for name, s := range c.Services {
		if id := s.Environment["KAFKA_NODE_ID"]; id != "" {
			brokers = append(brokers, id+"@"+name+":9093")
			if ids[id] != "" {
				fault(name, "%s has the node id %s already", ids[id], id)
			}
			ids[id] = name
			voters = strings.Split(s.Environment["KAFKA_CONTROLLER_QUORUM_VOTERS"], ",")
			if n, err := strconv.Atoi(s.Environment["KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR"]); err != nil || n != len(voters) {
				fault(name, "expected the groups' topic to have as many copies as there are brokers, but got %d", n)
			}
			if s.Environment["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] != "false" {
				fault(name, "expected topics to be made by opstream topics apply alone")
			}
		}
	}
	slices.Sort(brokers)
	slices.Sort(voters)
	if len(brokers) == 0 || !slices.Equal(brokers, voters) {
		fault("kafka", "expected the brokers %v to vote, but the voters are %v", brokers, voters)
	}
}

func TestCompose(t *testing.T) {
	t.Parallel()
	promised := promisedOptions(t)
	for _, files := range [][]string{{"compose.yaml"}, {"compose.yaml", "compose.kafka3.yaml"}} {
		c, err := readCompose(files...)
		if err != nil {
			t.Fatal(err)
		}
		for _, fault := range c.check(promised) {
			t.Errorf("%v: %v", files, fault)
		}
		for _, role := range allRoles {
			if _, ok := c.Services[role]; !ok {
				t.Errorf("%v: expected a service for the role %s", files, role)
			}
		}
		if c.Services["scheduler"].Deploy.Replicas != 2 || c.Services["worker"].Deploy.Replicas != 2 {
			t.Errorf("%v: expected two schedulers and two workers", files)
		}
	}
}

// TestComposeCheckSees spoils the file in ways that the check must see.
func TestComposeCheckSees(t *testing.T) {
	t.Parallel()
	promised := promisedOptions(t)
	for name, tt := range map[string]struct {
		spoil func(*compose)
		want  string
	}{
		"a flag that there is not":    {edit("api", func(s *composeService) { s.Command = append(s.Command, "--no-such-flag") }), "unknown flag: --no-such-flag"},
		"a command that there is not": {edit("topics", func(s *composeService) { s.Command = []string{"topic", "apply"} }), "expected a command"},
		"a variable that means nothing": {edit("worker", func(s *composeService) {
			s.Environment = map[string]string{"OPSTREAM_BROKERS": "kafka-1:9092", "OPSTREAM_OPS_LISTEN": "x", "OPSTREAM_SLOT": "3"}
		}), "no option for OPSTREAM_SLOT"},
		"a dependency that there is not": {func(c *compose) { delete(c.Services, "topics") }, "depends on topics, which is not there"},
		"a volume that there is not":     {func(c *compose) { delete(c.Volumes, "roach-2") }, "expected a volume that is declared"},
		"a port for everybody":           {edit("api", func(s *composeService) { s.Ports = []string{"8080:8080"} }), "on this host only"},
		"root":                           {edit("projector", func(s *composeService) { s.User = "0:0" }), "not root"},
		"no limits":                      {edit("kafka-1", func(s *composeService) { s.Deploy.Resources.Limits.Memory = "" }), "limits"},
		"a broker that is not there":     {edit("scheduler", func(s *composeService) { s.Environment = map[string]string{"OPSTREAM_BROKERS": "kafka-9:9092"} }), "speaks to kafka-9:9092"},
		"a role that is not there":       {edit("scheduler", func(s *composeService) { s.Command = []string{"serve", "--roles", "king"} }), "no role king"},
		"a password":                     {edit("roach-1", func(s *composeService) { s.Environment = map[string]string{"ROACH_PASSWORD": "x"} }), "no secret"},
	} {
		c, err := readCompose("compose.yaml")
		if err != nil {
			t.Fatal(err)
		}
		tt.spoil(c)
		if faults := fmt.Sprint(c.check(promised)); !strings.Contains(faults, tt.want) {
			t.Errorf("%s: expected %q, but got %s", name, tt.want, faults)
		}
	}
}

func edit(service string, f func(*composeService)) func(*compose) {
	return func(c *compose) {
		s := c.Services[service]
		f(&s)
		c.Services[service] = s
	}
}

// TestDockerfile holds the image to what it promises, as far as that shows without building it.
func TestDockerfile(t *testing.T) {
	t.Parallel()
	text := string(deployFile(t, "Dockerfile"))
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(string(mod))[1]
	for _, want := range []string{
		"FROM golang:" + version + " AS build", "CGO_ENABLED=0", "-tags timetzdata", "-X main.version=${VERSION}",
		"\nFROM scratch\n", "/etc/ssl/certs/ca-certificates.crt", "\nUSER 65532:65532\n", `ENTRYPOINT ["/opstream"]`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("expected %q in deploy/Dockerfile, but it is not there", want)
		}
	}
	sent := strings.Split(string(deployFile(t, "Dockerfile.dockerignore")), "\n")
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if .Module}}{{if .Module.Main}}{{.ImportPath}}{{end}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for path := range strings.Lines(string(out)) {
		top, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(path), "github.com/opstream/opstream/"), "/")
		if top != "" && !slices.Contains(sent, "!"+top) {
			t.Errorf("expected deploy/Dockerfile.dockerignore to let %s through, which the program is built from", top)
		}
	}
}

// TestPromisedOptions tells which lines of deploy/promised.txt have been kept.
func TestPromisedOptions(t *testing.T) {
	t.Parallel()
	for option := range promisedOptions(t) {
		name, flag, ok := strings.Cut(option, " --")
		if !ok {
			t.Errorf("deploy/promised.txt: expected a command and a flag, but got %q", option)
			continue
		}
		c, rest, err := newRoot().Find(strings.Fields(name))
		if err != nil || len(rest) > 0 {
			t.Errorf("deploy/promised.txt: there is no command %s", name)
			continue
		}
		if c.Flags().Lookup(flag) != nil {
			t.Logf("%s is there now: take its line out of deploy/promised.txt", option)
		}
	}
}

var fenced = regexp.MustCompile("(?s)```sh\n(.*?)```")

// TestCommandsInDocuments makes sure that people who follow a document at night type commands that there are.
func TestCommandsInDocuments(t *testing.T) {
	t.Parallel()
	promised := promisedOptions(t)
	for _, name := range []string{"README.md", "runbooks.md"} {
		text := string(deployFile(t, name))
		var lines []string
		for _, block := range fenced.FindAllStringSubmatch(text, -1) {
			lines = append(lines, strings.Split(block[1], "\n")...)
		}
		for _, m := range regexp.MustCompile("`(opstream [^`]*)`").FindAllStringSubmatch(text, -1) {
			if !strings.Contains(m[1], "…") {
				lines = append(lines, m[1])
			}
		}
		seen := 0
		for _, line := range lines {
			command, ours := strings.CutPrefix(line, "opstream ")
			if !ours {
				continue
			}
			seen++
			command, _, _ = strings.Cut(command, " #")
			command, _, _ = strings.Cut(command, " >")
			command, _, _ = strings.Cut(command, " |")
			args := shellWords(command)
			// In the middle of a sentence a command may stand without its arguments.
			c, err := commandLine(newRoot(), promised, args)
			if err != nil && c == nil && !strings.Contains(err.Error(), "arg(s)") {
				t.Errorf("%s: opstream %s: %v", name, command, err)
			}
		}
		if seen == 0 {
			t.Errorf("%s: expected commands, but found none", name)
		}
	}
}

// shellWords splits a command line; quotes keep words together.
func shellWords(line string) []string {
	var out []string
	for i, part := range strings.Split(line, `"`) {
		if i%2 == 1 {
			out = append(out, part)
		} else {
			out = append(out, strings.Fields(part)...)
		}
	}
	return out
}

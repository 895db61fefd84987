package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/optype"
	"github.com/opstream/opstream/internal/bearer"
	"github.com/opstream/opstream/internal/settings"
	"github.com/opstream/opstream/projections/cockroach"
	"github.com/opstream/opstream/schemas"
)

// envPrefix begins the names of the options in the environment.
const envPrefix = "OPSTREAM_"

// optionTable is every option of the service and of what speaks to it. File keys, variables of the environment, flags, help and
// the table in deploy/README.md follow from it.
func optionTable() settings.Table {
	broker, worker, api := []string{roleBroker}, []string{roleWorker}, []string{roleAPI}
	client := []string{"client"}
	return settings.Table{
		{Name: "roles", Kind: settings.List, Help: "what this process does: " + strings.Join(serveRoles, ", "), Check: oneOf(serveRoles...)},
		{Name: "brokers", Kind: settings.List, Default: defaultBroker, Help: "some of Kafka's brokers, host:port", Check: brokerAddress},
		{Name: "topic-prefix", Default: schemas.DefaultPrefix, Help: "before the name of every topic", Check: topicPrefix},
		{Name: "create-topics", Kind: settings.Switch, Default: "false", Help: "create the topics that are missing"},
		{Name: "partitions", Kind: settings.Number, Default: fmt.Sprint(schemas.DefaultPartitions), Help: fmt.Sprintf("partitions of topics that are created (embedded broker: of a new data folder, %d unless given)", devPartitions), Check: atLeastOne},
		{Name: "log", Default: "info", Help: "debug, info, warn or error", Check: oneOf("debug", "info", "warn", "error")},
		{Name: "ops-listen", Help: "address for /livez, /readyz and /metrics, such as 0.0.0.0:9600; empty for none", Check: emptyOr(listenAddress)},

		{Name: "kafka-tls", Kind: settings.Switch, Default: "false", Help: "speak TLS with the brokers"},
		{Name: "kafka-tls-ca", Help: "PEM file of the authorities that sign the brokers' certificates (default: the system's)"},
		{Name: "kafka-tls-cert", Help: "PEM file of this client's certificate, for brokers that ask for one"},
		{Name: "kafka-tls-key", Help: "PEM file of the certificate's key"},
		{Name: "kafka-tls-server-name", Help: "name that the brokers' certificates bear (default: the broker's host name)"},
		{Name: "kafka-sasl-mechanism", Help: "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER; empty for no SASL", Check: oneOf("", saslPlain, saslScram256, saslScram512, saslOAuth)},
		{Name: "kafka-sasl-user", Help: "user name for PLAIN and SCRAM"},
		{Name: "kafka-sasl-password", Kind: settings.Password, Help: "password for PLAIN and SCRAM; read anew for each authentication"},
		{Name: "kafka-sasl-token-file", Help: "OAUTHBEARER: file with the token; read anew for each authentication"},
		{Name: "kafka-sasl-token-url", Help: "OAUTHBEARER: token endpoint for the client credentials grant", Check: emptyOr(bearer.CheckURL)},
		{Name: "kafka-sasl-token-ca", Help: "PEM file of the authorities that sign the token endpoint's certificate (default: the system's)"},
		{Name: "kafka-sasl-client-id", Help: "OAUTHBEARER: client id at the token endpoint"},
		{Name: "kafka-sasl-client-secret", Kind: settings.Password, Help: "OAUTHBEARER: client secret at the token endpoint"},
		{Name: "kafka-sasl-scope", Help: "OAUTHBEARER: scope to ask the token endpoint for"},

		{Name: "data", Roles: broker, Help: "folder for the log; created when missing"},
		{Name: "kafka", Default: defaultBroker, Roles: broker, Help: "loopback address at which the broker speaks Kafka's protocol", Check: listenAddress},
		{Name: "sync", Kind: settings.Switch, Default: "false", Roles: []string{roleBroker, roleProjector}, Help: "write every append through to the disk: survives a power cut, costs speed"},
		{Name: "database", Kind: settings.Address, Roles: []string{roleProjector, roleAPI}, Help: "SQLite file or URL (postgres://…, cockroach://…) of the tables; empty keeps them in memory, or in --data"},
		{Name: "listen", Default: defaultListen, Roles: api, Help: "address of the API and its page", Check: listenAddress},
		{Name: "tls-cert", Roles: api, Help: "PEM file of the API's certificate; the API then speaks https"},
		{Name: "tls-key", Roles: api, Help: "PEM file of the key of the API's certificate"},
		{Name: "noop", Kind: settings.List, Roles: worker, Help: "more operation types that the handler noop serves", Check: typeName},
		{Name: "webhook-private", Kind: settings.Switch, Default: "false", Roles: worker, Help: "let webhooks call private addresses and plain http"},
		{Name: "slots", Kind: settings.Number, Default: "64", Roles: worker, Help: "handlers that run at once", Check: atLeastOne},
		{Name: "lease", Kind: settings.Duration, Default: defaultLease.String(), Roles: []string{roleScheduler, roleWorker}, Help: "a worker that is silent for longer has lost its attempts", Check: leaseLength},
		{Name: "takeover", Kind: settings.Duration, Default: "3s", Roles: []string{roleScheduler}, Help: "a scheduler that is silent for longer loses its partitions; Kafka's group.min.session.timeout.ms must allow it, or it is doubled", Check: longEnough},
		{Name: "backlog-max", Kind: settings.Number, Default: "50000", Roles: []string{roleScheduler}, Help: "ready operations of a partition above which requests wait on the log", Check: atLeastOne},
		{Name: "live-max", Kind: settings.Number, Default: "1000000", Roles: []string{roleScheduler}, Help: "operations of a partition that have not ended, above which requests are refused", Check: atLeastOne},

		{Name: "server", Default: defaultServer, Roles: client, Help: "address of the service's API"},
		{Name: "server-ca", Roles: client, Help: "PEM file of the authorities that sign the API's certificate (default: the system's)"},
	}
}

func oneOf(names ...string) func(string) error {
	return func(text string) error {
		if slices.Contains(names, text) {
			return nil
		}
		shown := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == "" })
		return fmt.Errorf("expected one of %s, but got %q", strings.Join(shown, ", "), text)
	}
}

func emptyOr(check func(string) error) func(string) error {
	return func(text string) error {
		if text == "" {
			return nil
		}
		return check(text)
	}
}

// atLeastOne checks a whole number; what is none is refused by the kind.
func atLeastOne(text string) error {
	if n, err := strconv.ParseInt(text, 0, 32); err == nil && n < 1 {
		return fmt.Errorf("expected a number above 0, but got %q", text)
	}
	return nil
}

// brokerAddress checks what a Kafka client takes for a broker: a name or an address, with a port unless it is 9092.
func brokerAddress(text string) error {
	host, port, err := net.SplitHostPort(text)
	if err != nil { // no port, most likely
		host, port = text, "9092"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" || strings.ContainsAny(host, "/@ \t\r\n") {
		return fmt.Errorf("expected host:port, such as kafka-1:9092, but got %q", text)
	}
	return nil
}

// topicPrefix checks what the names of Kafka's topics may begin with (org.apache.kafka.common.internals.Topic).
func topicPrefix(text string) error {
	for _, r := range text {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r)) {
			return fmt.Errorf("expected letters, digits, dots, underscores and hyphens, but got %q", text)
		}
	}
	if len(text) > maxPrefix {
		return fmt.Errorf("expected at most %d characters, but got %d", maxPrefix, len(text))
	}
	return nil
}

// maxPrefix leaves room for the names of topics, which have at most 249 characters.
const maxPrefix = 200

// shortest is what a lease may be. In less, a heartbeat does not come around: workers would begin one session after the other.
const shortest = 100 * time.Millisecond

func longEnough(text string) error {
	if d, err := time.ParseDuration(text); err != nil || d < shortest {
		return fmt.Errorf("expected a duration of at least %s, but got %q", shortest, text)
	}
	return nil
}

func leaseLength(text string) error {
	if d, err := time.ParseDuration(text); err == nil && d > schemas.MaxLease {
		return fmt.Errorf("expected a duration of at most %s, but got %q", schemas.MaxLease, text)
	}
	return longEnough(text)
}

// listenAddress checks what can be listened at: a port, and an address before it unless it is every one of the host.
func listenAddress(text string) error {
	_, port, err := net.SplitHostPort(text)
	if err == nil {
		_, err = net.DefaultResolver.LookupPort(context.Background(), "tcp", port)
	}
	if err != nil {
		return fmt.Errorf("expected an address and a port to listen at, such as %s, but got %q", defaultListen, text)
	}
	return nil
}

func typeName(text string) error {
	if !optype.ValidName(text) {
		return fmt.Errorf("expected names of operation types, such as bulk-email, but got %q, which no operation can have", text)
	}
	return nil
}

// options are those of one command: flags, which [options.resolve] brings together with the file and the environment.
type options struct {
	names    []string
	defaults map[string]string // where the command's differ from the table's
	targets  map[string]any    // pointers to what takes the values
	file     string
	result   *settings.Result
}

// addOptions gives a command flags for the options that have a target.
func addOptions(c *cobra.Command, defaults map[string]string, targets map[string]any) *options {
	o := &options{defaults: defaults, targets: targets}
	fl := c.Flags()
	table := optionTable()
	for i := range table {
		option := &table[i]
		if _, wanted := targets[option.Name]; !wanted {
			continue
		}
		o.names = append(o.names, option.Name)
		def := option.Default
		if other, ok := defaults[option.Name]; ok {
			def = other
		}
		help := option.Help
		if c.Name() != "dev" && len(option.Roles) > 0 && option.Roles[0] != "client" {
			help += " (" + strings.Join(option.Roles, ", ") + ")"
		}
		f := fl.VarPF(&optionFlag{option: option, def: def}, option.Name, "", help)
		if option.Kind == settings.Switch {
			f.NoOptDefVal = "true"
		}
	}
	fl.StringVar(&o.file, "config", "", "YAML file with options, see opstream config --help (environment: OPSTREAM_CONFIG)")
	return o
}

// optionFlag is the value of a flag as it was given; what it means, and whether it is right, is found out with all others.
type optionFlag struct {
	option *settings.Option
	def    string
	given  []string
}

// String is the default, as help shows it.
func (f *optionFlag) String() string {
	if f.option == nil || f.def == "" || f.option.Kind != settings.List {
		return f.def
	}
	return "[" + f.def + "]"
}

// Set takes one occurrence of the flag.
func (f *optionFlag) Set(text string) error {
	f.given = append(f.given, text)
	return nil
}

// Type is what help shows.
func (f *optionFlag) Type() string { return f.option.Kind.String() }

// ignoredVariables begin like options and are none: those of tests and tools.
func ignoredVariables() []string {
	return []string{"OPSTREAM_CONFIG", "OPSTREAM_TEST_*", "OPSTREAM_SIM_*", "OPSTREAM_KILL_*", "OPSTREAM_REQUIRE_*", "OPSTREAM_MEASURE", "OPSTREAM_REAL", "OPSTREAM_OUTAGE_*", "OPSTREAM_OVERLOAD_*", "OPSTREAM_OLD_BINARY", "OPSTREAM_LOGGED_*", "OPSTREAM_TOOLS_*", "OPSTREAM_EMBEDDED_*", "OPSTREAM_WORKER_*"}
}

// resolve finds the values and gives them to their targets. The error, of a wrong command line, tells of everything that is wrong.
func (o *options) resolve(cmd *cobra.Command) error {
	in := settings.Input{
		Prefix: envPrefix, Environ: os.Environ(), File: o.file, Defaults: o.defaults, Flags: map[string][]string{},
		Used:    func(name string) bool { return slices.Contains(o.names, name) },
		Ignored: ignoredVariables(),
	}
	if in.File == "" && !cmd.Flags().Changed("config") {
		in.File = os.Getenv("OPSTREAM_CONFIG")
	}
	for _, name := range o.names {
		if f, ok := cmd.Flags().Lookup(name).Value.(*optionFlag); ok && f.given != nil {
			in.Flags[name] = f.given
		}
	}
	var err error
	if o.result, err = optionTable().Resolve(in); err != nil {
		return &exitError{exitUsage, err}
	}
	var faults []error
	for name, to := range o.targets {
		if err := assign(to, o.result.Get(name)); err != nil {
			faults = append(faults, err)
		}
	}
	if err := errors.Join(faults...); err != nil {
		return &exitError{exitUsage, err}
	}
	return nil
}

// assign gives a checked value to a pointer.
func assign(to any, v *settings.Value) (err error) {
	text := v.Text()
	switch to := to.(type) {
	case *string:
		if *to = text; v.Option.Kind == settings.Address {
			*to, err = address(text)
		}
	case *settings.Secret:
		*to = settings.Secret(text)
	case *[]string:
		*to = v.Values
	case *bool:
		*to, err = strconv.ParseBool(text)
	case *int:
		var n int64
		n, err = strconv.ParseInt(text, 0, 32)
		*to = int(n)
	case *int32:
		var n int64
		n, err = strconv.ParseInt(text, 0, 32)
		*to = int32(n)
	case *time.Duration:
		*to, err = time.ParseDuration(text)
	default:
		// invariant: the targets are pointers to these types, in this package
		panic(fmt.Sprintf("option %s has a target of type %T", v.Option.Name, to))
	}
	if err != nil {
		return fmt.Errorf("%s (%s): %w", v.Option.Name, v.Source, err)
	}
	return nil
}

// address reads where the database is. A reference must lead to the address of a server: who writes file: before the name of
// SQLite's own file must not have it read as a secret.
func address(text string) (string, error) {
	ref := settings.Secret(text)
	if ref.Reference() == "" {
		return text, checkAddress(text)
	}
	value, err := ref.Read()
	if err == nil && !strings.Contains(value, "://") {
		err = errors.New("expected what it names to hold an address such as postgres://user:password@host/db, but it holds something else")
	}
	if err == nil {
		err = checkAddress(value)
	}
	if err != nil {
		return "", fmt.Errorf("%w; a SQLite file is named without file: before it", err)
	}
	return value, nil
}

// checkAddress refuses what would be taken for something else than it is, and would then show its password: a URL or a connection string
// that nobody here understands would be a file's name, in errors and on the disk, and what follows the first of two @ a host's, in the log.
// So the text is not quoted.
func checkAddress(text string) error {
	_, rest, isURL := strings.Cut(text, "://")
	switch {
	case cockroach.IsURL(text):
		if i := strings.IndexAny(rest, "/?"); i >= 0 {
			rest = rest[:i]
		}
		if strings.Count(rest, "@") > 1 {
			return errors.New("expected one @ before the host, but there are more; write one that belongs to the user or the password as %40")
		}
		return cockroach.CheckURL(text)
	case isURL:
		return errors.New("expected the URL of a database to begin with postgres:// or cockroach://, but it begins with something else")
	case optionTable().Find("database").Shown([]string{text}) != text:
		return errors.New("expected a SQLite file, or a URL such as postgres://user:password@host/db, but got what looks like another address with a password")
	}
	return nil
}

// given says whether anything but the default gives the option.
func (o *options) given(name string) bool {
	return o.result.Get(name).Source.From != settings.FromDefault
}

// warn tells of variables that look like options. They are not refused: the environment belongs to others as well, who may have
// their own reasons for names that begin like ours, and a service that does not start for a variable which it does not need helps nobody.
func (o *options) warn(log *slog.Logger) {
	for _, text := range o.result.Unknown {
		log.Warn("a variable of the environment is not used", "why", text)
	}
}

// serveFlags are the options of serve.
type serveFlags struct {
	*options
	cfg                  serviceConfig
	broker               devFlags
	prefix, logLevel     string
	noopTypes            []string
	create, allowPrivate bool
	partitions           int32
	security             kafkaSecurity
	clientOptions        []kgo.Opt // that follow from security; set by check
}

func (f *serveFlags) add(c *cobra.Command) {
	targets := f.security.targets()
	for name, to := range map[string]any{
		"roles": &f.cfg.roles, "brokers": &f.cfg.brokers, "topic-prefix": &f.prefix, "create-topics": &f.create, "partitions": &f.partitions,
		"log": &f.logLevel, "ops-listen": &f.cfg.opsListen, "data": &f.broker.data, "kafka": &f.broker.kafka, "sync": &f.cfg.sync,
		"database": &f.cfg.database, "listen": &f.cfg.listen, "tls-cert": &f.cfg.tlsCert, "tls-key": &f.cfg.tlsKey, "noop": &f.noopTypes,
		"webhook-private": &f.allowPrivate, "slots": &f.cfg.slots, "lease": &f.cfg.lease,
		"takeover": &f.cfg.takeover, "backlog-max": &f.cfg.backlogMax, "live-max": &f.cfg.liveMax,
	} {
		targets[name] = to
	}
	f.options = addOptions(c, nil, targets)
}

// check reports, at once, what each option alone does not show: those that belong together, and files that cannot be read.
func (f *serveFlags) check(log *slog.Logger) error {
	var secureErr error
	f.clientOptions, secureErr = f.security.options(log)
	return usageOf(errors.Join(secureErr, checkPair(f.cfg.tlsCert, f.cfg.tlsKey, log)))
}

// usageOf is err as that of a wrong command line.
func usageOf(err error) error {
	var exit *exitError
	if err == nil || errors.As(err, &exit) {
		return err
	}
	return &exitError{exitUsage, err}
}

func newConfig() *cobra.Command {
	c := &cobra.Command{
		Use:   "config",
		Short: "Show the configuration as it takes effect, and check it",
		Long: `Every option of opstream serve and opstream dev can be given in three places. A later
one wins:

  a file          YAML, named by --config or OPSTREAM_CONFIG; keys are the flags' names
  the environment OPSTREAM_ and the flag's name in capitals: --kafka-tls is OPSTREAM_KAFKA_TLS
  the flag

One file may serve all processes of an installation: options of roles that a process does
not have change nothing there. A key that is not known is refused, with its line. A variable
that is not known is warned of, since the environment belongs to others, too; one that is
empty counts as not given.

Secrets are given as references: file:/path for what a file holds (one line end at its end
does not count), env:NAME for what another variable holds. They are never printed.

The commands that read Kafka (journal, deadletter, verify, bench) and the API (op) take
the options for that from the same places.`,
		Example: `  opstream config print --config opstream.yaml
  OPSTREAM_LEASE=30s opstream config print --output json | jq -r '.[] | select(.from != "default")'
  opstream config check --config opstream.yaml --roles scheduler,worker

  # opstream.yaml
  brokers: [kafka-1:9093, kafka-2:9093]
  kafka-tls: true
  kafka-tls-ca: /etc/opstream/ca.pem
  kafka-sasl-mechanism: SCRAM-SHA-512
  kafka-sasl-user: opstream
  kafka-sasl-password: file:/run/secrets/kafka-password
  ops-listen: 0.0.0.0:9600`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newConfigPrint(), newConfigCheck())
	return c
}

// printFormat is --output of config print.
type printFormat string

// String, Set and Type make it a flag's value.
func (p *printFormat) String() string { return string(*p) }

// Set refuses anything but the three formats.
func (p *printFormat) Set(text string) error {
	if err := oneOf("table", "json", "yaml")(text); err != nil {
		return err
	}
	*p = printFormat(text)
	return nil
}

// Type is what help shows.
func (p *printFormat) Type() string { return "format" }

func newConfigPrint() *cobra.Command {
	var f serveFlags
	format := printFormat("table")
	c := &cobra.Command{
		Use:   "print",
		Short: "Print the value of every option of serve, and where it comes from",
		Long: `print shows what opstream serve would use with the same flags, file and environment.
Secrets are shown as *** unless they are references; of a database's address the password
is hidden. With --output yaml the result can be used as a file; secrets are left out.`,
		Example: `  opstream config print
  opstream config print --config opstream.yaml --output yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.resolve(cmd); err != nil {
				return err
			}
			for _, text := range f.result.Unknown {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", clean(text))
			}
			return printConfig(cmd.OutOrStdout(), f.result, f.names, string(format))
		},
	}
	f.add(c)
	c.Flags().VarP(&format, "output", "o", `"table" for people, "json" for programs, "yaml" for a file`)
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// shownOption is one option as config print --output json tells it.
type shownOption struct {
	Name   string   `json:"name"`
	Value  string   `json:"value"` // a list with commas; secrets masked
	From   string   `json:"from"`  // default, file, environment or flag
	At     string   `json:"at,omitempty"`
	Env    string   `json:"env"`
	Type   string   `json:"type"`
	Secret bool     `json:"secret"`
	Roles  []string `json:"roles,omitempty"`
	Help   string   `json:"help"`
}

func printConfig(out io.Writer, r *settings.Result, names []string, format string) error {
	var list []shownOption
	rows := newTable(out, "OPTION", "VALUE", "FROM")
	var yaml strings.Builder
	for i := range r.Values {
		v := &r.Values[i]
		o := v.Option
		if !slices.Contains(names, o.Name) {
			continue
		}
		shown := o.Shown(v.Values)
		list = append(list, shownOption{o.Name, shown, v.Source.From, v.Source.At, o.Env(envPrefix), o.Kind.String(), o.Secret(), o.Roles, o.Help})
		rows.row(o.Name, shown, v.Source.String())
		line := o.Name + ": " + yamlValue(v, shown) + " # " + clean(v.Source.String()) + "\n"
		if shown != v.Text() { // it would not mean the same
			line = "# secret: " + line
		}
		yaml.WriteString(line)
	}
	switch format {
	case "json":
		return printJSON(out, list)
	case "yaml":
		_, err := io.WriteString(out, yaml.String())
		return err
	}
	return rows.flush()
}

// yamlValue writes a value so that YAML reads the same. A string in double quotes is one in JSON and in YAML.
func yamlValue(v *settings.Value, shown string) string {
	switch v.Option.Kind {
	case settings.List:
		quoted := make([]string, len(v.Values))
		for i, text := range v.Values {
			quoted[i] = strconv.QuoteToASCII(text)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	case settings.Number, settings.Switch, settings.Duration:
		return shown
	default:
		return strconv.QuoteToASCII(shown)
	}
}

func newConfigCheck() *cobra.Command {
	var f serveFlags
	c := &cobra.Command{
		Use:   "check",
		Short: "Say everything that is wrong with the configuration, without starting anything",
		Long: `check reads the configuration as opstream serve would with the same flags, file and
environment, and the files that it names: certificates, keys, secrets. It does not reach
for brokers or databases. The exit code is 2 when something is wrong.`,
		Example: `  opstream config check --config opstream.yaml
  opstream config check --config opstream.yaml --roles worker --slots 128`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.resolve(cmd); err != nil {
				return err
			}
			log, err := newLogger(cmd.ErrOrStderr(), f.logLevel)
			if err != nil {
				return err
			}
			var brokerErr error
			if len(f.cfg.roles) > 0 {
				brokerErr = checkBrokerFlags(cmd, &f.cfg, f.broker)
			}
			if err := errors.Join(f.check(log), brokerErr, f.security.readable()); err != nil {
				return &exitError{exitUsage, err}
			}
			f.warn(log)
			fmt.Fprintln(cmd.OutOrStdout(), "The configuration is in order.")
			return nil
		},
	}
	f.add(c)
	return c
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/opstream/opstream/consumers/handlers/webhook"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/cockroach"
	"github.com/opstream/opstream/projections/sqlite"
	"github.com/opstream/opstream/schemas"
)

// roleBroker is the embedded broker's; dev has it beside all others.
const roleBroker = "broker"

var serveRoles = append(slices.Clone(allRoles), roleBroker)

// brokersFlag is --brokers, with its default from the environment.
func brokersFlag(c *cobra.Command, to *[]string) {
	def := []string{defaultBroker}
	if env := os.Getenv("OPSTREAM_BROKERS"); env != "" {
		def = strings.Split(env, ",")
	}
	c.Flags().StringSliceVar(to, "brokers", def, "some of Kafka's brokers, host:port (environment: OPSTREAM_BROKERS)")
}

// envDatabase is where the tables are unless --database says it. A URL may hold a password, which is nobody's business who
// lists processes.
const envDatabase = "OPSTREAM_DATABASE"

// databaseFlag is --database. The environment is not its default: --help would show it.
func databaseFlag(c *cobra.Command, to *string, what string) {
	c.Flags().StringVar(to, "database", "", what+" (environment: "+envDatabase+")")
}

func databaseFromEnvironment(c *cobra.Command, to *string) {
	if !c.Flags().Changed("database") {
		*to = os.Getenv(envDatabase)
	}
}

func newServe() *cobra.Command {
	var cfg serviceConfig
	var broker devFlags
	var prefix, logLevel string
	var noopTypes []string
	var create, allowPrivate bool
	var partitions int32
	c := &cobra.Command{
		Use:   "serve --roles ROLE,… --brokers HOST:PORT,…",
		Short: "Run some roles of the service over a Kafka that is there already",
		Long: `serve runs one process of an installation over Kafka (any broker that speaks its
protocol). Roles: scheduler (decides, any number), worker (runs the handlers webhook and
noop, any number), projector (writes the tables) and api (answers from them).

--database says where the tables are. A SQLite file belongs to one process, which is
projector and api. With the URL of a PostgreSQL (15 or newer) or a CockroachDB (23.2 or newer)
projector and api may be processes of their own, any number of each: one projector works,
the others stand by. The database need not be there when a process starts, and its absence stops
nothing but reading. TLS is a matter of the URL (sslmode, sslrootcert, …).

The role broker is the broker of opstream dev in a process that other processes can reach,
for tests and for installations on one host: it keeps the log in --data and listens at
--kafka, on this host only. It may stand alone or beside other roles, which then use it.

At SIGTERM or Ctrl-C a process takes nothing new, lets handlers go on for ten seconds at
most, gives back what is left, and exits with 0. A second signal ends it at once.`,
		Example: `  opstream serve --roles scheduler,worker --brokers kafka-1:9092,kafka-2:9092 --create-topics
  opstream serve --roles projector,api --brokers kafka-1:9092 --database ./tables.db --listen 0.0.0.0:8080
  opstream serve --roles projector --brokers kafka-1:9092 --database postgres://opstream@db/opstream?sslmode=verify-full
  opstream serve --roles broker --data ./data --kafka 127.0.0.1:9092`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd.ErrOrStderr(), logLevel)
			if err != nil {
				return err
			}
			cfg.log, cfg.topics = log, schemas.Topics{Prefix: prefix}
			databaseFromEnvironment(cmd, &cfg.database)
			if len(cfg.roles) == 0 {
				return &exitError{exitUsage, fmt.Errorf("expected --roles with some of %s", strings.Join(serveRoles, ", "))}
			}
			for _, r := range cfg.roles {
				if !slices.Contains(serveRoles, r) {
					return &exitError{exitUsage, fmt.Errorf("expected roles out of %s, but got %q", strings.Join(serveRoles, ", "), r)}
				}
			}
			if err := checkBrokerFlags(cmd, &cfg, broker); err != nil {
				return err
			}
			if cfg.handlers, err = standardHandlers(noopTypes, webhook.Config{AllowPrivate: allowPrivate, AllowPlain: allowPrivate}); err != nil {
				return err
			}
			ctx := cmd.Context()
			g := newGroup()
			if cfg.has(roleBroker) {
				broker.sync, broker.partitions = cfg.sync, devPartitions
				if cmd.Flags().Changed("partitions") {
					broker.partitions = partitions
				}
				if err := startBroker(ctx, g, broker, &cfg); err != nil {
					return stopped(ctx, g, err)
				}
			}
			if create {
				if err := createTopics(ctx, &cfg, partitions); err != nil {
					return stopped(ctx, g, err)
				}
			}
			s, err := startService(ctx, g, cfg)
			if err != nil {
				return stopped(ctx, g, err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "opstream runs %s over %s.\n", strings.Join(cfg.roles, ", "), strings.Join(cfg.brokers, ","))
			if s.url != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "page and API: %s\n", s.url)
			}
			g.wait(ctx)
			return g.stop()
		},
	}
	brokersFlag(c, &cfg.brokers)
	fl := c.Flags()
	fl.StringSliceVar(&cfg.roles, "roles", nil, "what this process does: "+strings.Join(serveRoles, ", "))
	fl.StringVar(&prefix, "topic-prefix", schemas.DefaultPrefix, "before the name of every topic")
	databaseFlag(c, &cfg.database, "SQLite file or URL (postgres://…, cockroach://…) of the tables (projector, api); empty keeps them in memory, or in --data")
	fl.StringVar(&broker.data, "data", "", "folder for the log; created when missing (broker)")
	fl.StringVar(&broker.kafka, "kafka", defaultBroker, "loopback address at which the broker speaks Kafka's protocol (broker)")
	fl.BoolVar(&cfg.sync, "sync", false, "write every append through to the disk: survives a power cut, costs speed (broker, projector)")
	fl.StringVar(&cfg.listen, "listen", defaultListen, "address of the API and its page (api)")
	fl.BoolVar(&create, "create-topics", false, "create the topics that are missing")
	fl.Int32Var(&partitions, "partitions", schemas.DefaultPartitions, "partitions of topics that are created (broker: of a new data folder, 4 unless given)")
	fl.StringSliceVar(&noopTypes, "noop", nil, "more operation types that the handler noop serves (worker)")
	fl.BoolVar(&allowPrivate, "webhook-private", false, "let webhooks call private addresses and plain http (worker)")
	fl.IntVar(&cfg.slots, "slots", 64, "handlers that run at once (worker)")
	fl.DurationVar(&cfg.lease, "lease", 15*time.Second, "a worker that is silent for longer has lost its attempts")
	fl.StringVar(&logLevel, "log", "info", "debug, info, warn or error")
	return c
}

// checkBrokerFlags refuses flags that contradict one another, and derives those that follow from others.
func checkBrokerFlags(cmd *cobra.Command, cfg *serviceConfig, broker devFlags) error {
	var faults []error
	if cfg.has(roleBroker) {
		if broker.data == "" {
			faults = append(faults, errors.New("expected --data DIR, the folder for the log, with the role broker"))
		}
		if cmd.Flags().Changed("brokers") {
			faults = append(faults, errors.New("expected no --brokers with the role broker: the other roles of this process use its own; --kafka says where it listens"))
		}
		if cfg.database == "" && cfg.has(roleProjector) {
			cfg.database = filepath.Join(broker.data, databaseFile)
		}
	} else {
		for _, name := range []string{"data", "kafka"} {
			if cmd.Flags().Changed(name) {
				faults = append(faults, fmt.Errorf("expected the role broker with --%s, which is about nothing else", name))
			}
		}
	}
	if err := errors.Join(faults...); err != nil {
		return &exitError{exitUsage, err}
	}
	return nil
}

// openTables opens the tables. A database at a URL is not gone to yet, see package cockroach. Of the SQLite file: what is in it can be made again, so nothing that is wrong with it is worth more than a new
// one; but whether a file may go is for people to say.
func openTables(ctx context.Context, cfg *serviceConfig) (projections.Store, error) {
	if cockroach.IsURL(cfg.database) {
		store, err := cockroach.Open(cfg.database, cockroach.Options{})
		if err != nil {
			return nil, &exitError{exitUsage, fmt.Errorf("--database: %w", err)}
		}
		return store, nil
	}
	if cfg.database == "" {
		return sqlite.Open(ctx, "", sqlite.Options{})
	}
	// SQLite opens what it may only read, and every batch would fail.
	f, err := os.OpenFile(cfg.database, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("expected to write the tables in %s, but could not: let this user (uid %d) write there, or name another file: %w", cfg.database, os.Getuid(), err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("close %s: %w", cfg.database, err)
	}
	store, err := sqlite.Open(ctx, cfg.database, sqlite.Options{Sync: cfg.sync})
	if err == nil {
		return store, nil
	}
	if ctx.Err() == nil {
		return nil, fmt.Errorf("%w\nNothing is lost: the tables are made again from the journal when %s is missing. To have that, remove it, with %[2]s-wal and %[2]s-shm, and start again", err, cfg.database)
	}
	return nil, err
}

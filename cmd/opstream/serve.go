package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/consumers/handlers/webhook"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/cockroach"
	"github.com/opstream/opstream/projections/sqlite"
	"github.com/opstream/opstream/schemas"
)

// roleBroker is the embedded broker's; dev has it beside all others.
const roleBroker = "broker"

var serveRoles = append(slices.Clone(allRoles), roleBroker)

func newServe() *cobra.Command {
	var f serveFlags
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

Every flag can also be given in a file and in the environment: opstream config --help.
--ops-listen opens a second address for whoever looks after the process: /livez, /readyz
and /metrics.

At SIGTERM or Ctrl-C a process takes nothing new, lets handlers go on for ten seconds at
most, gives back what is left, and exits with 0. Brokers that do not answer hold that up by
some seconds for each role: what they could not be told is logged, and they find it out by
themselves. A second signal ends a process at once.`,
		Example: `  opstream serve --roles scheduler,worker --brokers kafka-1:9092,kafka-2:9092 --create-topics
  opstream serve --roles projector,api --brokers kafka-1:9092 --database ./tables.db --listen 0.0.0.0:8080
  opstream serve --roles projector --brokers kafka-1:9092 --database postgres://opstream@db/opstream?sslmode=verify-full
  opstream serve --roles broker --data ./data --kafka 127.0.0.1:9092`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.resolve(cmd); err != nil {
				return err
			}
			log, err := newLogger(cmd.ErrOrStderr(), f.logLevel)
			if err != nil {
				return err
			}
			f.warn(log)
			cfg, broker := f.cfg, f.broker
			cfg.log, cfg.topics = log, schemas.Topics{Prefix: f.prefix}
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
			if err := f.check(log); err != nil {
				return err
			}
			if cfg.handlers, err = standardHandlers(f.noopTypes, webhook.Config{AllowPrivate: f.allowPrivate, AllowPlain: f.allowPrivate}); err != nil {
				return err
			}
			ctx := cmd.Context()
			g := newGroup()
			ops, err := startOps(ctx, g, &cfg)
			if err != nil {
				return stopped(ctx, g, err)
			}
			if cfg.has(roleBroker) {
				broker.sync, broker.partitions = cfg.sync, devPartitions
				if f.given("partitions") {
					broker.partitions = f.partitions
				}
				if err := startBroker(ctx, g, broker, &cfg); err != nil {
					return stopped(ctx, g, err)
				}
			} else {
				cfg.security = f.clientOptions
				// A connection that is being made heeds the client's context alone, not the caller's.
				if err := reachKafka(ctx, cfg.brokers, append(cfg.clientOptions(), kgo.WithContext(ctx)), log); err != nil {
					return stopped(ctx, g, err)
				}
			}
			if f.create {
				if err := createTopics(ctx, &cfg, f.partitions); err != nil {
					return stopped(ctx, g, err)
				}
			}
			s, err := startService(ctx, g, cfg)
			if err != nil {
				return stopped(ctx, g, err)
			}
			ops.serve(s)
			fmt.Fprintf(cmd.OutOrStdout(), "opstream runs %s over %s.\n", strings.Join(cfg.roles, ", "), strings.Join(cfg.brokers, ","))
			if s.url != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "page and API: %s\n", s.url)
			}
			g.wait(ctx)
			return g.stop()
		},
	}
	f.add(c)
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

package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/opstream/opstream/consumers/handlers/webhook"
	"github.com/opstream/opstream/schemas"
)

// brokersFlag is --brokers, with its default from the environment.
func brokersFlag(c *cobra.Command, to *[]string) {
	def := []string{defaultBroker}
	if env := os.Getenv("OPSTREAM_BROKERS"); env != "" {
		def = strings.Split(env, ",")
	}
	c.Flags().StringSliceVar(to, "brokers", def, "some of Kafka's brokers, host:port (environment: OPSTREAM_BROKERS)")
}

func newServe() *cobra.Command {
	var cfg serviceConfig
	var prefix, logLevel string
	var noopTypes []string
	var create, allowPrivate bool
	var partitions int32
	c := &cobra.Command{
		Use:   "serve --roles ROLE,… --brokers HOST:PORT,…",
		Short: "Run some roles of the service over a Kafka that is there already",
		Long: `serve runs one process of an installation over Kafka (any broker that speaks its
protocol). Roles: scheduler (decides, any number), worker (runs the handlers webhook and
noop, any number), projector and api (tables and API; together, one process: the tables
are SQLite's in this version).`,
		Example: `  opstream serve --roles scheduler,worker --brokers kafka-1:9092,kafka-2:9092 --create-topics
  opstream serve --roles projector,api --brokers kafka-1:9092 --database ./tables.db --listen 0.0.0.0:8080`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd.ErrOrStderr(), logLevel)
			if err != nil {
				return err
			}
			cfg.log, cfg.topics = log, schemas.Topics{Prefix: prefix}
			if len(cfg.roles) == 0 {
				return &exitError{exitUsage, fmt.Errorf("expected --roles with some of %s", strings.Join(allRoles, ", "))}
			}
			for _, r := range cfg.roles {
				if !slices.Contains(allRoles, r) {
					return &exitError{exitUsage, fmt.Errorf("expected roles out of %s, but got %q", strings.Join(allRoles, ", "), r)}
				}
			}
			if cfg.handlers, err = standardHandlers(noopTypes, webhook.Config{AllowPrivate: allowPrivate, AllowPlain: allowPrivate}); err != nil {
				return err
			}
			ctx := cmd.Context()
			if create {
				if err := createTopics(ctx, &cfg, partitions); err != nil {
					return err
				}
			}
			g := newGroup()
			s, err := startService(ctx, g, cfg)
			if err != nil {
				return errors.Join(err, g.stop())
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
	fl.StringSliceVar(&cfg.roles, "roles", nil, "what this process does: "+strings.Join(allRoles, ", "))
	fl.StringVar(&prefix, "topic-prefix", schemas.DefaultPrefix, "before the name of every topic")
	fl.StringVar(&cfg.database, "database", "", "SQLite file of the tables (projector); empty keeps them in memory")
	fl.StringVar(&cfg.listen, "listen", defaultListen, "address of the API and its page (api)")
	fl.BoolVar(&create, "create-topics", false, "create the topics that are missing")
	fl.Int32Var(&partitions, "partitions", schemas.DefaultPartitions, "partitions of topics that are created")
	fl.StringSliceVar(&noopTypes, "noop", nil, "more operation types that the handler noop serves (worker)")
	fl.BoolVar(&allowPrivate, "webhook-private", false, "let webhooks call private addresses and plain http (worker)")
	fl.IntVar(&cfg.slots, "slots", 64, "handlers that run at once (worker)")
	fl.DurationVar(&cfg.lease, "lease", 15*time.Second, "a worker that is silent for longer has lost its attempts")
	fl.StringVar(&logLevel, "log", "info", "debug, info, warn or error")
	return c
}

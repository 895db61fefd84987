package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/opstream/opstream/consumers/handlers/webhook"
	"github.com/opstream/opstream/internal/embedded"
	"github.com/opstream/opstream/schemas"
)

// Defaults of the embedded mode.
const (
	defaultListen  = "127.0.0.1:8080"
	defaultBroker  = "127.0.0.1:9092"
	devPartitions  = 4
	devInboxes     = 4
	databaseFile   = "tables.db"
	defaultLease   = 15 * time.Second
	defaultDevSlot = 256
)

type devFlags struct {
	data, listen, kafka string
	sync                bool
	partitions          int32
	noop                []string
	allowPrivate        bool
	slots               int
	lease               time.Duration
	logLevel            string
	opsListen           string
	tlsCert, tlsKey     string
	backlogMax, liveMax int
}

func newDev() *cobra.Command {
	var f devFlags
	var opts *options
	c := &cobra.Command{
		Use:   "dev --data DIR",
		Short: "Run the whole service in one process, with nothing to install",
		Long: `dev runs everything in one process: a broker that speaks Kafka's protocol, the
scheduler, a worker, the tables (SQLite) and the API with its page. It is for trying
out, for development and for small installations on one host.

What is acknowledged survives the death of the process at any moment. It survives a
power cut only with --sync, which costs speed. All data is in DIR; copy it while the
service is stopped to have a backup. At SIGTERM or Ctrl-C handlers may go on for ten
seconds at most, what is left is given back, and the exit code is 0. A second signal ends
the process at once; nothing is lost then either.

The worker runs two kinds of handler: webhook (types system-event and webhook), which
calls a URL, and noop, which does nothing. Other types wait, visibly, for a worker that
serves them: write one in Go with package consumers/worker, or name types for noop, which
leaves their data alone.`,
		Example: `  opstream dev --data ./data
  opstream dev --data ./data --noop bulk-delete,bulk-email --listen 127.0.0.1:9000
  curl -s localhost:8080/v1/counts`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.resolve(cmd); err != nil {
				return err
			}
			if f.data == "" {
				return &exitError{exitUsage, errors.New("expected --data DIR, the folder for the log and the tables; see opstream dev --help")}
			}
			log, err := newLogger(cmd.ErrOrStderr(), f.logLevel)
			if err != nil {
				return err
			}
			opts.warn(log)
			if err := usageOf(checkPair(f.tlsCert, f.tlsKey, log)); err != nil {
				return err
			}
			return runDev(cmd.Context(), f, log, cmd.OutOrStdout())
		},
	}
	opts = addOptions(c, map[string]string{"partitions": fmt.Sprint(devPartitions), "slots": fmt.Sprint(defaultDevSlot), "log": "warn"}, map[string]any{
		"data": &f.data, "listen": &f.listen, "kafka": &f.kafka, "sync": &f.sync, "partitions": &f.partitions, "noop": &f.noop,
		"webhook-private": &f.allowPrivate, "slots": &f.slots, "lease": &f.lease, "log": &f.logLevel,
		"backlog-max": &f.backlogMax, "live-max": &f.liveMax,
		"ops-listen": &f.opsListen, "tls-cert": &f.tlsCert, "tls-key": &f.tlsKey,
	})
	return c
}

func runDev(ctx context.Context, f devFlags, log *slog.Logger, out io.Writer) error {
	g := newGroup()
	s, err := startEmbedded(ctx, g, f, log)
	if err != nil {
		return stopped(ctx, g, err)
	}
	fmt.Fprintf(out, "opstream runs.\n\n  page and API  %s\n  Kafka         %s   (topics %s*)\n  data          %s\n  serves        %s\n\nStop it with Ctrl-C.\n",
		s.url, strings.Join(s.cfg.brokers, ","), schemas.DefaultPrefix, f.data, strings.Join(typesOf(s.cfg.handlers), ", "))
	g.wait(ctx)
	return g.stop()
}

// startEmbedded starts broker and service in this process.
func startEmbedded(ctx context.Context, g *group, f devFlags, log *slog.Logger) (*service, error) {
	handlers, err := standardHandlers(f.noop, webhook.Config{AllowPrivate: f.allowPrivate, AllowPlain: f.allowPrivate})
	if err != nil {
		return nil, err
	}
	cfg := serviceConfig{
		roles: allRoles, listen: f.listen, sync: f.sync, lease: f.lease, log: log, handlers: handlers, slots: f.slots,
		backlogMax: f.backlogMax, liveMax: f.liveMax,
		opsListen: f.opsListen, tlsCert: f.tlsCert, tlsKey: f.tlsKey,
	}
	ops, err := startOps(ctx, g, &cfg)
	if err != nil {
		return nil, err
	}
	if err := startBroker(ctx, g, f, &cfg); err != nil {
		return nil, err
	}
	if f.data != "" {
		cfg.database = filepath.Join(f.data, databaseFile)
	}
	s, err := startService(ctx, g, cfg)
	if err == nil {
		ops.serve(s)
	}
	return s, err
}

// startBroker starts the embedded broker, and has the other roles of this process use it.
func startBroker(ctx context.Context, g *group, f devFlags, cfg *serviceConfig) error {
	broker, err := openBroker(ctx, f, cfg.topics, cfg.log)
	if err != nil {
		return err
	}
	g.start(roleBroker, func(ctx context.Context) error {
		err := broker.Run(ctx)
		return errors.Join(err, broker.Close())
	})
	cfg.brokers, cfg.dial = broker.Addrs(), broker.Dial
	return nil
}

// stopped ends a start that failed. One that fails because the process is to stop has done what was asked.
func stopped(ctx context.Context, g *group, err error) error {
	stopping := ctx.Err() != nil
	end := g.stop()
	if stopping {
		return end
	}
	return errors.Join(err, end)
}

func openBroker(ctx context.Context, f devFlags, topics schemas.Topics, log *slog.Logger) (*embedded.Broker, error) {
	if f.data != "" {
		if err := os.MkdirAll(f.data, 0o750); err != nil {
			return nil, fmt.Errorf("cannot create the data folder: %w", err)
		}
	}
	var all []embedded.Topic
	for _, spec := range topics.Specs(f.partitions, devInboxes) {
		all = append(all, embedded.Topic{Name: spec.Name, Partitions: spec.Partitions, Configs: map[string]string{
			"max.message.bytes": spec.Config()["max.message.bytes"],
		}})
	}
	return embedded.Open(ctx, embedded.Config{Dir: f.data, Addr: f.kafka, Sync: f.sync, Topics: all, Logger: log})
}

func newLogger(out io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("expected --log to be debug, info, warn or error, but got %q", level)}
	}
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: l})), nil
}

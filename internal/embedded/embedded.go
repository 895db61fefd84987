package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// Topic is a topic that exists once the broker is open.
type Topic struct {
	// Name as clients see it.
	Name string
	// Partitions is at least 1. A topic that exists with another number is an error, never a change.
	Partitions int32
	// Configs of a topic that is new; an existing topic keeps what it has. Retention and cleanup policy are the broker's own
	// decision (see the package comment), and replace what stands here. Default: none.
	Configs map[string]string
}

// Config says where the broker lives and what it serves.
type Config struct {
	// Dir is the data directory. Default: none, everything stays in memory and is gone after Close.
	Dir string
	// Addr is where to listen, always on 127.0.0.1. A port that is given is kept over restarts, so that clients find the broker
	// again; port 0 takes a free one. Default: 127.0.0.1:0.
	Addr string
	// Whole refuses a log with damaged segments, with a [DamagedError], and leaves it as it is. Default: false, the damaged segments are
	// kept as they are in DIR/damaged, an error is logged, and the log goes on without what stands behind the damage.
	Whole bool
	// Sync has every batch written through to the disk before it is acknowledged, at a fraction of the speed. Default: false.
	Sync bool
	// Topics that are created when they are missing. Default: none.
	Topics []Topic
	// MinFreeBytes is the free space below which appends are refused with an error that producers retry. Default: 256 MiB.
	MinFreeBytes uint64
	// FreeBytes measures the free space at the data directory; it is asked at most once a second, and only while clients
	// produce. Default: the file system's own answer for Dir; nothing is measured in memory.
	FreeBytes func(dir string) (uint64, error)
	// Logger gets the broker's own messages. Default: slog.Default().
	Logger *slog.Logger
	// Options go to kfake after the broker's own, and so win over them; kfake.ListenFn with a kfake.VirtualNetwork, for
	// example, and then Addr needs a port, for the virtual network does not choose one. Default: none.
	Options []kfake.Opt
}

const (
	defaultAddr         = "127.0.0.1:0"
	defaultMinFreeBytes = 256 << 20

	// segmentBytes is small beside Kafka's, because space comes back, and deleted records stay deleted, by whole segments.
	segmentBytes = 16 << 20
	// cleanerNeverMillis is a hundred years, the longest round number that still fits a time.Duration.
	cleanerNeverMillis = 100 * 365 * 24 * 3600 * 1000
)

// ClusterID is what every embedded broker says its cluster is called.
const ClusterID = "opstream-embedded"

// ownTopicConfigs are the settings that a topic here always has.
var ownTopicConfigs = map[string]string{
	"retention.ms":    "-1",
	"retention.bytes": "-1",
	"cleanup.policy":  "delete",
}

func (c Config) withDefaults() Config {
	if c.Addr == "" {
		c.Addr = defaultAddr
	}
	if c.MinFreeBytes == 0 {
		c.MinFreeBytes = defaultMinFreeBytes
	}
	if c.FreeBytes == nil && c.Dir != "" {
		c.FreeBytes = freeBytes
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// port reads Addr, which may name nothing but this host.
func (c Config) port() (int, error) {
	host, text, err := net.SplitHostPort(c.Addr)
	if err != nil {
		return 0, fmt.Errorf("embedded broker: expected an address like 127.0.0.1:9092, but got %q: %w", c.Addr, err)
	}
	if host != "127.0.0.1" && host != "localhost" {
		return 0, fmt.Errorf("embedded broker: expected an address on 127.0.0.1, but got %q: the embedded broker asks nobody who "+
			"they are and listens on this host only; use 127.0.0.1:%s, or a real Kafka for clients on other hosts", c.Addr, text)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("embedded broker: expected a port from 0 to 65535, but got %q in address %q", text, c.Addr)
	}
	return int(port), nil
}

// validate reports all faults at once.
func (c Config) validate() error {
	_, err := c.port()
	faults := []error{err}
	seen := make(map[string]bool, len(c.Topics))
	for i, t := range c.Topics {
		switch {
		case t.Name == "":
			faults = append(faults, fmt.Errorf("embedded broker: expected topic %d to have a name, but it has none", i))
		case seen[t.Name]:
			faults = append(faults, fmt.Errorf("embedded broker: expected every topic once, but %q is there twice", t.Name))
		case t.Partitions < 1:
			faults = append(faults, fmt.Errorf("embedded broker: expected topic %q to have at least 1 partition, but got %d",
				t.Name, t.Partitions))
		}
		seen[t.Name] = true
	}
	return errors.Join(faults...)
}

// Broker is an open broker. Close it: a broker that was closed opens faster than one that was killed.
type Broker struct {
	cluster *kfake.Cluster
	dir     *directory // nil in memory
	addrs   []string
	gate    *gatedListener // nil with a listener of the caller's

	closing sync.Once
	closed  error
}

// Open starts the broker. When it returns, the topics exist and clients are served; no client is served a moment earlier. The
// context bounds opening only.
func Open(ctx context.Context, config Config) (*Broker, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("embedded broker: open: %w", context.Cause(ctx))
	}
	b := &Broker{}
	opened := false
	defer func() {
		if !opened {
			_ = b.Close() // the error that Open returns says what to do
		}
	}()
	if config.Dir != "" {
		dir, err := openDirectory(config.Dir)
		if err != nil {
			return nil, err
		}
		b.dir = dir
		if err := config.keepDamaged(); err != nil {
			return nil, err
		}
	}

	ready := make(chan struct{})
	cluster, err := kfake.NewCluster(config.kfakeOptions(ready, &b.gate)...)
	if err != nil {
		return nil, config.explain(err)
	}
	b.cluster = cluster
	b.addrs = cluster.ListenAddrs()
	guard(cluster, config)
	if err := config.createTopics(cluster); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("embedded broker: open: %w", context.Cause(ctx))
	}
	close(ready)
	opened = true
	config.Logger.Info("embedded broker is open", "addr", b.addrs[0], "dir", config.Dir, "sync", config.Sync)
	return b, nil
}

func (c Config) kfakeOptions(ready <-chan struct{}, gate **gatedListener) []kfake.Opt {
	options := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ClusterID(ClusterID),
		kfake.WithLogger(kfakeLogger{c.Logger}),
		kfake.ListenFn(func(network, address string) (net.Listener, error) {
			l, err := net.Listen(network, address) //nolint:noctx // the broker gives no context here, and a loopback address is not looked up
			if err != nil {
				return nil, err
			}
			*gate = newGatedListener(l, c.Logger, ready)
			return *gate, nil
		}),
		kfake.BrokerConfigs(map[string]string{
			"log.retention.ms":       "-1",
			"log.retention.bytes":    "-1",
			"log.segment.bytes":      strconv.Itoa(segmentBytes),
			"log.cleaner.backoff.ms": strconv.Itoa(cleanerNeverMillis),
			// Clients on one host need not grant a silent one the 6 s that the default asks for at least.
			"group.min.session.timeout.ms": "1000",
		}),
	}
	if port, _ := c.port(); port != 0 {
		options = append(options, kfake.Ports(port))
	}
	if c.Dir != "" {
		options = append(options, kfake.DataDir(filepath.Join(c.Dir, logDir)))
	}
	if c.Sync {
		options = append(options, kfake.SyncWrites())
	}
	return append(options, c.Options...)
}

// explain turns kfake's refusal to start into what the operator can do about it.
func (c Config) explain(err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		port, _ := c.port()
		return fmt.Errorf("embedded broker: expected to listen on port %d of 127.0.0.1, but another process does: stop that "+
			"process, or choose another port (0 takes a free one): %w", port, err)
	}
	if c.Dir == "" {
		return fmt.Errorf("embedded broker: start: %w", err)
	}
	return fmt.Errorf("embedded broker: expected to open the log in %s, but could not: if the files are damaged, put back a backup "+
		"of %s or start with an empty directory: %w", filepath.Join(c.Dir, logDir), c.Dir, err)
}

// createTopics looks at all topics before it creates the first, so that a refusal leaves nothing half done.
func (c Config) createTopics(cluster *kfake.Cluster) error {
	var missing []Topic
	var faults []error
	for _, t := range c.Topics {
		switch have := len(cluster.PartitionInfos(t.Name)); have {
		case 0:
			missing = append(missing, t)
		case int(t.Partitions):
		default:
			faults = append(faults, fmt.Errorf("embedded broker: expected topic %q to have %d partitions, but in %s it has %d: "+
				"keys are tied to their partitions, so the number cannot change; ask for %d partitions, or use another data directory",
				t.Name, t.Partitions, c.Dir, have, have))
		}
	}
	if len(faults) > 0 {
		return errors.Join(faults...)
	}
	for _, t := range missing {
		configs := maps.Clone(t.Configs)
		if configs == nil {
			configs = make(map[string]string, len(ownTopicConfigs))
		}
		maps.Copy(configs, ownTopicConfigs)
		if err := cluster.CreateTopic(t.Name, t.Partitions, configs); err != nil {
			return fmt.Errorf("embedded broker: create topic %q with %d partitions: %w", t.Name, t.Partitions, err)
		}
	}
	return nil
}

// Addrs are the seed brokers for clients. They stay known after Close.
func (b *Broker) Addrs() []string { return append([]string(nil), b.addrs...) }

// Dial connects clients of this process with the broker (kgo.Dialer) without a socket: half of what a record costs at low load
// is the kernel's work. Any other address it dials as the standard library does.
func (b *Broker) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if b.gate == nil || !slices.Contains(b.addrs, address) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}
	client, server := pipe()
	select {
	case b.gate.conns <- server:
		return client, nil
	case <-b.gate.closed:
		return nil, &net.OpError{Op: "dial", Net: pipeNetwork, Addr: pipeAddr{}, Err: syscall.ECONNREFUSED}
	case <-ctx.Done():
		return nil, &net.OpError{Op: "dial", Net: pipeNetwork, Addr: pipeAddr{}, Err: context.Cause(ctx)}
	}
}

// Cluster is kfake itself, for tests that inject faults. It must not be used after Close.
func (b *Broker) Cluster() *kfake.Cluster { return b.cluster }

// watchEvery is the time between two looks at the data directory.
const watchEvery = time.Second

// Run returns nil when ctx ends, and an error as soon as the broker cannot do its work any more because its data directory was
// removed or replaced; also when ctx ends, for that may be what ended somebody else first. The caller closes it in either case.
func (b *Broker) Run(ctx context.Context) error {
	if b.dir == nil {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return b.dir.check()
		case <-tick.C:
			if err := b.dir.check(); err != nil {
				return err
			}
		}
	}
}

// Close stops serving, writes down what makes the next opening fast, and gives the directory back. It may be called more than
// once. Close the clients first: one that waits for an answer gets none any more.
func (b *Broker) Close() error {
	b.closing.Do(func() {
		if b.cluster != nil {
			b.cluster.Close()
		}
		if b.dir != nil {
			b.closed = b.dir.close()
		}
	})
	return b.closed
}

// gatedListener keeps the clients of an earlier run, which come back by themselves, waiting until the guards stand and the topics
// exist. It keeps from kfake the errors that pass, such as a lack of descriptors: kfake would never accept anybody again. And it
// lets clients of this process in without a socket, see [Broker.Dial].
type gatedListener struct {
	net.Listener
	log    *slog.Logger
	ready  <-chan struct{}
	conns  chan net.Conn // of either kind
	closed chan struct{}
	once   sync.Once
}

func newGatedListener(l net.Listener, log *slog.Logger, ready <-chan struct{}) *gatedListener {
	g := &gatedListener{Listener: l, log: log, ready: ready, conns: make(chan net.Conn), closed: make(chan struct{})}
	go g.listen()
	return g
}

// listen accepts from the socket until the listener is closed.
func (l *gatedListener) listen() {
	select {
	case <-l.ready:
	case <-l.closed:
		return
	}
	const first, most = 5 * time.Millisecond, time.Second
	wait := first
	for {
		conn, err := l.Listener.Accept()
		if err == nil {
			wait = first
			select {
			case l.conns <- conn:
				continue
			case <-l.closed:
				_ = conn.Close() // nobody serves it
				return
			}
		}
		select {
		case <-l.closed:
			return
		case <-time.After(wait):
		}
		if wait == first {
			l.log.Error("embedded broker cannot take connections for now, clients wait: if files are too many, raise the limit (ulimit -n)", "err", err)
		}
		wait = min(2*wait, most)
	}
}

func (l *gatedListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *gatedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// kfakeLogger passes on what an operator should see. kfake's information is about single requests, so it counts as debugging.
type kfakeLogger struct{ *slog.Logger }

func (l kfakeLogger) Logf(level kfake.LogLevel, format string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case kfake.LogLevelError:
		to = slog.LevelError
	case kfake.LogLevelWarn:
		to = slog.LevelWarn
	}
	if l.Enabled(context.Background(), to) {
		l.Log(context.Background(), to, "embedded broker", "detail", fmt.Sprintf(format, args...))
	}
}

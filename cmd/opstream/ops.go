package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// operations is the listener for whoever looks after the process, apart from the API's: it is there with every role, tells of the whole
// process, and must not be reachable for the service's users.
type operations struct {
	group    *group
	stopping context.Context //nolint:containedctx // of the process: it ends when the process is to stop
	roles    []string
	service  atomic.Pointer[service] // nil until all parts were started
}

// startOps listens, and gives cfg what counts. It is nil, and costs nothing, without an address: two processes on one host must both
// start, so there is no default.
func startOps(ctx context.Context, g *group, cfg *serviceConfig) (*operations, error) {
	if cfg.opsListen == "" {
		return nil, nil // whose methods do nothing
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.opsListen)
	if err != nil {
		return nil, fmt.Errorf("cannot listen for operations, choose another address with --ops-listen: %w", err)
	}
	o := &operations{group: g, stopping: ctx, roles: cfg.roles}
	cfg.metrics = newMetrics(&o.service)
	errorLog := slog.NewLogLogger(cfg.log.Handler(), slog.LevelWarn)
	server := &http.Server{
		Handler: o.handler(cfg.metrics, errorLog), ErrorLog: errorLog,
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
	}
	cfg.log.Info("operations listener", "address", listener.Addr().String())
	// The first part is the last to stop: it tells of the others' end.
	g.start("operations", func(ctx context.Context) error {
		served := make(chan error, 1)
		go func() { served <- server.Serve(listener) }()
		select {
		case err := <-served:
			return err
		case <-ctx.Done():
			return server.Close()
		}
	})
	return o, nil
}

// serve says that all parts were started.
func (o *operations) serve(s *service) {
	if o != nil {
		o.service.Store(s)
	}
}

// health is the body of /livez and /readyz.
type health struct {
	OK     bool     `json:"ok"`
	Reason string   `json:"reason,omitempty"` // why not, or not all
	Roles  []string `json:"roles"`
}

func (o *operations) handler(m *metrics, errorLog promhttp.Logger) http.Handler {
	mux := http.NewServeMux()
	answer := func(check func(context.Context) (bool, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			ok, err := check(r.Context())
			h, status := health{OK: ok, Roles: o.roles}, http.StatusOK
			if err != nil {
				h.Reason = err.Error()
			}
			if !ok {
				status = http.StatusServiceUnavailable
			}
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Cache-Control", "no-store")
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(h) // a client that has gone needs no answer
		}
	}
	mux.HandleFunc("GET /livez", answer(func(context.Context) (bool, error) {
		err := o.alive()
		return err == nil, err
	}))
	mux.HandleFunc("GET /readyz", answer(o.serves))
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: errorLog, MaxRequestsInFlight: 4, Timeout: 20 * time.Second, Registry: m.registry,
	}))
	return mux
}

// alive is an error when a part has ended that nobody has told to: the process ends, and should it hang meanwhile, it is to be killed.
func (o *operations) alive() error {
	select {
	case <-o.group.ended:
		if o.stopping.Err() == nil {
			return errors.New("a part of the process has ended by itself; the log says why")
		}
	default:
	}
	return nil
}

// serves says whether the process may be counted on, and what it waits for, or nil.
func (o *operations) serves(ctx context.Context) (bool, error) {
	s := o.service.Load()
	switch {
	case o.stopping.Err() != nil:
		return false, errors.New("the process stops")
	case s == nil:
		return false, errors.New("the process starts")
	}
	if err := o.alive(); err != nil {
		return false, err
	}
	return s.serves(ctx)
}

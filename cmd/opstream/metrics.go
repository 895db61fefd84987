package main

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/opstream/opstream/consumers/scheduler"
	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/projections"
)

// metric is one line of the table of metrics.
type metric struct {
	name   string
	kind   string // gauge, counter, summary (sum and count) or histogram
	labels string // with spaces between them
	role   string
	help   string
}

// metricTable is every metric of our own. No label is an organization or an operation: what there may be any number of has its place in
// the tables. Operation types are labels where a worker's configuration names them, and nowhere else.
func metricTable() []metric {
	return []metric{
		{"opstream_build_info", "gauge", "version go", "all", "Always 1; the version is in the labels"},

		{"opstream_scheduler_partitions_owned", "gauge", "", roleScheduler, "Partitions that the group has given to this process"},
		{"opstream_scheduler_partitions_active", "gauge", "", roleScheduler, "Of those, the ones that are recovered and at work"},
		{"opstream_scheduler_operations_live", "gauge", "", roleScheduler, "Operations that have not ended"},
		{"opstream_scheduler_operations_ready", "gauge", "served", roleScheduler, "Ready operations that no worker has room for; served says whether a living worker serves their type. Scale workers by the sum over all schedulers"},
		{"opstream_scheduler_operations_waiting", "gauge", "reason", roleScheduler, "Operations that do not run, by the strongest reason; ready ones wait for resources"},
		{"opstream_scheduler_requests_undecided", "gauge", "", roleScheduler, "Requests on the log that are not decided yet, as of the last fetch. Scale schedulers by the sum; more than there are partitions do nothing"},
		{"opstream_scheduler_appended_total", "counter", "", roleScheduler, "Events sent to the journal"},
		{"opstream_scheduler_displaced_total", "counter", "", roleScheduler, "Appends that another writer was faster than; a few at a change of owner are normal"},
		{"opstream_scheduler_void_records_total", "counter", "", roleScheduler, "Void records of the journal met in recoveries"},
		{"opstream_scheduler_recovery_seconds", "summary", "", roleScheduler, "Recoveries of a partition and how long they took"},
		{"opstream_scheduler_interruptions_total", "counter", "", roleScheduler, "Times that a partition had to be recovered anew: displaced, brokers that did not answer, a log that could not be read"},
		{"opstream_scheduler_checkpoints_total", "counter", "", roleScheduler, "Checkpoints sent"},
		{"opstream_scheduler_checkpoint_lag_events", "gauge", "", roleScheduler, "Events since the last checkpoint of the partition that has most: what a recovery would read"},
		{"opstream_scheduler_checkpoint_age_seconds", "gauge", "", roleScheduler, "Age of the oldest last checkpoint among the partitions that have changed since theirs"},
		{"opstream_scheduler_unowned_total", "counter", "", roleScheduler, "Times that the group was asked to distribute partitions anew which it had given to nobody"},
		{"opstream_scheduler_dead_letters_total", "counter", "", roleScheduler, "Inputs that could not be read and were set aside"},

		{"opstream_worker_slots", "gauge", "", roleWorker, "Handlers that may run at once"},
		{"opstream_worker_slots_used", "gauge", "", roleWorker, "Handlers that run"},
		{"opstream_worker_slots_free", "gauge", "", roleWorker, "Slots that are not used"},
		{"opstream_worker_stuck", "gauge", "", roleWorker, "Of the used slots, those whose handler ignores that it was told to end; its attempt was reported without it"},
		{"opstream_worker_queued", "gauge", "", roleWorker, "Items that wait for a slot"},
		{"opstream_worker_attempts_total", "counter", "outcome", roleWorker, "Attempts that were reported: succeeded, failed, yielded, canceled, or returned without having burnt one"},
		{"opstream_worker_items_refused_total", "counter", "", roleWorker, "Items that came too late to count"},
		{"opstream_worker_items_repeated_total", "counter", "", roleWorker, "Items that had come before"},
		{"opstream_worker_reports_resent_total", "counter", "", roleWorker, "Reports that could not be written at first"},
		{"opstream_worker_heartbeats_total", "counter", "", roleWorker, "Heartbeats that are on the log"},
		{"opstream_worker_sessions_total", "counter", "", roleWorker, "Sessions begun: one, and one more for each lease that was lost"},
		{"opstream_worker_leases_lost_total", "counter", "", roleWorker, "Leases lost: all attempts of the session were canceled and count as lost"},
		{"opstream_handler_runs_total", "counter", "type outcome", roleWorker, "Handlers that returned, by what they returned: succeeded, failed, yielded, canceled or panicked"},
		{"opstream_handler_seconds", "histogram", "type", roleWorker, "How long handlers ran"},

		{"opstream_projector_lag_offsets", "gauge", "", roleProjector, "Journal records that the tables do not have yet"},
		{"opstream_projector_age_seconds", "gauge", "", roleProjector, "Age of what the tables are behind with, 0 when they are level"},
		{"opstream_projector_partitions_stopped", "gauge", "", roleProjector, "Partitions that are not projected any more: somebody must look"},
		{"opstream_projector_journal_deleted_offsets", "gauge", "", roleProjector, "Records deleted from the beginning of the journal, which is for ever: 0, or somebody must look"},
		{"opstream_projector_failing", "gauge", "", roleProjector, "1 while the tables or the journal cannot be reached"},
		{"opstream_projector_failures_total", "counter", "", roleProjector, "Batches that were not written and reads that broke off; each is tried again"},
		{"opstream_projector_batches_total", "counter", "", roleProjector, "Batches written"},
		{"opstream_projector_rows_total", "counter", "", roleProjector, "Rows written: operations, steps of their histories, refusals"},

		{"opstream_api_requests_total", "counter", "method route status", roleAPI, "Requests answered. Status 429 is the service asking its callers to wait; cut is an answer that broke off"},
		{"opstream_api_seconds", "histogram", "route", roleAPI, "How long answers took, with the time for which the caller asked to wait; without streams"},
		{"opstream_api_overloaded", "gauge", "", roleAPI, "1 while commands are refused because the service is behind"},
		{"opstream_api_commands_in_flight", "gauge", "", roleAPI, "Commands whose answer is waited for"},
		{"opstream_api_command_latency_seconds", "gauge", "", roleAPI, "How long the service takes at present to answer a command, smoothed"},
	}
}

// metrics counts for one process. A nil *metrics counts nothing and wraps nothing, so that nobody who does not ask pays.
type metrics struct {
	registry *prometheus.Registry
	service  *atomic.Pointer[service]
	descs    map[string]*prometheus.Desc
	help     map[string]string

	batches, rows atomic.Uint64
	runs          *prometheus.CounterVec
	took          *prometheus.HistogramVec
	requests      *prometheus.CounterVec
	answered      *prometheus.HistogramVec
}

func newMetrics(s *atomic.Pointer[service]) *metrics {
	m := &metrics{registry: prometheus.NewRegistry(), service: s, descs: map[string]*prometheus.Desc{}, help: map[string]string{}}
	for _, line := range metricTable() {
		m.descs[line.name] = prometheus.NewDesc(line.name, line.help, strings.Fields(line.labels), nil)
		m.help[line.name] = line.help
	}
	m.runs = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "opstream_handler_runs_total", Help: m.help["opstream_handler_runs_total"]}, []string{"type", "outcome"})
	m.took = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "opstream_handler_seconds", Help: m.help["opstream_handler_seconds"],
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120},
	}, []string{"type"})
	m.requests = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "opstream_api_requests_total", Help: m.help["opstream_api_requests_total"]}, []string{"method", "route", "status"})
	m.answered = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "opstream_api_seconds", Help: m.help["opstream_api_seconds"],
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	}, []string{"route"})
	m.registry.MustRegister(m, m.runs, m.took, m.requests, m.answered,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// committed counts a batch of the projector.
func (m *metrics) committed(b *projections.Batch) {
	if m == nil {
		return
	}
	m.batches.Add(1)
	m.rows.Add(uint64(len(b.Changes) + len(b.Steps) + len(b.Rejections)))
}

// handlers wraps each handler by one that counts. What a run is counted under is looked up here, once for a type, and not in the run.
func (m *metrics) handlers(all map[string]worker.Handler) map[string]worker.Handler {
	if m == nil {
		return all
	}
	out := make(map[string]worker.Handler, len(all))
	for name, h := range all {
		count := func(outcome string) prometheus.Counter { return m.runs.WithLabelValues(name, outcome) }
		out[name] = &measuredHandler{
			Handler: h, took: m.took.WithLabelValues(name), succeeded: count("succeeded"), failed: count("failed"),
			yielded: count("yielded"), canceled: count("canceled"), panicked: count("panicked"),
		}
	}
	return out
}

// measuredHandler counts the runs of a handler.
type measuredHandler struct {
	worker.Handler
	took                                           prometheus.Observer
	succeeded, failed, yielded, canceled, panicked prometheus.Counter
}

// Handle implements worker.Handler.
func (h *measuredHandler) Handle(ctx context.Context, op *worker.Operation) (result any, err error) {
	began := time.Now()
	outcome := h.panicked
	defer func() {
		h.took.Observe(time.Since(began).Seconds())
		outcome.Inc()
	}()
	result, err = h.Handler.Handle(ctx, op)
	outcome = h.outcome(err)
	return result, err
}

func (h *measuredHandler) outcome(err error) prometheus.Counter {
	if err == nil {
		return h.succeeded
	}
	var yield *worker.YieldError
	var canceled *worker.CanceledError
	switch {
	case errors.As(err, &yield):
		return h.yielded
	case errors.As(err, &canceled):
		return h.canceled
	}
	return h.failed
}

// api wraps the API's handler by one that counts.
func (m *metrics) api(routes []api.Route, h http.Handler) http.Handler {
	if m == nil {
		return h
	}
	streams := map[string]bool{}
	for _, r := range routes {
		if r.Stream {
			streams[r.Method+" "+r.Path] = true
		}
	}
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		began := time.Now()
		w := &statusWriter{ResponseWriter: rw, status: http.StatusOK}
		whole := false
		defer func() { // also when the handler cuts the connection by a panic
			route, method, status := r.Pattern, r.Method, strconv.Itoa(w.status)
			if !whole {
				status = "cut"
			}
			if route == "" {
				route = "none"
			}
			switch method {
			case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
			default:
				method = "other" // a caller may send any word
			}
			m.requests.WithLabelValues(method, route, status).Inc()
			if !streams[method+" "+route] {
				m.answered.WithLabelValues(route).Observe(time.Since(began).Seconds())
			}
		}()
		h.ServeHTTP(w, r)
		whole = true
	})
}

// statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
	begun  bool
}

// WriteHeader implements http.ResponseWriter. Informational answers come before the one that counts.
func (w *statusWriter) WriteHeader(status int) {
	if !w.begun && status >= http.StatusOK {
		w.status, w.begun = status, true
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *statusWriter) Write(b []byte) (int, error) {
	w.begun = true
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController find the writer below.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Describe implements prometheus.Collector. What the vectors describe themselves is left to them.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, line := range metricTable() {
		if !m.isVector(line.name) {
			out <- m.descs[line.name]
		}
	}
}

func (m *metrics) isVector(name string) bool {
	switch name {
	case "opstream_handler_runs_total", "opstream_handler_seconds", "opstream_api_requests_total", "opstream_api_seconds":
		return true
	}
	return false
}

// Collect implements prometheus.Collector: it asks the parts what they know. Nothing is counted twice for it.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	put := func(kind prometheus.ValueType, name string, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(m.descs[name], kind, v, labels...)
	}
	gauge := func(name string, v float64, labels ...string) { put(prometheus.GaugeValue, name, v, labels...) }
	counter := func(name string, v uint64, labels ...string) {
		put(prometheus.CounterValue, name, float64(v), labels...)
	}
	version := versionOf()
	gauge("opstream_build_info", 1, version.Version, version.Go)
	s := m.service.Load()
	if s == nil {
		return // the process starts
	}
	if s.scheduler != nil {
		m.collectScheduler(s.scheduler, gauge, counter, out)
	}
	if s.worker != nil {
		c := s.worker.Counters()
		slots, used := float64(s.worker.Slots()), float64(c.Running.Load())
		gauge("opstream_worker_slots", slots)
		gauge("opstream_worker_slots_used", used)
		gauge("opstream_worker_slots_free", max(slots-used, 0))
		gauge("opstream_worker_stuck", float64(c.Stuck.Load()))
		gauge("opstream_worker_queued", float64(c.Queued.Load()))
		counter("opstream_worker_attempts_total", c.Succeeded.Load(), "succeeded")
		counter("opstream_worker_attempts_total", c.Failed.Load(), "failed")
		counter("opstream_worker_attempts_total", c.Yielded.Load(), "yielded")
		counter("opstream_worker_attempts_total", c.Canceled.Load(), "canceled")
		counter("opstream_worker_attempts_total", c.Returned.Load(), "returned")
		counter("opstream_worker_items_refused_total", c.Refused.Load())
		counter("opstream_worker_items_repeated_total", c.Repeated.Load())
		counter("opstream_worker_reports_resent_total", c.Resent.Load())
		counter("opstream_worker_heartbeats_total", c.Heartbeats.Load())
		counter("opstream_worker_sessions_total", c.Sessions.Load())
		counter("opstream_worker_leases_lost_total", c.LeasesLost.Load())
	}
	if s.projector != nil {
		p := s.projector.Status()
		stopped, deleted := 0, int64(0)
		for _, part := range p.Partitions {
			if part.Stopped != nil {
				stopped++
			}
			deleted += part.Begin
		}
		gauge("opstream_projector_lag_offsets", float64(p.Lag))
		gauge("opstream_projector_age_seconds", p.Age.Seconds())
		gauge("opstream_projector_partitions_stopped", float64(stopped))
		gauge("opstream_projector_journal_deleted_offsets", float64(deleted))
		gauge("opstream_projector_failing", truth(p.Failing != nil))
		counter("opstream_projector_failures_total", p.Failures)
		counter("opstream_projector_batches_total", m.batches.Load())
		counter("opstream_projector_rows_total", m.rows.Load())
	}
	if s.answers != nil {
		_, overloaded := s.answers.Overload()
		stats := s.answers.Stats()
		gauge("opstream_api_overloaded", truth(overloaded))
		gauge("opstream_api_commands_in_flight", float64(stats.InFlight))
		gauge("opstream_api_command_latency_seconds", stats.Latency.Seconds())
	}
}

func (m *metrics) collectScheduler(s *scheduler.Scheduler, gauge func(string, float64, ...string), counter func(string, uint64, ...string), out chan<- prometheus.Metric) {
	active, live, ready, served := 0, 0, 0, 0
	var undecided int64
	lag, age := 0, time.Duration(0)
	waiting := map[operation.Wait]int{}
	all := s.Status()
	for _, p := range all {
		if p.Active {
			active++
		}
		live += p.Live
		ready += p.Waiting[operation.WaitResources]
		served += min(p.Backlog, p.Waiting[operation.WaitResources])
		undecided += p.Undecided
		lag, age = max(lag, p.SinceCheckpoint), max(age, p.CheckpointAge)
		for why, n := range p.Waiting {
			waiting[why] += n
		}
	}
	gauge("opstream_scheduler_partitions_owned", float64(len(all)))
	gauge("opstream_scheduler_partitions_active", float64(active))
	gauge("opstream_scheduler_operations_live", float64(live))
	gauge("opstream_scheduler_operations_ready", float64(served), "yes")
	gauge("opstream_scheduler_operations_ready", float64(ready-served), "no")
	for why := operation.WaitNone + 1; why <= operation.WaitServicePaused; why++ {
		gauge("opstream_scheduler_operations_waiting", float64(waiting[why]), why.String())
	}
	gauge("opstream_scheduler_requests_undecided", float64(undecided))
	c := s.Counters()
	counter("opstream_scheduler_appended_total", c.Appended.Load())
	counter("opstream_scheduler_displaced_total", c.Displaced.Load())
	counter("opstream_scheduler_void_records_total", c.Void.Load())
	out <- prometheus.MustNewConstSummary(m.descs["opstream_scheduler_recovery_seconds"], c.Recoveries.Load(), time.Duration(c.Recovering.Load()).Seconds(), nil)
	counter("opstream_scheduler_interruptions_total", c.Failed.Load())
	counter("opstream_scheduler_checkpoints_total", c.Sets.Load())
	gauge("opstream_scheduler_checkpoint_lag_events", float64(lag))
	gauge("opstream_scheduler_checkpoint_age_seconds", age.Seconds())
	counter("opstream_scheduler_dead_letters_total", c.Buried.Load())
	counter("opstream_scheduler_unowned_total", c.Unowned.Load())
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

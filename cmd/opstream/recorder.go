package main

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// recorder keeps five times of each operation of a benchmark, in nanoseconds since its own beginning; 0 means not yet.
type recorder struct {
	base                              time.Time
	due, accepted, ran, done, visible []atomic.Int64
	repeats                           atomic.Int64 // runs and ends beyond the first

	mu     sync.Mutex
	count  int
	target int
	all    chan struct{}
}

func newRecorder(total int) *recorder {
	return &recorder{
		base: time.Now(), due: make([]atomic.Int64, total), accepted: make([]atomic.Int64, total), ran: make([]atomic.Int64, total),
		done: make([]atomic.Int64, total), visible: make([]atomic.Int64, total), all: make(chan struct{}),
	}
}

func (r *recorder) now() int64 { return int64(time.Since(r.base)) }

// expect returns a channel that is closed when n more operations are done.
func (r *recorder) expect(n int) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target = r.count + n
	r.all = make(chan struct{})
	return r.all
}

func (r *recorder) dueAt(i int, t int64) { r.due[i].Store(t) }
func (r *recorder) acceptedAt(i int)     { r.accepted[i].Store(r.now()) }

func (r *recorder) ranAt(i int) {
	if i >= 0 && i < len(r.ran) && !r.ran[i].CompareAndSwap(0, r.now()) {
		r.repeats.Add(1)
	}
}

func (r *recorder) visibleAt(i int) {
	if i >= 0 && i < len(r.visible) {
		r.visible[i].CompareAndSwap(0, r.now())
	}
}

func (r *recorder) doneAt(i int) {
	if i < 0 || i >= len(r.done) {
		return
	}
	if !r.done[i].CompareAndSwap(0, r.now()) {
		r.repeats.Add(1)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count++; r.count == r.target {
		close(r.all)
	}
}

// percentiles are of durations, in milliseconds.
type percentiles struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func percentilesOf(ns []int64) percentiles {
	if len(ns) == 0 {
		return percentiles{}
	}
	slices.Sort(ns)
	at := func(q float64) float64 {
		return round(float64(ns[min(int(q*float64(len(ns))), len(ns)-1)])/1e6, 2)
	}
	return percentiles{at(0.50), at(0.90), at(0.99), round(float64(ns[len(ns)-1])/1e6, 2)}
}

// between lists to[i]-from[i] of the first n operations that have both times.
func between(from, to []atomic.Int64, n int) []int64 {
	out := make([]int64, 0, n)
	for i := range n {
		if f, t := from[i].Load(), to[i].Load(); f > 0 && t > 0 {
			out = append(out, t-f)
		}
	}
	return out
}

// chainSteps lists, for each operation, how long after its request or its predecessor's end, whichever was later, it was
// done, and counts those that ran before their predecessor did.
func (r *recorder) chainSteps(keys, length int) (steps []int64, disorder int) {
	for k := range keys {
		for s := range length {
			i := k*length + s
			from, done := r.due[i].Load(), r.done[i].Load()
			if s > 0 {
				from = max(from, r.done[i-1].Load())
				if r.ran[i].Load() < r.ran[i-1].Load() {
					disorder++
				}
			}
			if done > 0 {
				steps = append(steps, max(done-from, 0))
			}
		}
	}
	return steps, disorder
}

func lastOf(ts []atomic.Int64) int64 {
	var last int64
	for i := range ts {
		last = max(last, ts[i].Load())
	}
	return last
}

func round(x float64, digits int) float64 {
	p := math.Pow10(digits)
	return math.Round(x*p) / p
}

// ticksPerSecond is the kernel's USER_HZ, 100 on every Linux that Go runs on.
const ticksPerSecond = 100

// cpuTimes are CPU seconds used so far. Where there is no /proc, only those of this process are known.
type cpuTimes struct{ self, servers, machine float64 }

func readCPU(servers []int) cpuTimes {
	var t cpuTimes
	var ru syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &ru) == nil {
		t.self = time.Duration(ru.Utime.Nano()).Seconds() + time.Duration(ru.Stime.Nano()).Seconds()
	}
	if len(servers) > 0 {
		t.servers = treesCPU(servers)
	}
	stat, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(stat), "\n")
	for i, f := range strings.Fields(line) {
		if i == 0 || i == 4 || i == 5 || i >= 9 { // the name; idle; waiting for disks; guests, which are user time already
			continue
		}
		ticks, _ := strconv.Atoi(f)
		t.machine += float64(ticks) / ticksPerSecond
	}
	return t
}

func (t cpuTimes) minus(u cpuTimes) cpuTimes {
	return cpuTimes{t.self - u.self, t.servers - u.servers, t.machine - u.machine}
}

// treesCPU is the CPU time of processes, of their living children, and of the children that they have waited for.
func treesCPU(roots []int) float64 {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	ticks := 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended meanwhile
		}
		_, rest, ok := strings.Cut(string(b), ") ") // what follows the command, see proc(5)
		v := strings.Fields(rest)
		if !ok || len(v) < 15 {
			continue
		}
		n := func(i int) int { x, _ := strconv.Atoi(v[i]); return x }
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if slices.Contains(roots, pid) {
			ticks += n(11) + n(12) + n(13) + n(14)
		} else if slices.Contains(roots, n(1)) {
			ticks += n(11) + n(12)
		}
	}
	return float64(ticks) / ticksPerSecond
}

// peakMiB is the highest resident memory that this process had.
func peakMiB() float64 {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return round(kib/1024, 1)
		}
	}
	var ru syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &ru) == nil {
		return round(float64(ru.Maxrss)/1024, 1)
	}
	return 0
}

// Package worker runs handlers: it is the library with which a team serves operation types in Go.
//
//	w, err := worker.New(worker.Config{
//		Brokers:  []string{"localhost:9092"},
//		Handlers: map[string]worker.Handler{"send-mail": worker.HandlerFunc(sendMail)},
//	})
//	…
//	err = w.Run(ctx)
//
//	sessions ◀── heartbeat ─────────────────────┐
//	                                            │
//	inboxes ──▶ take ──▶ memory ──▶ slots ──▶ router: ours, correlation, the team's middlewares ──▶ handler
//	               │        │         │                │
//	               │     known:     busy:              │ result, error, yield, panic
//	               │     answer     queue, give back   ▼
//	               └─ cancel, pause ─────────────▶ reports ──▶ the journal's partition
//
// # What a handler may rely on
//
// An attempt is run once, by one session. Its context ends with a cause: [ErrCancelRequested], [ErrPauseRequested],
// [ErrTimeLimit], [ErrLeaseLost] or [ErrStopping]. After that only success and a yield are still heard, because an error is
// then most likely an echo of the cause; after ErrLeaseLost nothing is. What is returned decides what becomes of the operation:
//
//	returned                         after cancel   after pause   at the time limit   while stopping   else
//	nil, with a result               succeeds       succeeds      succeeds            succeeds         succeeds
//	YieldUntil, YieldFor             canceled       paused        waits               waits            waits
//	Canceled                         canceled       paused        tried again         given back       canceled
//	Final, Suspend, Retry, error     canceled       paused        tried again         given back       as it says
//	panic                            canceled       paused        tried again         given back       tried again
//
// A process that was frozen may run a few more instructions of an attempt that was given up meanwhile. What a handler does
// to the outside should therefore carry [Operation.IdempotencyKey], which fences attempts, or [Operation.OperationKey], which
// is the same for all of them.
//
// # Sessions
//
// A Worker lives as one session after another. A session has a random id, reads the one partition of the inboxes that its
// id falls on, from the end that it had before the first heartbeat, and remembers the places that it was told of, by the rules
// of the design's protocol (see memory.go). It counts its lease from before it sent the last heartbeat that was acknowledged;
// the scheduler counts from when it read it. So the session always ends first: contexts end, nothing is started or reported,
// its client is closed with whatever it still held, and a new session begins under a new id. The lease is checked by a timer,
// before a handler starts, and before a report is handed to the client, by the monotonic clock and by the wall clock,
// whichever has gone further, since the first stands still while a machine sleeps.
//
// A session tells its room, Slots and Queue. What cannot start within Patience is given back, as another worker may be idle. A
// handler that does not return within ReturnGrace of its time limit is given up: the attempt is reported without it, the slot
// stays taken, and the heartbeats tell less room. The next attempt may then run beside it, here or elsewhere.
//
// At a stop the session says that it drains, gives back its queue, lets handlers run for StopGrace, ends their contexts, waits
// for ReturnGrace, flushes its reports, and says goodbye. An attempt whose handler still runs then is not given back but left
// to the end of the lease, which burns a failure: to say that it does not run would be a lie.
//
// # Watermill
//
// Handlers run through Watermill's router: the session is its Subscriber, with the operation types for topics, and a message is
// an attempt (UUID: the idempotency key; payload: the data; metadata: organization, operation_id, attempt, correlation_id).
// Config.Middleware takes any of its middlewares. What the router costs was measured by calling the same chain
// without it: 1 to 2.5 µs of CPU and 13 allocations of an operation's 13.5 µs and 59 in BenchmarkWorker, which leaves it within
// the worker's budget of 15 µs. Panics, time limits and reports are not
// left to the router's acks, because an outcome is more than yes or no: a middleware of ours outside of all others ends the
// attempt with what the chain returned. A middleware that swallows the handler's error (Poison, IgnoreErrors, Deduplicator)
// thereby makes the operation succeed, and Retry tries again within the attempt, unseen by the retry policy.
//
// # Cost
//
// One client, one timer and one mutex serve a session. Nothing is scheduled for an attempt that ends within 50 ms: starts stand
// in a list whose head alone is looked at. Reports are produced without waiting and batch themselves. BenchmarkWorker measures
// the CPU of the worker alone, with broker and feeder in another process.
package worker

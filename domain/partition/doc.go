// Package partition decides which operation of one partition of the journal may run, when, and where: the engine over
// package operation.
//
// An [Engine] holds the live operations of a partition and what follows from them: the chains of dependency tokens, the
// queues of ready operations, the timers, and the window of ids that are known to have ended. All of that is a function of
// the journal, so a recovered engine equals the one that crashed ([Engine.Checkpoint], [Engine.Restore], [Engine.Replay]).
// What it knows of worker sessions (room, leases) is not: that comes from heartbeats and is learnt again.
//
// # Steps
//
// The scheduler's actor calls [Engine.Do] for every input, [Engine.Hear] for heartbeats and [Engine.Settle] at the end of
// a batch, and appends the events of [Engine.Take] to the journal. The engine applies them at once; when the append turns
// out void, the actor throws the engine away and recovers another one.
//
// # Any prefix is a legal history
//
// A crash may cut a step's events anywhere. What an engine does beyond answering an input (releasing a chain's next
// operation, dispatching) is therefore always derived from its state, in settleChain and dispatch, never remembered. An
// input counts as read when an event names it as its cause; Started alone does not count, because the event that follows
// it for the same input may be cut off. An input that led to no event (a report that is an echo) leaves no trace, so it is read
// again after a crash; it changes no operation then either, but may be refused by now. What a crash cut off of a chain's
// next step is done before the first input that is read after it, as it was done before it the first time.
//
// # Chains
//
// The operations of one organization with the same dependency token form a chain. One of them, the holder, may run; the
// others wait in the order of their requests, each behind the live member before it. A predecessor that fails or is canceled releases, blocks or cancels the next
// one as that one's own policy says (spec section 5.3). A failed operation that is retried by hand takes its old place
// among those that wait. A block is lifted by a person, by a retry or the deletion of what caused it, and by nothing else;
// resuming lifts it only when no earlier member is live.
//
// # Places left for later rules
//
// Limits would be asked in dispatch (an operation over its limit is set aside as StatusReady with WaitLimit); a paused
// service, organization or type likewise. Dependencies across partitions are one more hold that a signal lifts.
// Recurrence is a series' own operation whose due time submits occurrences.
package partition

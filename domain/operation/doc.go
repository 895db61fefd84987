// Package operation decides what may happen to an operation, and what it then is.
//
// An operation is one system job of the CRM (the original's asyncoperation). [Decide] answers a [Command] with events or
// with a [Rejection]; [State.Apply] is the only function that changes a state. Both are pure, and both look at one operation
// only: chains, queues, sessions and timers belong to package partition, whose findings reach the operation as commands
// (Release, Due, Dispatch, LoseLease …).
//
// The states and codes are the original's (spec section 3). Where the original only says "Waiting" (status 10), [State.Wait]
// gives the reason. The whole machine stands on one screen in testdata/matrix.golden.
//
// # Holds
//
// An operation that waits may wait for several things at once: paused by a person, behind a predecessor in its chain, and
// not before noon. Each is a hold; it is ready when none is left. So lifting one never forgets another.
//
// # Attempts
//
// Every dispatch has its own number (Attempt), which fences reports and outside effects. What the retry policy counts are
// Failures: an attempt that is given back burns none.
package operation

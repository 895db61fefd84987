// Package scheduler runs package partition's engines over Kafka: one actor for each partition that this process owns.
//
//	requests ─┐             ┌─ decide ─▶ seal ─▶ append ──────▶ journal
//	reports  ─┼─▶ actor ────┤                      │ acknowledged, at its place
//	signals  ─┤             └─ outbox ◀────────────┘
//	sessions ─┘                  └─▶ inboxes (offers, cancel, pause), signals (forwarded requests)
//
// # Promises
//
//   - An append counts only at the place it was decided for and with the chain that its writer knew (schemas.Chain). An
//     actor that finds its append elsewhere, or does not learn what became of it, drops all it knows and recovers.
//   - Effects leave after the commit, made from committed events, and are made again: items of open attempts by
//     partition.Engine's Overdue and after a recovery, signals from the effects mark of the last checkpoint on.
//   - The consumer group on requests decides only who should own a partition. Two owners at once do no harm.
//   - Silence of a session counts only as far as the heartbeats are known to be read (Engine.HeardThrough), so a scheduler
//     that was frozen does not take its own deafness for the workers' death. Where the log has lost heartbeats before they
//     were read, every session is granted another lease. Nor does it count before the reports are read that were on the log by
//     then: what a session has done before it ended is not run again.
//
// # Who does what
//
// One client produces for all partitions, so that a request to the broker carries the appends of many; one client fetches
// for all, and another one the heartbeats; a fourth only holds the membership. The goroutine that polls also changes what is fetched ([fetcher]), so that
// records of an old position can never be taken for those of a new one.
package scheduler

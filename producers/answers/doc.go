// Package answers puts commands on the log and hears in the journal what the scheduler made of them.
//
// A [Client] reads the end of every partition of the journal, one reader for a process, from where it stood when the client was
// made: before the first command, so that no answer can pass unseen. The answer to a command is the first valid event whose
// cause is the command's record ("requests/<offset>", in the partition of the same number).
//
// # What it costs
//
// A process that only answers requests sees the journal of all. A record that nobody waits for costs one check of the
// chain, which nobody can be spared: whether a record counts depends on the one before. When somebody waits, headers are
// read; bodies are read by whoever waited for them, in his own goroutine.
//
// # The order of answers
//
// The scheduler reads the requests of a partition in order and answers each before the next. So commands under way form a
// queue, ordered by offset, and an answer to a later one says that an earlier one will never be answered. The answer may come
// before the broker has told where the command landed; while any command of a partition is in that state, answers that nobody
// waits for are kept until its offset is known.
//
// # Beginning in the middle
//
// Whether a record counts is known to whoever has read the chain from its beginning. A reader that begins at the end takes
// one of the last records at its word, and the rest follows. If a stale writer's leavings stand just there, it may believe
// those; it changes over to the other history when that grows longer, and commands whose answers it overlooked end as
// [Unheard]. This holds for the first records only: after some that continue one another the matter is settled.
package answers

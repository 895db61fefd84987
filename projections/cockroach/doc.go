// Package cockroach keeps the tables of package projections in CockroachDB (23.2 or newer) or PostgreSQL (15 or newer), for
// installations whose API and projectors run in processes of their own, any number of each.
//
// # One SQL
//
// Both databases take all statements here; [dialect] has the few things that differ, and says why. Texts of callers (ids,
// organizations, tokens) may hold anything, a NUL or bytes that are not UTF-8, which neither database takes in a column of
// text: the state is one string of bytes, as in package sqlite, and the columns that lists search by are numbers and hashes.
// What is found by a hash is compared in full before it is shown.
//
// # No hot ends
//
// Keys and times only grow, and in CockroachDB neighbours live in one range on one node: an index that begins with either
// would have the whole installation write to one place. So every key begins with what is spread evenly: a hash, or the bucket,
// which is a function of the operation's key. The number of buckets is fixed when the tables are made: 8 in CockroachDB, and 1
// in PostgreSQL, where an index that grows at its end is the cheapest that there is. A list walks along an index in all
// buckets at once and merges. Positions alone are a few rows in one place: there is one for a partition, written once a batch.
//
// # Rows that change
//
// An operation is written at its request and when it has ended, at least. In PostgreSQL a new version of a row is a new entry in every
// index, unless no indexed column has changed and there is room on its page. So what changes is in no index of the operations: statuses
// have a table of their own, which is short, because nearly all have succeeded, and these it leaves out. That halved what PostgreSQL spends on
// an operation. Positions say up to where that table was kept: a version from before it, which may write during a rolling change, does
// not. Lists then go another way, and the next batch of this version makes it anew.
//
// # A batch
//
// A batch is one transaction of a few statements, however many operations it has: rows travel in arrays, and all
// statements in one round trip. It begins with a lock on the rows of the positions that it moves, in the order of the
// partitions, and goes on only if they stand where the batch begins. So of two projectors that write the same partition one
// waits, and then finds the position moved, under READ COMMITTED as under SERIALIZABLE; nothing that a batch writes is
// written by anybody who does not hold the position. The counts, over which all partitions meet, are kept in parts: a
// batch adds to the part of the first partition that it holds.
//
// A try has a time limit, see [patience]: a connection can be dead without a word. The transaction that the server then still holds ends by
// its own limit, and its locks with it.
//
// What became of a COMMIT whose answer was lost is never guessed: the batch is tried again, and the lock tells. If the
// positions are where the batch leads to, it was written.
package cockroach

// Package projections keeps tables that answer questions; any of them can be dropped and rebuilt.
//
// The journal is the truth, and the tables are a fold of it. [Projector] folds batches of journal events through
// operation.State.Apply, the function that live work and recovery use too, into a [Batch]: one row for each operation that
// changed, however many events it had, its events, the counts that moved, and the positions that the batch leads to. A
// [Store] writes a batch in one transaction, and only if it stands where the batch begins, so that a batch that comes
// twice, or from a second projector, changes nothing. [Verify] folds the whole journal again, in another way, and compares.
//
// # What is kept
//
// An operation's row is its state ([Row]); its history is its events without the payload of the request, which is in the
// row. Answers (rejected, unchanged) about an operation stand in its history. A rejected command about an operation that the
// tables do not have stands in the table of rejections, which is never trimmed: refusals are rare, and they are what people
// ask about. The table can be rebuilt like the others, and the journal could not be shortened by trimming it.
//
// When an operation is deleted its row and history go, as in the original, where the logs go with the job. The journal
// keeps all.
//
// # Identity
//
// Organization and id name an operation to people. The tables know it by its [Key], partition and place of its request,
// because the same id can come twice: in another partition, when a caller changes the dependency token, or in the same one,
// long after the first has ended and is forgotten by the scheduler. [Store.Get] returns the latest.
package projections

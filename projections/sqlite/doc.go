// Package sqlite keeps the tables of package projections in a SQLite file, for the embedded mode.
//
// # Why the tables look as they do
//
// Writing must cost less than 15 microseconds for an operation, and with SQLite the cost is in columns, in indexes and in
// statements. So an operation is one row with few columns: small integers that lists search by, and the state as one string of
// bytes. What is long is not in an index, only its hash; what is found by a hash is compared in full before it is
// shown. Most operations begin and end in one batch, or in two: the events of the first batch stand in the row, so that
// such an operation is one row of one table.
//
// There are six indexes and the table of ids, and an operation without token and correlation id that succeeds in one batch is
// in four of them: by id, by creation, by organization and by type, of which all but the first grow at their ends; what is done
// about the first is in ids.go. There is none by time of modification, which every write would change: a list over a range of
// it walks by creation. A walk looks at a bounded number of rows and then gives a short page with a cursor.
//
// # One writer
//
// All writes go through one connection, readers have others and are never kept waiting (WAL). Without Options.Sync a power
// cut may lose the last batches, never the order: the positions are in the same transaction, and the projector reads the
// journal again from there.
package sqlite

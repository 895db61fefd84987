// Package schemas turns domain values into bytes and back, for as long as the log lives.
//
// Every message is a CloudEvents 1.0 event in a Kafka record: attributes in ce_ headers (binary mode), JSON in the value.
// The topic requests is also read in structured mode, because producers of other makes write there. The names on the wire
// are literals with a version in registry.go; json/<topic>/<type>.json is the schema of each, asyncapi.yaml the map of the
// topics, and testdata/golden what every version looks like, byte for byte.
//
// # What is wrong with a record
//
// A [DecodeError] says that the bytes are no message of ours: the record goes to the topic deadletter. A [Refusal] says that
// the message can be read and asks for something that cannot be: it is answered in the journal. Neither stops a reader.
//
// # Two versions at once
//
// An installation is brought up to date one process after the other, so for a while each version reads what the other writes. Events
// and messages therefore only ever gain optional members, and every reader, ours included, skips members that it does not know. Only
// in a request, or another command from outside, are they refused: there a member that nobody knows is most likely misspelt.
//
// A member is optional when an older reader may do without it: its tables and its checkpoints do not keep it, so what was written
// while it took part lacks it. (The bytes of a request are kept whole by everyone, and so is the journal.) What an older reader
// must not miss is no optional member: it gets a new type or a new version of its type, which an older reader refuses, so that a partition, or a
// projection, stands still until it is brought up to date rather than go wrong. Such a version needs two releases: one that
// reads it, and one that writes it.
//
// # Memory
//
// Nothing that a decoder returns shares memory with the record it came from: a record pins the whole batch it was fetched
// with, and operations wait for months.
//
// # The chain of the journal
//
// [Chain] is the one function that tells valid records of the journal from void ones, for writers and readers alike.
package schemas

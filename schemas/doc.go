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
// # Who may be lax
//
// Events and messages only ever gain optional members. A foreign reader of the journal must therefore skip members that it
// does not know. Our own decoders refuse them: a member that a scheduler or projector of an older version skipped would be
// lost in its tables without a trace, whereas an error stops it until it is brought up to date.
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

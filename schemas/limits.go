package schemas

import "time"

// Limits of what is taken from outside. They are generous to honest callers and keep memory bounded with others.
const (
	MaxRequestBytes    = 1 << 20   // value of a record on requests
	MaxReportBytes     = 4 << 20   // value of a record on reports: all that the limits below allow, escaped
	MaxDepth           = 64        // nesting of JSON; it counts from the request or command, or from a result, checkpoint or progress
	MaxResultBytes     = 256 << 10 // result of an attempt
	MaxCheckpointBytes = 256 << 10 // checkpoint of an attempt
	MaxProgressBytes   = 64 << 10  // progress of an attempt
	MaxMessageChars    = 100_000   // texts of a failure; longer ones are cut
	MaxHeaders         = 100       // headers of a record
	MaxHeaderBytes     = 1024      // value of one ce_ header
	MaxID              = 128       // bytes of an operation's id, of a command's id
	MaxOrganization    = 128       // bytes
	MaxText            = 256       // bytes of any other text of a request
	MaxReason          = 2000      // bytes of the reason that a person gives
	MaxDuration        = 87_600 * time.Hour
	MaxLease           = time.Hour // of a session; schedulers pass over the heartbeats of one that may be silent for longer

	// MaxBatchBytes is what topics take in one batch: the largest request in a checkpoint, with everything else an
	// operation can hold, fits in.
	MaxBatchBytes = 8 << 20

	maxOwnBytes = MaxBatchBytes // value of a record that only we write
	maxOwnDepth = MaxDepth + 16 // its nesting: values from outside, within objects of ours
	// Nesting of a report: so that whatever CheckJSON lets pass can be reported.
	maxReportDepth = MaxDepth + 8
)

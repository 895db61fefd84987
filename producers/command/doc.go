// Package command puts commands on the log for callers of the HTTP API, and answers them with what became of the command.
//
// It needs the log and nothing else. The tables are a convenience: they find the partition of an operation whose token the
// caller does not name, and they wait for an effect with Prefer: wait. With the tables down, submissions work as ever, and
// so do commands whose caller gives the token or key, or whose operation has neither.
package command

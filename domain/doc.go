// Package domain is the root of opstream's pure core: what an operation may do (operation), when it may do it (partition),
// how often it is tried (retry) and which kinds there are (optype). Nothing below it does I/O, reads a clock, rolls dice or
// logs: time, ids and chance come in as arguments, so that the same code serves live work, recovery, projections and audit.
package domain

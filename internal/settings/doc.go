// Package settings finds the value of every option of a program from one table: a default, a file, the environment, the
// command line; whichever of them speaks last.
//
// An option has one name. In the file it is the key, on the command line the flag, and in the environment it is written in
// capitals with underscores behind a prefix: lease, --lease, OPSTREAM_LEASE.
//
// Whoever starts a program with a wrong configuration wants to hear of everything that is wrong with it, once. So nothing here ends at
// the first fault: [Resolve] returns them all, each with the place where the value came from and what was expected there.
//
// A secret is given as a reference, file:/path or env:NAME, or as itself where only its owner can read it. It is never
// printed: see [Secret] and [Option.Shown].
package settings

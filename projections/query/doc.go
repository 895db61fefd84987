// Package query answers questions about operations over HTTP: what there is, where each stands and why, how it got there,
// how many there are, and what changes now. It also serves the page at "/".
//
// It reads the tables through projections.Reader and changes nothing. Every answer tells which positions of the journal it
// shows at least and how old that is; ?after= waits for a position, so that a caller reads its own writes.
//
// # Updates
//
// A [Feed] takes each batch that the projector has written and hands it on to those who listen. A listener has a bounded
// buffer; one that does not keep up is dropped and told so, and the others do not notice. What a listener missed while it
// was away is sent from a ring of the latest changes, and when that does not reach back far enough it is told to read the
// list again. Nothing is ever lost silently.
//
// Where other processes write the tables, or several do, a [Follower] takes the projector's place: it hears the journal, which the
// API's process reads in any case, and reads from the tables what has changed when they hold it. [Polled] asks the
// database how far they are, while somebody waits.
package query

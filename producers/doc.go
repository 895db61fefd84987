// Package producers puts requests and commands on the log and says when they are safe.
//
// It is what a CRM core written in Go uses: [Client.Request] asks for an operation, [Client.Cancel] and its siblings give
// commands on one. Each returns when every in-sync replica of the broker has the record. That it is accepted is the
// scheduler's word, and stands in the journal; package answers waits for it.
//
// # Once
//
// A request is sent at least once, and the id that the caller brings is its idempotency key: a second copy is answered by the
// first and starts nothing. So whoever cannot tell whether a request got through ([ErrUnknown]) sends it again under the
// same id. That is why there is no way to leave the id out: one that was made here would be another one at the next try.
//
// # Together with the business transaction
//
// What an event of the CRM asks for must be asked if and only if the event's transaction commits. No call of this package can
// be part of a database transaction: made before the commit it may ask for what is then rolled back, made after it, it may
// never be made. The way out is an outbox: write the [Request] as a row in the same transaction, id included; a relay reads
// the rows in order, passes them to [Client.RequestAsync], and deletes each when its callback says that it is safe. A relay
// that dies in between sends some rows twice, which the ids make harmless. Order within a dependency token is the order in
// which the relay sends.
//
// # Errors
//
// Every error is an *[Error] and says what to do next: errors.Is(err, [ErrRetry]) holds when the same call may succeed
// later, errors.Is(err, [ErrGiveUp]) when something has to be changed first.
package producers

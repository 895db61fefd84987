// Package noop is a handler that does nothing but what its data asks for: it measures what the rest of the system costs,
// and shows what becomes of an operation that waits, fails, or panics.
//
// An operation without data succeeds at once, without a result. This one fails twice, each time after a fifth of a second,
// and then succeeds:
//
//	{
//	  "id": "demo-1",
//	  "organization": "contoso",
//	  "type": "noop",
//	  "data": {"sleepMs": 200, "fail": "not yet", "failTimes": 2, "class": "retry", "result": {"rows": 3}}
//	}
//
// The members of data are all optional, and others are refused, unless the handler stands in for that of another type:
//
//	sleepMs    waits for so many milliseconds first, at most a day
//	fail       fails with this message
//	failTimes  fails only while so few attempts have failed before; without it every attempt fails
//	class      what the failure means: fail, retry (the default), suspend
//	panic      panics instead of failing
//	result     the result of success, any JSON
package noop

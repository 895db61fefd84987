// Package webhook runs asynchronous plug-in steps (operation type system-event) as HTTP calls, and helps their receivers
// to tell a true call from a false one.
//
// The operation
//
//	{
//	  "id": "7d9f1f2e-0001",
//	  "organization": "contoso",
//	  "type": "system-event",
//	  "data": {
//	    "url": "https://hooks.example.com/crm/account-created",
//	    "secretName": "account-hooks",
//	    "payload": {"account": "A-17"},
//	    "headers": {"X-Team": "sales"},
//	    "timeoutSeconds": 10
//	  }
//	}
//
// becomes a call that is a CloudEvents 1.0 event in binary mode, signed as Standard Webhooks 1.0 says:
//
//	POST /crm/account-created HTTP/1.1
//	Host: hooks.example.com
//	Content-Type: application/json
//	Ce-Specversion: 1.0
//	Ce-Id: 7d9f1f2e-0001
//	Ce-Source: /organizations/contoso
//	Ce-Type: opstream.plugin.execute.v1
//	Ce-Time: 2026-11-23T08:00:00Z
//	Webhook-Id: contoso/7d9f1f2e-0001
//	Webhook-Timestamp: 1795420800
//	Webhook-Signature: v1,…
//	Idempotency-Key: contoso/7d9f1f2e-0001
//	Opstream-Attempt: 1
//	X-Team: sales
//
//	{"account": "A-17"}
//
// The members of data; others are refused:
//
//	url             https, or http where the worker's configuration allows it; no user, password or fragment
//	method          POST (the default), PUT or PATCH
//	headers         further headers; not those above, nor those of the connection, nor credentials
//	payload         the body, any JSON, sent as it was given but for white space between its tokens; without it the call has no body
//	secretName      what Config.Secrets finds the signing keys by; without it the call is not signed
//	timeoutSeconds  bounds the whole call; up to Config.MaxTimeout
//	type            Ce-Type, instead of the default
//	subject         Ce-Subject; the default is the record that the operation regards, as type/id, if it regards one
//
// The secret itself is never in data: an operation's data stays in the log, and is shown to people.
//
// # What an answer means
//
//	2xx                        success; the result has the status, and the answer if it is JSON of at most 64 KiB
//	3xx                        final: redirects are not followed
//	401, 403, 407              suspends until a person has mended the credentials
//	408, 425, 429              tried again
//	410, other 4xx             final
//	5xx                        tried again
//	none, or not in time       tried again
//	a bad certificate          suspends
//	an address that is shut    final
//
// A bad certificate suspends because neither of the other two helps: the seconds of a retry policy mend no certificate, and
// an operation that has failed would have to be found and started by hand once the receiver's people have renewed it.
//
// Where trying again would help and the receiver says by Retry-After when, the operation waits for that, up to an hour, and
// burns no attempt. It does so ten times at most, counted in the checkpoint as {"yields": n}; then the answer is an
// ordinary failure, and the retry policy brings the operation to its end. A wait of up to a second is left to the policy.
//
// # For receivers
//
// A call may arrive more than once: when an answer was lost, or a worker was. [Verify] says whether a call is genuine and
// returns its Webhook-Id, which is the same in every attempt: remember the ids that were dealt with, and answer a second
// one as the first. Idempotency-Key says the same to receivers that know that header: as its other users have it, the key
// stands for the work and is the same whenever the call is tried again. Opstream-Attempt is the attempt's number, which only
// grows: whoever refuses a number below the newest that it has seen is safe from a worker that was frozen and wakes too
// late. A frozen worker's call is refused by its timestamp, too, once it is older than the tolerance.
//
// In Webhook-Id a full stop and whatever is not printable ASCII is written as percent and two digits, so that what is
// signed can be read in one way only. The other headers are encoded as the HTTP binding of CloudEvents has it.
//
// # Safety
//
// The URL is a stranger's. Whatever its name resolves to is looked at when the connection is made, so a name server that
// answers in turns gets nowhere: loopback, private, link-local, carriers' and other special ranges are shut, in every way
// that IPv6 can wrap them, unless [Config] opens them. Proxies of the environment are not used, since they would be what is
// looked at. The answer's size is bounded, and what is shown of it is cleaned.
package webhook

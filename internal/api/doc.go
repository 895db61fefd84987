// Package api is the contract of opstream over HTTP: the OpenAPI document, the shapes of its answers and problems, the
// layer that serves a table of routes strictly, and the client.
//
// openapi.yaml is written by hand and comes first. The routes are served by the package that can answer them, commands by
// producers/command and reads by projections/query; neither knows the other. Each shows with package apitest that it serves
// exactly what the document promises of it: every path, method, parameter and status, and nothing else.
//
// # Why nothing is generated
//
// Three of the answers are streams (JSON Lines both ways, and server-sent events), path parameters may hold any character,
// and every fault has to come out as the same kind of problem. A generator's server would have been bypassed at each of
// these places, and would have brought a runtime dependency for what remains: a table of some twenty routes.
//
// # What holds for every answer
//
// An answer to a command carries the position that it led to in the journal (header Opstream-Position). A read takes
// positions to wait for (?after=) and tells which positions it shows and how old that is (Opstream-As-Of, Opstream-Lag-Ms).
// Whatever goes wrong is an RFC 9457 problem from one table ([Kinds]), which says who failed, the caller, the handler or
// the service, whether the same request may succeed later, and what to do next.
package api

// Package handlers is the parent of the handlers that opstream brings along, one package each. They use nothing of the
// worker but what every handler may use, so each is also an example of how to write one.
//
//	noop       does nothing, or what its data asks for: for measuring, demonstrations and tests of what follows
//	webhook    asynchronous plug-in steps: a signed HTTP call that is safe to let a stranger choose the address of
//
// A handler of its own is worth a package here when it serves many installations. Everything else lives with its team, who
// give it to the worker in the same way.
package handlers

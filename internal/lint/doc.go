// Package lint reads the project's source and says where it breaks the rules that hold the project together: which
// folder may import which, what the pure core may not call, what a comment must justify, and which words have no place in
// a file.
//
// Each rule is a function from a Tree to Findings. It looks at syntax alone, so that it runs in milliseconds, on code that
// does not compile yet, and needs no tool. The tests run every rule over this repository, and every rule over small trees
// that break it, because a rule that finds nothing may as well be a rule that looks at nothing.
//
// What must be justified is justified by a comment that ends on the line before the statement, or before the call itself:
//
//	// sleep: the file system's clock has a resolution of one second
//	time.Sleep(time.Second)
//
//	sleep:      a call to time.Sleep outside of a synctest bubble
//	detached:   context.Background in a library: work that must go on when the caller's context ends
//	invariant:  a panic: what can only be false when the program itself is wrong
package lint

//go:build simulation

package safeguard

// The safeguards that a test has switched off.
var NoPlace, NoReread, Early, NoResend, NoMemory, NoFence, Split bool

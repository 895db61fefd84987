//go:build !simulation

// Package safeguard lets the simulation switch single safeguards off, to see that it finds the damage: a check that has never
// found anything may be one that cannot. Without the build tag simulation all of it is constant and false, and costs nothing.
package safeguard

const (
	// NoPlace makes records of the journal count wherever they landed.
	NoPlace = false
	// NoReread makes the scheduler guess that an append which was not answered has landed.
	NoReread = false
	// Early makes effects leave before the append is acknowledged.
	Early = false
	// NoResend makes effects leave once.
	NoResend = false
	// NoMemory makes sessions forget what they ended.
	NoMemory = false
	// NoFence makes sessions go on when their lease has run out.
	NoFence = false
	// Split makes the tables take positions in a transaction of their own.
	Split = false
)

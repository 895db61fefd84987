//go:build !simulation

package partition

// noDedupe makes a request whose id is known start another operation. Only the simulation sets it, under its own build tag, to
// see that it finds the damage.
const noDedupe = false

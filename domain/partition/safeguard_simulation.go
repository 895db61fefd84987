//go:build simulation

package partition

var noDedupe bool

// ForgetIDs makes engines take every request for a new one, once the operation of its id has ended.
func ForgetIDs(forget bool) { noDedupe = forget }

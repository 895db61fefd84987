// Package homedir is there for tests of Helm's own, which are never run here.
package homedir

// HomeDir is nowhere.
func HomeDir() string { return "" }

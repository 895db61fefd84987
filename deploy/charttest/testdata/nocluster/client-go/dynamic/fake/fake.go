// Package fake is empty: a test of the engine, which is never run here, imports it.
package fake

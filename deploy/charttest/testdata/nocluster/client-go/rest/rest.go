// Package rest has the one name that Helm's engine takes from the package of Kubernetes whose place it takes.
package rest

// Config would say how a cluster is reached.
type Config struct{}

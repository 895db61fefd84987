// Package scheme is an empty register of Kubernetes's types: the tests name the versions that a cluster has.
package scheme

import "k8s.io/apimachinery/pkg/runtime"

// Scheme is the register.
var Scheme = runtime.NewScheme()

// AddToScheme leaves a register as it is.
func AddToScheme(*runtime.Scheme) error { return nil }

// Package charttest renders the Helm chart with Helm's own loader, schema check and engine, and reads what comes out as
// Kubernetes would.
//
// It is a module of its own, so that nothing of Helm gets into the program's. Helm's engine can ask a cluster, for which it
// needs all of Kubernetes's client; a chart that is tested has no cluster, and go.mod puts the few names that the engine
// uses of it, from testdata/nocluster, in the client's place. That takes two thirds of the time that the build would take.
package charttest

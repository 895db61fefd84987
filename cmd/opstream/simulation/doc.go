// Package simulation runs the whole system with a broker in memory inside one testing/synctest bubble, breaks it as a seed says,
// and judges what came out of it by what can be seen from outside.
//
// # The world
//
// A seed makes a [Plan]: how many schedulers, workers, projectors and clients there are, which operations the clients ask for
// and what they command afterwards, how each handler behaves in each attempt, and which faults happen when. [Run] carries it
// out. Every part runs on a host of its own, with a network that can be cut, held and delayed, and with a clock that is minutes
// off and jumps. A crash takes the network away first, so that nothing of what the process does while it falls is heard;
// what it had sent may be lost, or arrive long after.
//
// At the end there is a quiet phase: the faults are over, everything is running, what people have paused is resumed, and all
// operations have to end within a bound.
//
// # The judgement
//
// It knows the guarantees of the design and observations, nothing of the system's insides: what clients were answered, when
// handlers ran, the bytes of the journal, and the tables. See check.go.
//
// # How far a seed repeats
//
// The plan is a function of the seed alone. Random ids come from a generator that the test seeds, and time is virtual. What is
// left to chance is the order in which goroutines run that are ready at the same moment, and the choices of the Kafka client's
// own dice (back-off, jitter); with one processor, which the tests set, most failures come again at the same seed, not all.
package simulation

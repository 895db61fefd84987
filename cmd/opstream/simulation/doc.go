// Package simulation runs the whole system with a broker in memory inside one testing/synctest bubble, breaks it as a seed says,
// and judges what came out of it by what can be seen from outside.
//
//	go test ./cmd/opstream/simulation                               as many seeds as fit into 20 s
//	OPSTREAM_SIM_SECONDS=28800 go test -timeout 0 …                 a night
//	OPSTREAM_SIM_SEED=17 go test … -run TestSeeds                   one seed, with its history
//	OPSTREAM_SIM_FIRST=2 OPSTREAM_SIM_STEP=2 go test …              every second seed; another process has the others
//	go test -tags simulation … -run Checker                         does the judgement see what is broken?
//
// # The world
//
// A seed makes a [Plan]: how many schedulers, workers, projectors and clients there are, which operations the clients ask for
// and what they command afterwards, how each handler behaves in each attempt, and which faults happen when. [Run] carries it
// out. Every part runs on a host of its own, with a network that can be cut, held and delayed, and schedulers, workers and clients
// have wall clocks that are minutes off and jump. A process with the roles projector and api serves the real routes; clients
// speak HTTP to it, listen to its stream, and use the libraries for producers beside that. Some tables have two writers. A crash takes the network away first, so that nothing of what the process does while it falls
// is heard; what it had sent may be lost, or arrive long after. A trip is a crash at one of the process's next requests, right
// before or right after it: that is how the moments between two steps are met, which chance alone would miss.
//
// At the end there is a quiet phase: the faults are over, everything is running, what people have paused is resumed, and all
// operations have to end within a bound.
//
// # The judgement
//
// It knows the guarantees of the design and observations, nothing of the system's insides: what clients were answered, when
// handlers ran, the bytes of the journal, and the tables. See check.go, and reads.go for what the API has shown: a row is what the
// journal says of its position, nothing that the answer claims to know is missing, and a refusal has changed nothing. While the faults last it also recovers partitions, from
// their checkpoints and from the journal alone, and compares.
//
// Whether it sees what is broken is tried with the build tag simulation: package safeguard then switches one safeguard off, and some
// seed must find the damage.
//
// # How far a seed repeats
//
// The plan is a function of the seed alone, random ids come from a generator that the test seeds, and time is virtual. Left
// to chance is the order in which goroutines run that are ready at the same moment (select, the runtime's queues, maps), and
// with it the dice of the Kafka client. With one processor, which the tests set, two runs of a seed are alike up to some
// step and then differ in details; what one of them has found, another one finds again more often than not.
//
// # Where the bubble ends
//
// Virtual time stands still while a goroutine waits for a mutex, so nobody may hold one while time has to pass. Two libraries
// do: Watermill's router while it closes, so handlers end before it (see stubborn), and the Kafka client while it connects or
// stops fetching, so connections need no round trip (see versions) and are never refused slowly. A test that does not go on for
// a minute of real time says which seed it is.
//
// Not simulated are the wall clocks of nodes (which only tell how old their tables are), suspended machines, disks, and batches of
// requests over HTTP.
package simulation

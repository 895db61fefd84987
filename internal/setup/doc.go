// Package setup makes a Kafka ready for the service: its topics, their settings, and the least rights on them that each role needs.
//
// A [Plan] is made first and says what would change and why; it is carried out as a whole or, when one thing in it must not be
// done, not at all. What is done is only ever more: topics are created, numbers of partitions raised where no key can move by
// it, settings raised to what the service needs. A setting that keeps records longer, or takes larger ones, than the service
// needs is somebody's choice and stays. Nothing is deleted and nothing made smaller, so a plan that is carried out twice, or
// half and then again, ends at the same place.
package setup

package kafkatest

import (
	"strings"
	"testing"
)

// memoryOnly names the tests that run on the broker in memory alone, and why. All others of their packages run on Apache Kafka
// too.
var memoryOnly = map[string]string{
	// producers
	"TestTimeEndsWhileTheBrokerIsSilent": "holds back the broker's answer",
	"TestErrorsOfTheBroker":              "makes the broker answer with errors",
	"BenchmarkRequestAsync":              "measures the client",

	// producers/answers
	"TestDroppedConnectionsLoseNothing": "makes the broker drop connections",
	"TestRightThatComesBack":            "TestKafkaSecured takes rights away from the real one",
	"BenchmarkDo":                       "measures the client",
	"BenchmarkBegin":                    "measures the client",
	"BenchmarkTail":                     "measures the client",

	// consumers/kafka
	"BenchmarkPublish": "measures the adapter",
	"BenchmarkConsume": "measures the adapter",

	// consumers/scheduler, producers/answers
	"TestTopicsMayComeALittleLater":                    "watches what the broker is asked",
	"TestPartitionThatTheGroupForgot":                  "is about the members alone",
	"TestAnInboxThatCannotBeWrittenHoldsUpNothingElse": "makes the broker refuse appends",

	// consumers/worker
	"TestStartIsAnnounced":                  "measures moments, in virtual time",
	"TestQueue":                             "measures moments, in virtual time",
	"TestTimeLimit":                         "lasts minutes, in virtual time",
	"TestTimeLimitIsTheDeadline":            "measures moments, in virtual time",
	"TestStuckHandler":                      "measures moments, in virtual time",
	"TestAllStuckIsDraining":                "measures moments, in virtual time",
	"TestProgressAndCheckpoint":             "measures moments, in virtual time",
	"TestSaveCheckpointWaits":               "makes the broker refuse appends",
	"TestReportsAreSentUntilTheyAreWritten": "makes the broker refuse appends",
	"TestReportsOnTheirWayAreNotRepeated":   "makes the broker refuse appends",
	"TestEndsThatAreTooLarge":               "makes the broker refuse appends",
	"TestLeaseLost":                         "makes the broker refuse appends",
	"TestWorkerStopsFirst":                  "makes the broker lose answers",
	"TestDetachedHandler":                   "makes the broker refuse appends",
	"TestStop":                              "measures moments, in virtual time",
	"TestStopWaitsForWhatIsUnderWay":        "measures moments, in virtual time",
	"TestStopWithoutABroker":                "makes the broker refuse appends",
	"TestHeartbeatsAreRegular":              "measures moments, in virtual time",
}

// MemoryOnly declares that a test runs on the broker in memory alone. It must be listed, with the reason.
func MemoryOnly(t testing.TB) {
	t.Helper()
	name, _, _ := strings.Cut(t.Name(), "/")
	if memoryOnly[name] == "" {
		t.Fatalf("expected %s to run on Apache Kafka too, with kafkatest.Each, or to be among memoryOnly in internal/kafkatest/memory.go with the reason why it cannot", name)
	}
}

package schemas

import (
	"math/rand/v2"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

func TestPartitionForAgreesWithTheClient(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	keys := [][]byte{{}, []byte("a"), []byte("ab"), []byte("abc"), []byte("abcd"), []byte("contoso/account/7"), {0xff, 0x80, 0x00}}
	for range 2000 {
		key := make([]byte, 1+r.IntN(70))
		for i := range key {
			key[i] = byte(r.Uint32())
		}
		keys = append(keys, key)
	}
	theirs := kgo.StickyKeyPartitioner(nil).ForTopic("t")
	for _, key := range keys {
		for _, n := range []int32{1, 2, 4, 12, 1000} {
			if want := int32(theirs.Partition(&kgo.Record{Key: key}, int(n))); len(key) > 0 && PartitionFor(key, n) != want {
				t.Fatalf("key %x, %d partitions: expected %d, but got %d", key, n, want, PartitionFor(key, n))
			}
		}
	}
}

// The hashes that Kafka's own unit test of its client has.
func TestMurmur2(t *testing.T) {
	for key, want := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107,
	} {
		if got := int32(murmur2([]byte(key))); got != want {
			t.Errorf("%q: expected %d, but got %d", key, want, got)
		}
	}
}

func TestTopics(t *testing.T) {
	if got := (Topics{}).Requests(); got != "opstream.requests" {
		t.Errorf("expected opstream.requests, but got %s", got)
	}
	own := Topics{Prefix: "eu-"}
	specs := own.Specs(12, 16)
	if len(specs) != len(shortNames) {
		t.Errorf("expected %d topics, but got %d", len(shortNames), len(specs))
	}
	for _, s := range specs {
		if own.Short(s.Name) != s.Short {
			t.Errorf("expected the short name %s of %s, but got %q", s.Short, s.Name, own.Short(s.Name))
		}
		config := s.Config()
		if config["cleanup.policy"] != "delete" {
			t.Errorf("expected %s to be never compacted, but got %s", s.Name, config["cleanup.policy"])
		}
		forEver := s.Short == TopicJournal || s.Short == TopicCheckpoints
		if forEver != (config["retention.ms"] == "-1") {
			t.Errorf("expected %s to be kept for ever: %v, but got %s", s.Name, forEver, config["retention.ms"])
		}
		if forEver == (config["message.timestamp.type"] == "LogAppendTime") {
			t.Errorf("expected the broker's clock to decide how long %s is kept: %v, but got %q", s.Name, !forEver, config["message.timestamp.type"])
		}
		if s.Short == TopicSessions && s.Partitions != 1 || s.Short == TopicInboxes && s.Partitions != 16 || s.Short == TopicSignals && s.Partitions != 12 {
			t.Errorf("%s has %d partitions", s.Name, s.Partitions)
		}
	}
	if got := own.Short("opstream.journal"); got != "" {
		t.Errorf("expected no short name for another installation's topic, but got %s", got)
	}
}

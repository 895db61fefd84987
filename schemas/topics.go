package schemas

import "time"

// DefaultPrefix begins the topics' names unless the installation chooses another one.
const DefaultPrefix = "opstream."

// Short names of the topics, as they stand in ce_cause and in the folder json.
const (
	TopicRequests    = "requests"
	TopicReports     = "reports"
	TopicSignals     = "signals"
	TopicJournal     = "journal"
	TopicCheckpoints = "checkpoints"
	TopicInboxes     = "inboxes"
	TopicSessions    = "sessions"
	TopicDeadLetter  = "deadletter"
)

// Topics names the topics of one installation.
type Topics struct {
	Prefix string // before every name; "" means DefaultPrefix
}

func (t Topics) name(short string) string {
	if t.Prefix == "" {
		return DefaultPrefix + short
	}
	return t.Prefix + short
}

// Requests is where callers ask for operations and give commands.
func (t Topics) Requests() string { return t.name(TopicRequests) }

// Reports is where workers tell what became of their attempts.
func (t Topics) Reports() string { return t.name(TopicReports) }

// Signals is where one partition of the scheduler tells another.
func (t Topics) Signals() string { return t.name(TopicSignals) }

// Journal is the truth.
func (t Topics) Journal() string { return t.name(TopicJournal) }

// Checkpoints is what recovery begins with.
func (t Topics) Checkpoints() string { return t.name(TopicCheckpoints) }

// Inboxes is where workers find their work.
func (t Topics) Inboxes() string { return t.name(TopicInboxes) }

// Sessions is where workers show that they live.
func (t Topics) Sessions() string { return t.name(TopicSessions) }

// DeadLetter is where records end that nobody can read.
func (t Topics) DeadLetter() string { return t.name(TopicDeadLetter) }

// Short returns a topic's name without the prefix, "" for a topic that is not one of these.
func (t Topics) Short(topic string) string {
	for _, s := range shortNames {
		if t.name(s) == topic {
			return s
		}
	}
	return ""
}

var shortNames = [...]string{
	TopicRequests, TopicReports, TopicSignals, TopicJournal, TopicCheckpoints, TopicInboxes, TopicSessions, TopicDeadLetter,
}

// Spec says how a topic is made.
type Spec struct {
	Name       string
	Short      string
	Partitions int32
	KeptFor    time.Duration // 0: for ever
	MaxBytes   int32         // largest record batch
}

const day = 24 * time.Hour

// Defaults for [Topics.Specs].
const (
	DefaultPartitions      = 12
	DefaultInboxPartitions = 16
)

// Specs lists all topics. None is ever compacted; checkpoints are trimmed by the scheduler.
func (t Topics) Specs(partitions, inboxPartitions int32) []Spec {
	spec := func(short string, n int32, kept time.Duration) Spec {
		return Spec{Name: t.name(short), Short: short, Partitions: n, KeptFor: kept, MaxBytes: MaxBatchBytes}
	}
	return []Spec{
		spec(TopicRequests, partitions, 7*day),
		spec(TopicReports, partitions, 7*day),
		spec(TopicSignals, partitions, 7*day),
		spec(TopicJournal, partitions, 0),
		spec(TopicCheckpoints, partitions, 0),
		spec(TopicInboxes, inboxPartitions, day),
		spec(TopicSessions, 1, day),
		spec(TopicDeadLetter, 1, 30*day),
	}
}

// Config returns the topic's configuration for the broker.
func (s Spec) Config() map[string]string {
	kept := "-1"
	if s.KeptFor > 0 {
		kept = string(appendInt(nil, s.KeptFor.Milliseconds()))
	}
	config := map[string]string{
		"cleanup.policy":    "delete",
		"retention.ms":      kept,
		"retention.bytes":   "-1",
		"max.message.bytes": string(appendInt(nil, int64(s.MaxBytes))),
	}
	if s.KeptFor > 0 {
		// What is kept for a while is kept from when the broker got it. By its own date, a request of a caller whose clock is behind,
		// or of an import that dates its records, would be deleted before anybody has read it.
		config["message.timestamp.type"] = "LogAppendTime"
	}
	return config
}

// PartitionFor is the partition of n that a record with the key belongs on: murmur2, as the Java client and
// kgo.StickyKeyPartitioner(nil) have it. n must be positive.
func PartitionFor(key []byte, n int32) int32 {
	return int32(murmur2(key)&0x7fffffff) % n
}

// murmur2 is Kafka's variant of the hash: 32 bits, with this seed.
func murmur2(key []byte) uint32 {
	const m = 0x5bd1e995
	h := uint32(0x9747b28c) ^ uint32(len(key))
	i := 0
	for ; i+4 <= len(key); i += 4 {
		k := (uint32(key[i]) | uint32(key[i+1])<<8 | uint32(key[i+2])<<16 | uint32(key[i+3])<<24) * m
		h = h*m ^ (k^k>>24)*m
	}
	if rest := len(key) - i; rest > 0 {
		for j := rest - 1; j >= 0; j-- {
			h ^= uint32(key[i+j]) << (8 * j)
		}
		h *= m
	}
	h = (h ^ h>>13) * m
	return h ^ h>>15
}

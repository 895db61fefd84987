package setup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/opstream/opstream/internal/embedded"
	"github.com/opstream/opstream/schemas"
)

// Config says what a Kafka should have for one installation.
type Config struct {
	Topics schemas.Topics
	// Partitions of requests, reports, signals, journal and checkpoints, which share one number. Default: what they have, else
	// NewPartitions.
	Partitions int32
	// NewPartitions is the number for an installation that is new. Default [schemas.DefaultPartitions].
	NewPartitions int32
	// InboxPartitions is the number of partitions of the inboxes. Default: what they have, else [schemas.DefaultInboxPartitions].
	InboxPartitions int32
	// Replication is the number of copies of topics that are created. Default 3, or as many as there are brokers.
	Replication int16
	// MinInSync is how many copies must have a record before it is acknowledged. Default 2 of three or more copies, else 1.
	MinInSync int
}

// An Action is what a plan does, or does not do, about one thing.
type Action string

// The actions.
const (
	Create Action = "create" // make the topic
	Grow   Action = "grow"   // raise its number of partitions
	Set    Action = "set"    // change one of its settings
	Refuse Action = "refuse" // must not be done, and keeps the whole plan from being carried out
	Warn   Action = "warn"   // people should know
)

// Names of an [Item]'s setting that are not Kafka's own.
const (
	Partitions  = "partitions"
	Replication = "replication.factor"
)

// Item is one thing that a plan says.
type Item struct {
	Action  Action `json:"action"`
	Topic   string `json:"topic,omitempty"` // "" means the brokers
	Setting string `json:"setting,omitempty"`
	Is      string `json:"is,omitempty"`
	Want    string `json:"want,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Next    string `json:"next,omitempty"` // what people can do

	// Of a topic that is created.
	Partitions  int32             `json:"partitions,omitempty"`
	Replication int16             `json:"replicationFactor,omitempty"`
	Configs     map[string]string `json:"configs,omitempty"`
}

// Plan is what stands between a Kafka as it is and as it should be.
type Plan struct {
	Cluster string `json:"cluster,omitempty"`
	Brokers int    `json:"brokers"`
	Items   []Item `json:"items"` // never nil
}

// Of returns the items with one of these actions.
func (p *Plan) Of(actions ...Action) []Item {
	var out []Item
	for _, it := range p.Items {
		if slices.Contains(actions, it.Action) {
			out = append(out, it)
		}
	}
	return out
}

// Changes are the items that alter something.
func (p *Plan) Changes() []Item { return p.Of(Create, Grow, Set) }

// Differs says whether anything is not as it should be, warnings aside.
func (p *Plan) Differs() bool { return len(p.Of(Create, Grow, Set, Refuse)) > 0 }

// Make looks at the brokers and plans. It changes nothing.
func Make(ctx context.Context, client *kgo.Client, cfg Config) (*Plan, error) {
	l, err := look(ctx, client, cfg)
	// Brokers hear one after the other of a topic that somebody makes at this moment, and of its leaders.
	for round := 0; unsettled(err) && round < rounds; round++ {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(roundPause):
		}
		l, err = look(ctx, client, cfg)
	}
	if err != nil {
		return nil, err
	}
	l.partitions()
	for _, spec := range l.specs {
		l.topic(spec)
	}
	l.brokerSettings()
	items := []Item{}
	for _, a := range []Action{Refuse, Create, Grow, Set, Warn} {
		items = append(items, l.plan.Of(a)...)
	}
	l.plan.Items = items
	return &l.plan, nil
}

func unsettled(err error) bool {
	return errors.Is(err, kerr.UnknownTopicOrPartition) || errors.Is(err, kerr.LeaderNotAvailable) || errors.Is(err, kerr.NotLeaderForPartition)
}

// history are the topics whose records belong together: a position in one is written in another, and the partition of a key must
// be the same in all, for ever.
func history() []string {
	return []string{schemas.TopicRequests, schemas.TopicReports, schemas.TopicSignals, schemas.TopicCheckpoints, schemas.TopicJournal}
}

// looked is what was found.
type looked struct {
	cfg      Config
	plan     Plan
	embedded bool
	specs    []schemas.Spec
	ids      []int32                      // of the brokers
	topics   map[string]topicFacts        // those that are there
	configs  map[string]map[string]string // of topics
	broker   map[string]string            // of the brokers; nil when they do not tell
	starts   kadm.ListedOffsets
	ends     kadm.ListedOffsets
	single   bool // a topic has, or will have, one copy
}

func look(ctx context.Context, client *kgo.Client, cfg Config) (*looked, error) {
	l := &looked{cfg: cfg, topics: map[string]topicFacts{}, configs: map[string]map[string]string{}}
	if err := l.metadata(ctx, client); err != nil {
		return nil, err
	}
	admin := kadm.NewClient(client)
	l.brokerConfigs(ctx, admin)
	l.numbers()
	there := slices.Sorted(maps.Keys(l.topics))
	if len(there) == 0 {
		return l, nil
	}
	configs, err := admin.DescribeTopicConfigs(ctx, there...)
	if err != nil {
		return nil, fmt.Errorf("ask for the settings of the topics %s*: %w", strings.TrimSuffix(l.cfg.Topics.Requests(), schemas.TopicRequests), explain(err))
	}
	for _, c := range configs {
		if c.Err != nil {
			return nil, fmt.Errorf("ask for the settings of topic %s: %w", c.Name, explain(c.Err))
		}
		l.configs[c.Name] = valuesOf(c)
	}
	if l.starts, err = admin.ListStartOffsets(ctx, there...); err == nil {
		err = l.starts.Error()
	}
	if err == nil {
		if l.ends, err = admin.ListEndOffsets(ctx, there...); err == nil {
			err = l.ends.Error()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("ask where the topics begin and end: %w", explain(err))
	}
	return l, nil
}

// metadata asks for brokers and topics anew: kadm answers from a cache, which a plan that follows a change must not be made of.
func (l *looked) metadata(ctx context.Context, client *kgo.Client) error {
	req := kmsg.NewPtrMetadataRequest()
	for _, spec := range l.cfg.Topics.Specs(1, 1) {
		one := kmsg.NewMetadataRequestTopic()
		one.Topic = kmsg.StringPtr(spec.Name)
		req.Topics = append(req.Topics, one)
	}
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return fmt.Errorf("ask for brokers and topics: %w", explain(err))
	}
	if resp.ClusterID != nil {
		l.plan.Cluster = *resp.ClusterID
	}
	l.embedded = l.plan.Cluster == embedded.ClusterID
	for _, b := range resp.Brokers {
		l.ids = append(l.ids, b.NodeID)
	}
	l.plan.Brokers = len(l.ids)
	for _, t := range resp.Topics {
		err := kerr.ErrorForCode(t.ErrorCode)
		switch {
		case t.Topic == nil || errors.Is(err, kerr.UnknownTopicOrPartition):
		case err != nil && !kerr.IsRetriable(err):
			return fmt.Errorf("ask for topic %s: %w", *t.Topic, explain(err))
		default: // one without a leader is there, too
			facts := topicFacts{partitions: int32(len(t.Partitions))}
			for i, p := range t.Partitions {
				if n := len(p.Replicas); i == 0 || n < facts.copies {
					facts.copies = n
				}
			}
			l.topics[*t.Topic] = facts
		}
	}
	return nil
}

// brokerConfigs asks for the settings of all brokers; of one that differs among them it keeps the first.
func (l *looked) brokerConfigs(ctx context.Context, admin *kadm.Client) {
	configs, err := admin.DescribeBrokerConfigs(ctx, l.ids...)
	for _, c := range configs {
		err = errors.Join(err, c.Err)
	}
	if err != nil {
		l.say(Item{
			Action: Warn, Reason: "the brokers do not tell their settings, so they were not checked: " + err.Error(),
			Next: "give this principal DescribeConfigs on the cluster",
		})
		return
	}
	l.broker = map[string]string{}
	for _, c := range configs {
		for k, v := range valuesOf(c) {
			if _, ok := l.broker[k]; !ok {
				l.broker[k] = v
			}
		}
	}
}

func valuesOf(c kadm.ResourceConfig) map[string]string {
	out := make(map[string]string, len(c.Configs))
	for _, v := range c.Configs {
		if v.Value != nil {
			out[v.Key] = *v.Value
		}
	}
	return out
}

// topicFacts are what the brokers tell of a topic.
type topicFacts struct {
	partitions int32
	copies     int // of the partition that has the fewest
}

func (l *looked) say(it Item) { l.plan.Items = append(l.plan.Items, it) }

// count is the number of partitions of a topic, 0 when there is none.
func (l *looked) count(short string) int32 {
	return l.topics[l.name(short)].partitions
}

func (l *looked) name(short string) string {
	for _, spec := range l.cfg.Topics.Specs(1, 1) {
		if spec.Short == short {
			return spec.Name
		}
	}
	return ""
}

// used says whether a topic has ever had a record.
func (l *looked) used(short string) bool {
	for _, o := range l.ends[l.name(short)] {
		if o.Offset > 0 {
			return true
		}
	}
	return false
}

// numbers settles how many partitions there should be.
func (l *looked) numbers() {
	n := l.cfg.Partitions
	if n == 0 {
		// The journal decides, for its keys are where they are.
		for _, short := range slices.Backward(history()) {
			if n = l.count(short); n > 0 {
				break
			}
		}
	}
	n = cmp.Or(n, l.cfg.NewPartitions, schemas.DefaultPartitions)
	inboxes := cmp.Or(l.cfg.InboxPartitions, l.count(schemas.TopicInboxes), schemas.DefaultInboxPartitions)
	specs := l.cfg.Topics.Specs(n, inboxes)
	// The journal last: schedulers begin when all of history is there, so that one which waits for it finds all complete.
	slices.SortStableFunc(specs, func(a, b schemas.Spec) int { return cmp.Compare(rank(a.Short), rank(b.Short)) })
	l.specs = specs
}

func rank(short string) int {
	if short == schemas.TopicJournal {
		return 1
	}
	return 0
}

// partitions judges the numbers of partitions.
func (l *looked) partitions() {
	var used []string
	for _, short := range history() {
		if l.used(short) {
			used = append(used, short)
		}
	}
	for _, spec := range l.specs {
		have := l.count(spec.Short)
		item := Item{Topic: spec.Name, Setting: Partitions, Is: itoa(have), Want: itoa(spec.Partitions)}
		switch {
		case have == 0, have == spec.Partitions:
			continue
		case l.embedded:
			item.Action = Refuse
			item.Reason = "the embedded broker makes its topics with numbers of its own, and would not start with others the next time"
			item.Next = fmt.Sprintf("keep %d, or begin with another data folder and give the number to opstream dev or serve there", have)
		case slices.Contains(history(), spec.Short) && len(used) > 0:
			item.Action = Refuse
			item.Reason = fmt.Sprintf("the partition of a key follows from their number, and %s have records: with another number a key's later records would stand apart from its earlier ones",
				strings.Join(used, ", "))
			item.Next = fmt.Sprintf("keep %d (--partitions %[1]d, or leave it out); for another number set up a new installation with another --topic-prefix, send new requests there and let this one finish its own", have)
			if agreed := l.count(schemas.TopicJournal); agreed > 0 && have != agreed && spec.Partitions == agreed {
				item.Next = fmt.Sprintf("%s was made with a wrong number: stop every process; if the topic was never used, delete it and apply again; if it was, restore it with %d partitions", spec.Name, agreed)
			}
		case spec.Short == schemas.TopicSessions:
			item.Action = Refuse
			item.Reason = "schedulers read the heartbeats of all workers in one partition, and would not hear those in others"
			item.Next = "stop the workers, delete the topic (it holds nothing but heartbeats) and apply again"
		case have > spec.Partitions && spec.Short == schemas.TopicDeadLetter:
			continue // read whole, however many they are
		case have > spec.Partitions:
			item.Action = Refuse
			item.Reason = "Kafka cannot take partitions away"
			item.Next = fmt.Sprintf("ask for %d or more, or delete the topic while nothing runs and apply again", have)
		default:
			item.Action = Grow
		}
		l.say(item)
	}
}

// topic judges one topic, partitions aside.
func (l *looked) topic(spec schemas.Spec) {
	facts, ok := l.topics[spec.Name]
	if !ok {
		l.missing(spec)
		return
	}
	copies := facts.copies
	minInSync := l.minInSync(spec.Name, copies)
	if l.cfg.Replication > 0 && copies != int(l.cfg.Replication) {
		l.say(Item{
			Action: Warn, Topic: spec.Name, Setting: Replication, Is: itoa(copies), Want: itoa(l.cfg.Replication),
			Reason: "the copies of a topic that exists are moved, not set", Next: "move them with Kafka's kafka-reassign-partitions",
		})
	}
	l.single = l.single || copies == 1
	have := l.configs[spec.Name]
	for _, w := range l.wanted(spec, minInSync) {
		is, told := have[w.key]
		if !told || w.holds(is) {
			continue
		}
		l.say(Item{Action: Set, Topic: spec.Name, Setting: w.key, Is: is, Want: w.value, Reason: w.why})
	}
	if is, err := strconv.Atoi(have[minInSyncKey]); err == nil && copies > 1 && is >= copies {
		l.say(Item{
			Action: Warn, Topic: spec.Name, Setting: minInSyncKey, Is: itoa(is), Want: itoa(copies - 1),
			Reason: fmt.Sprintf("with %d copies nothing can be appended while one broker is away", copies), Next: "lower it with kafka-configs, or add copies",
		})
	}
	if spec.Short == schemas.TopicJournal {
		for _, n := range slices.Sorted(maps.Keys(l.starts[spec.Name])) {
			if o := l.starts[spec.Name][n]; o.Offset > 0 {
				l.say(Item{
					Action: Warn, Topic: spec.Name, Next: "restore the topic from a copy",
					Reason: fmt.Sprintf("the beginning of partition %d, up to offset %d, is gone: without it the chain cannot be checked nor the tables made again", n, o.Offset),
				})
			}
		}
	}
}

// missing plans a topic that is not there, unless it was.
func (l *looked) missing(spec schemas.Spec) {
	input := spec.Short == schemas.TopicRequests || spec.Short == schemas.TopicReports || spec.Short == schemas.TopicSignals
	switch {
	case input && l.used(schemas.TopicJournal):
		l.say(Item{
			Action: Refuse, Topic: spec.Name, Is: "missing",
			Reason: "the journal has events, and names how far this topic was read: in a new one, offsets begin at 0 again, and records would be taken for those already read",
			Next:   "restore the topic from a copy with its offsets; or set up a new installation with another --topic-prefix",
		})
		return
	case spec.Short == schemas.TopicJournal && l.used(schemas.TopicCheckpoints):
		l.say(Item{
			Action: Refuse, Topic: spec.Name, Is: "missing",
			Reason: "the checkpoints tell of a journal that is gone", Next: "restore the journal from a copy; or, to begin with nothing, delete all topics of this prefix and apply again",
		})
		return
	}
	copies := l.cfg.Replication
	if copies <= 0 {
		copies = int16(min(3, l.plan.Brokers))
	}
	if int(copies) > l.plan.Brokers {
		l.say(Item{
			Action: Refuse, Topic: spec.Name, Setting: Replication, Want: itoa(copies), Is: fmt.Sprintf("%d brokers", l.plan.Brokers),
			Reason: "every copy needs a broker of its own", Next: "start more brokers, or ask for fewer copies with --replication-factor",
		})
		return
	}
	configs := map[string]string{}
	for _, w := range l.wanted(spec, l.minInSync(spec.Name, int(copies))) {
		configs[w.key] = w.value
	}
	if _, known := l.broker[uncleanKey]; !known {
		delete(configs, uncleanKey) // a broker that does not know a setting refuses the topic
	}
	l.say(Item{
		Action: Create, Topic: spec.Name, Want: fmt.Sprintf("%d partitions, %d copies", spec.Partitions, copies),
		Partitions: spec.Partitions, Replication: copies, Configs: configs,
	})
	l.single = l.single || copies == 1
}

// minInSync settles how many copies must have a record.
func (l *looked) minInSync(topic string, copies int) int {
	want := l.cfg.MinInSync
	if want == 0 {
		return max(1, min(2, copies-1))
	}
	if want >= copies && want > 1 {
		l.say(Item{
			Action: Refuse, Topic: topic, Setting: minInSyncKey, Want: itoa(want),
			Reason: fmt.Sprintf("with %d copies nothing could be appended while one broker is away", copies),
			Next:   fmt.Sprintf("ask for fewer than %d with --min-insync-replicas, or have more copies", copies),
		})
	}
	return want
}

const (
	cleanupKey   = "cleanup.policy"
	timestampKey = "message.timestamp.type"
	minInSyncKey = "min.insync.replicas"
	uncleanKey   = "unclean.leader.election.enable"
)

// wish is a setting as it should be.
type wish struct {
	key, value string
	least      bool // more is as well; -1 is more than any number
	why        string
}

func (w wish) holds(is string) bool {
	if is == w.value || !w.least {
		return is == w.value
	}
	have, err1 := strconv.ParseInt(is, 10, 64)
	want, err2 := strconv.ParseInt(w.value, 10, 64)
	if err1 != nil || err2 != nil {
		return false
	}
	return have < 0 || want >= 0 && have >= want
}

// wanted lists the settings of a topic. The embedded broker has its own rule for how long it keeps records.
func (l *looked) wanted(spec schemas.Spec, minInSync int) []wish {
	reasons := map[string]string{
		cleanupKey:          "compaction removes events that are needed",
		"retention.ms":      "records must outlive every process that has not read them yet",
		"retention.bytes":   "records must not go because others come",
		"max.message.bytes": "the service writes batches of this size",
		timestampKey:        "how long a record is kept is not its sender's clock to say",
	}
	if spec.KeptFor == 0 {
		reasons["retention.ms"] = "it is trimmed by nobody but the service"
	}
	config := spec.Config()
	if l.embedded {
		config["retention.ms"] = "-1"
	}
	var out []wish
	for _, key := range []string{cleanupKey, "retention.ms", "retention.bytes", "max.message.bytes", timestampKey} {
		if config[key] == "" || key == timestampKey && l.embedded { // which expires nothing
			continue
		}
		out = append(out, wish{key: key, value: config[key], least: key != cleanupKey && key != timestampKey, why: reasons[key]})
	}
	if !l.embedded {
		out = append(
			out,
			wish{key: minInSyncKey, value: itoa(minInSync), least: true, why: "an acknowledged record must survive the loss of a broker"},
			wish{key: uncleanKey, value: "false", why: "a leader that lacks acknowledged records would lose them"},
		)
	}
	return out
}

// brokerSettings judges what topics do not decide themselves.
func (l *looked) brokerSettings() {
	number := func(key string) (int64, bool) {
		n, err := strconv.ParseInt(l.broker[key], 10, 64)
		return n, err == nil
	}
	warn := func(key, want, reason, next string) {
		l.say(Item{Action: Warn, Setting: key, Is: l.broker[key], Want: want, Reason: reason, Next: next})
	}
	if l.embedded {
		return
	}
	if l.single {
		next := "for more than trying out have three brokers"
		if l.plan.Brokers > 1 {
			next = "add copies with Kafka's kafka-reassign-partitions"
		}
		l.say(Item{Action: Warn, Setting: Replication, Is: "1", Want: itoa(min(3, max(2, l.plan.Brokers))), Reason: "what is acknowledged is lost with the one broker that has it", Next: next})
	}
	// Topics made here have their own max.message.bytes.
	if n, ok := number("message.max.bytes"); ok && n < schemas.MaxBatchBytes && l.broker["auto.create.topics.enable"] != "false" {
		warn("message.max.bytes", itoa(schemas.MaxBatchBytes), "a topic that the broker makes by itself would refuse our batches",
			"raise it, or set auto.create.topics.enable to false")
	}
	if n, ok := number("socket.request.max.bytes"); ok && n < 2*schemas.MaxBatchBytes {
		warn("socket.request.max.bytes", itoa(2*schemas.MaxBatchBytes), "a produce request of ours may be larger", "raise it on every broker")
	}
	if l.broker["auto.create.topics.enable"] == "true" {
		warn("auto.create.topics.enable", "false", "a client that comes before its topic would have it made with wrong settings", "set it to false on every broker")
	}
	if l.broker[uncleanKey] == "true" {
		warn(uncleanKey, "false", "topics made here set it to false for themselves, but the groups' own topic does not", "set it to false on every broker")
	}
	if n, ok := number("offsets.topic.replication.factor"); ok && n < 2 && l.plan.Brokers > 2 {
		warn("offsets.topic.replication.factor", "3", "with one copy, schedulers cannot share partitions out while its broker is away", "raise it before the first group, else move copies with kafka-reassign-partitions")
	}
	if n, ok := number("group.min.session.timeout.ms"); ok && n > groupSessionMillis {
		warn("group.min.session.timeout.ms", itoa(groupSessionMillis), "schedulers ask for this session timeout and would be refused", "lower it on every broker")
	}
}

// groupSessionMillis is the default of scheduler.Config's GroupSession.
const groupSessionMillis = 6000

func itoa[T ~int | ~int16 | ~int32 | ~int64](n T) string { return strconv.FormatInt(int64(n), 10) }

package setup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/opstream/opstream/internal/embedded"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/schemas"
)

// kafka is a cluster and a client of it.
type kafka struct {
	*testing.T
	cluster *kfake.Cluster
	client  *kgo.Client
	admin   *kadm.Client
}

func start(t *testing.T, brokers int, opts ...kfake.Opt) *kafka {
	t.Helper()
	cluster, err := kfake.NewCluster(append(opts, kfake.NumBrokers(brokers))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	client := kafkatest.Client(t, cluster.ListenAddrs(), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	return &kafka{t, cluster, client, kadm.NewClient(client)}
}

func (k *kafka) plan(cfg Config) *Plan {
	k.Helper()
	plan, err := Make(k.Context(), k.client, cfg)
	if err != nil {
		k.Fatal(err)
	}
	return plan
}

func (k *kafka) apply(cfg Config) []Item {
	k.Helper()
	done, err := Apply(k.Context(), k.client, cfg)
	if err != nil {
		k.Fatal(err)
	}
	return done
}

func (k *kafka) topics() kadm.TopicDetails {
	k.Helper()
	// A client of its own has no cache.
	d, err := kadm.NewClient(kafkatest.Client(k, k.cluster.ListenAddrs())).ListTopics(k.Context())
	if err != nil {
		k.Fatal(err)
	}
	return d
}

func (k *kafka) append(topic string) {
	k.Helper()
	if err := k.client.ProduceSync(k.Context(), &kgo.Record{Topic: topic, Value: []byte("x")}).FirstErr(); err != nil {
		k.Fatal(err)
	}
}

func (k *kafka) set(topic, key, value string) {
	k.Helper()
	answers, err := k.admin.AlterTopicConfigs(k.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: key, Value: &value}}, topic)
	if err != nil || answers[0].Err != nil {
		k.Fatal(err, answers)
	}
}

func (k *kafka) setting(topic, key string) string {
	k.Helper()
	configs, err := k.admin.DescribeTopicConfigs(k.Context(), topic)
	if err != nil || len(configs) != 1 || configs[0].Err != nil {
		k.Fatal(err, configs)
	}
	return valuesOf(configs[0])[key]
}

func (k *kafka) remove(topic string) {
	k.Helper()
	if _, err := k.admin.DeleteTopic(k.Context(), topic); err != nil {
		k.Fatal(err)
	}
}

// lines are a plan's items, short.
func lines(items []Item) string {
	var b strings.Builder
	for _, it := range items {
		fmt.Fprintf(&b, "%s %s %s %s>%s\n", it.Action, it.Topic, it.Setting, it.Is, it.Want)
	}
	return b.String()
}

func (k *kafka) expect(what string, got []Item, want ...string) {
	k.Helper()
	text := ""
	for _, w := range want {
		text += w + "\n"
	}
	if lines(got) != text {
		k.Errorf("%s: expected\n%s\nbut got\n%s", what, text, lines(got))
	}
}

func TestNewInstallation(t *testing.T) {
	k := start(t, 3)
	plan := k.plan(Config{})
	k.expect(
		"plan", plan.Items[:8],
		"create opstream.requests  >12 partitions, 3 copies",
		"create opstream.reports  >12 partitions, 3 copies",
		"create opstream.signals  >12 partitions, 3 copies",
		"create opstream.checkpoints  >12 partitions, 3 copies",
		"create opstream.inboxes  >16 partitions, 3 copies",
		"create opstream.sessions  >1 partitions, 3 copies",
		"create opstream.deadletter  >1 partitions, 3 copies",
		"create opstream.journal  >12 partitions, 3 copies",
	)
	if got := k.topics(); len(got) != 0 {
		t.Fatalf("expected a plan to change nothing, but there are %v", got.Names())
	}

	if done := k.apply(Config{}); len(done) != 8 {
		t.Errorf("expected 8 changes, but got\n%s", lines(done))
	}
	for _, spec := range (schemas.Topics{}).Specs(12, 16) {
		d := k.topics()[spec.Name]
		if len(d.Partitions) != int(spec.Partitions) || d.Partitions.NumReplicas() != 3 {
			t.Errorf("%s: expected %d partitions with 3 copies, but got %d with %d", spec.Name, spec.Partitions, len(d.Partitions), d.Partitions.NumReplicas())
		}
		want := spec.Config()
		want[minInSyncKey] = "2"
		for key, value := range want {
			if got := k.setting(spec.Name, key); got != value {
				t.Errorf("%s: expected %s = %s, but got %q", spec.Name, key, value, got)
			}
		}
	}
	again := k.plan(Config{})
	if again.Differs() {
		t.Errorf("expected nothing to do after apply, but got\n%s", lines(again.Items))
	}
	if done := k.apply(Config{}); len(done) != 0 {
		t.Errorf("expected a second apply to do nothing, but got\n%s", lines(done))
	}
}

// TestCutOff lets the brokers refuse one creation after the other: whatever was done by then, applying again ends the work.
func TestCutOff(t *testing.T) {
	for n := range 8 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			k := start(t, 1)
			seen := 0
			k.cluster.ControlKey(int16(kmsg.CreateTopics), func(req kmsg.Request) (kmsg.Response, error, bool) {
				k.cluster.KeepControl()
				if seen++; seen != n+1 {
					return nil, nil, false
				}
				resp := req.ResponseKind().(*kmsg.CreateTopicsResponse)
				one := kmsg.NewCreateTopicsResponseTopic()
				one.Topic, one.ErrorCode = req.(*kmsg.CreateTopicsRequest).Topics[0].Topic, kerr.PolicyViolation.Code
				resp.Topics = append(resp.Topics, one)
				return resp, nil, true
			})
			done, err := Apply(t.Context(), k.client, Config{})
			if !errors.Is(err, kerr.PolicyViolation) || !strings.Contains(err.Error(), "ask who runs them") {
				t.Fatalf("expected the brokers' refusal and what to do, but got: %v", err)
			}
			if len(done) != n {
				t.Errorf("expected the %d changes before, but got\n%s", n, lines(done))
			}
			if done := k.apply(Config{}); len(done) != 8-n {
				t.Errorf("expected the other %d, but got\n%s", 8-n, lines(done))
			}
			if plan := k.plan(Config{}); plan.Differs() {
				t.Errorf("expected nothing more, but got\n%s", lines(plan.Items))
			}
		})
	}
}

// TestUnsettled lets a broker not know for a while where the partitions of a topic begin that another one shows already.
func TestUnsettled(t *testing.T) {
	k := start(t, 1)
	k.apply(Config{})
	for _, test := range []struct {
		code *kerr.Error
		err  bool
	}{{kerr.UnknownTopicOrPartition, false}, {kerr.NotLeaderForPartition, false}, {kerr.TopicAuthorizationFailed, true}} {
		left := 3
		k.cluster.ControlKey(int16(kmsg.ListOffsets), func(req kmsg.Request) (kmsg.Response, error, bool) {
			if left--; left < 0 {
				return nil, nil, false
			}
			k.cluster.KeepControl()
			resp := req.ResponseKind().(*kmsg.ListOffsetsResponse)
			for _, t := range req.(*kmsg.ListOffsetsRequest).Topics {
				topic := kmsg.NewListOffsetsResponseTopic()
				topic.Topic = t.Topic
				for _, p := range t.Partitions {
					one := kmsg.NewListOffsetsResponseTopicPartition()
					one.Partition, one.ErrorCode = p.Partition, test.code.Code
					topic.Partitions = append(topic.Partitions, one)
				}
				resp.Topics = append(resp.Topics, topic)
			}
			return resp, nil, true
		})
		plan, err := Make(t.Context(), k.client, Config{})
		if got := errors.Is(err, test.code); got != test.err || err == nil && plan.Differs() {
			t.Errorf("%s: expected it to be an error: %t, but got %v", test.code.Message, test.err, err)
		}
	}
}

func TestNumbers(t *testing.T) {
	k := start(t, 1)
	k.apply(Config{Partitions: 4, InboxPartitions: 2})
	if plan := k.plan(Config{}); plan.Differs() {
		t.Errorf("expected the numbers that there are to be kept, but got\n%s", lines(plan.Items))
	}

	// Nothing has a partition yet.
	k.expect(
		"empty", k.plan(Config{Partitions: 6}).Changes(),
		"grow opstream.requests partitions 4>6", "grow opstream.reports partitions 4>6", "grow opstream.signals partitions 4>6",
		"grow opstream.checkpoints partitions 4>6", "grow opstream.journal partitions 4>6",
	)
	k.apply(Config{Partitions: 6})
	if n := len(k.topics()["opstream.journal"].Partitions); n != 6 {
		t.Fatalf("expected 6 partitions, but got %d", n)
	}

	// A single record anywhere settles it.
	k.append("opstream.requests")
	for _, n := range []int32{5, 7} {
		plan := k.plan(Config{Partitions: n, InboxPartitions: 8})
		if got := len(plan.Of(Refuse)); got != 5 {
			t.Errorf("expected %d partitions to be refused for 5 topics, but got\n%s", n, lines(plan.Items))
		}
		for _, it := range plan.Of(Refuse) {
			if !strings.Contains(it.Reason, "requests have records") || !strings.Contains(it.Next, "--partitions 6") || !strings.Contains(it.Next, "--topic-prefix") {
				t.Errorf("expected the reason and the way out, but got %q; %q", it.Reason, it.Next)
			}
		}
		done, err := Apply(t.Context(), k.client, Config{Partitions: n, InboxPartitions: 8})
		var refused *RefusedError
		if !errors.As(err, &refused) || len(done) != 0 {
			t.Errorf("expected nothing to be done, but got %v and\n%s", err, lines(done))
		}
		if got := len(k.topics()["opstream.inboxes"].Partitions); got != 2 {
			t.Errorf("expected the inboxes to stay, since something else was refused, but they have %d partitions", got)
		}
	}

	// Inboxes grow at any time, and never shrink.
	k.append("opstream.inboxes")
	k.expect("inboxes", k.apply(Config{InboxPartitions: 8}), "grow opstream.inboxes partitions 2>8")
	k.expect("fewer inboxes", k.plan(Config{InboxPartitions: 3}).Of(Refuse), "refuse opstream.inboxes partitions 8>3")
}

// TestStrayNumbers is about topics that something else has made.
func TestStrayNumbers(t *testing.T) {
	k := start(t, 1)
	k.apply(Config{Partitions: 4})
	k.append("opstream.journal")
	for name, n := range map[string]int{"opstream.sessions": 3, "opstream.deadletter": 5, "opstream.checkpoints": 7} {
		if answers, err := k.admin.UpdatePartitions(t.Context(), n, name); err != nil || answers.Error() != nil {
			t.Fatal(err, answers.Error())
		}
	}
	plan := k.plan(Config{})
	k.expect("refused", plan.Of(Refuse), "refuse opstream.checkpoints partitions 7>4", "refuse opstream.sessions partitions 3>1")
	if len(plan.Changes()) > 0 {
		t.Errorf("expected dead letters to stay on however many partitions, but got\n%s", lines(plan.Items))
	}
}

func TestMissingAgain(t *testing.T) {
	tests := []struct {
		used, gone string
		want       Action
		reason     string
	}{
		{"journal", "requests", Refuse, "begin at 0 again"},
		{"journal", "reports", Refuse, "begin at 0 again"},
		{"journal", "signals", Refuse, "begin at 0 again"},
		{"journal", "checkpoints", Create, ""},
		{"journal", "inboxes", Create, ""},
		{"journal", "sessions", Create, ""},
		{"journal", "deadletter", Create, ""},
		{"checkpoints", "journal", Refuse, "a journal that is gone"},
		{"requests", "journal", Create, ""},
	}
	for _, tt := range tests {
		t.Run(tt.gone+" after "+tt.used, func(t *testing.T) {
			k := start(t, 1)
			k.apply(Config{Partitions: 2})
			k.append("opstream." + tt.used)
			k.remove("opstream." + tt.gone)
			items := k.plan(Config{}).Of(Create, Refuse, Grow, Set)
			if len(items) != 1 || items[0].Action != tt.want || items[0].Topic != "opstream."+tt.gone || !strings.Contains(items[0].Reason, tt.reason) {
				t.Fatalf("expected one item, %s because %q, but got\n%s", tt.want, tt.reason, lines(items))
			}
			plan, err := CreateMissing(t.Context(), k.client, Config{})
			var refused *RefusedError
			if is := errors.As(err, &refused); is != (tt.want == Refuse) || !is && err != nil {
				t.Errorf("expected CreateMissing to agree, but got: %v", err)
			}
			if _, there := k.topics()["opstream."+tt.gone]; there != (tt.want == Create) {
				t.Errorf("expected the topic to be there: %v, but it is: %v\n%s", tt.want == Create, there, lines(plan.Items))
			}
		})
	}
}

// TestCreateMissing makes what is missing, with the numbers of what is there, and touches nothing else.
func TestCreateMissing(t *testing.T) {
	k := start(t, 1)
	if err := k.cluster.CreateTopic("opstream.journal", 3, map[string]string{"cleanup.policy": "compact"}); err != nil {
		t.Fatal(err)
	}
	plan, err := CreateMissing(t.Context(), k.client, Config{NewPartitions: 5})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(plan.Of(Create)); n != 7 {
		t.Errorf("expected 7 topics to be made, but got\n%s", lines(plan.Items))
	}
	if n := len(k.topics()["opstream.reports"].Partitions); n != 3 {
		t.Errorf("expected the journal's 3 partitions, but got %d", n)
	}
	if got := k.setting("opstream.journal", cleanupKey); got != "compact" {
		t.Errorf("expected the journal to stay as it is, but cleanup.policy is %q", got)
	}
	if len(plan.Of(Set)) == 0 {
		t.Errorf("expected to hear of the journal's settings, but got\n%s", lines(plan.Items))
	}
}

func TestSettings(t *testing.T) {
	k := start(t, 3)
	k.apply(Config{Partitions: 2})
	for _, s := range []struct{ topic, key, value string }{
		// Too little.
		{"opstream.journal", "retention.ms", "604800000"},
		{"opstream.journal", "retention.bytes", "1000"},
		{"opstream.checkpoints", cleanupKey, "compact,delete"},
		{"opstream.inboxes", "max.message.bytes", "1000012"},
		{"opstream.reports", minInSyncKey, "1"},
		{"opstream.requests", "retention.ms", "1000"},
		// More than enough: somebody wanted it.
		{"opstream.signals", "retention.ms", "-1"},
		{"opstream.deadletter", "retention.ms", "99999999999"},
		{"opstream.sessions", "max.message.bytes", "99999999"},
	} {
		k.set(s.topic, s.key, s.value)
	}
	want := []string{
		"set opstream.requests retention.ms 1000>604800000",
		"set opstream.reports min.insync.replicas 1>2",
		"set opstream.checkpoints cleanup.policy compact,delete>delete",
		"set opstream.inboxes max.message.bytes 1000012>8388608",
		"set opstream.journal retention.ms 604800000>-1",
		"set opstream.journal retention.bytes 1000>-1",
	}
	k.expect("plan", k.plan(Config{}).Changes(), want...)
	if got := k.setting("opstream.journal", "retention.ms"); got != "604800000" {
		t.Errorf("expected a plan to change nothing, but retention.ms is %s", got)
	}
	k.expect("apply", k.apply(Config{}), want...)
	if plan := k.plan(Config{}); plan.Differs() {
		t.Errorf("expected nothing more, but got\n%s", lines(plan.Items))
	}
	if got := k.setting("opstream.signals", "retention.ms"); got != "-1" {
		t.Errorf("expected what is kept longer to stay, but retention.ms is %s", got)
	}
}

func TestCopies(t *testing.T) {
	k := start(t, 3)
	for name, tt := range map[string]struct {
		cfg  Config
		want string
	}{
		"more copies than brokers":     {Config{Replication: 4}, "replication.factor is 3 brokers, wanted 4: every copy needs a broker of its own"},
		"as many in sync as there are": {Config{Replication: 3, MinInSync: 3}, "min.insync.replicas: 3: with 3 copies nothing could be appended while one broker is away"},
	} {
		done, err := Apply(t.Context(), k.client, tt.cfg)
		var refused *RefusedError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), tt.want) || len(done)+len(k.topics()) > 0 {
			t.Errorf("%s: expected to hear %q and nothing to be done, but got %v", name, tt.want, err)
		}
	}
	k.apply(Config{Replication: 2})
	if got := k.setting("opstream.journal", minInSyncKey); got != "1" {
		t.Errorf("expected two copies to go on with one, but min.insync.replicas is %s", got)
	}
	k.set("opstream.journal", minInSyncKey, "2")
	k.expect(
		"warnings", k.plan(Config{Replication: 3}).Of(Warn)[:9],
		"warn opstream.requests replication.factor 2>3", "warn opstream.reports replication.factor 2>3", "warn opstream.signals replication.factor 2>3",
		"warn opstream.checkpoints replication.factor 2>3", "warn opstream.inboxes replication.factor 2>3", "warn opstream.sessions replication.factor 2>3",
		"warn opstream.deadletter replication.factor 2>3", "warn opstream.journal replication.factor 2>3", "warn opstream.journal min.insync.replicas 2>1",
	)
}

func TestWarnings(t *testing.T) {
	k := start(t, 1, kfake.BrokerConfigs(map[string]string{"group.min.session.timeout.ms": "30000"}))
	k.apply(Config{Partitions: 1})
	k.append("opstream.journal")
	k.append("opstream.journal")
	var offsets kadm.Offsets
	offsets.Add(kadm.Offset{Topic: "opstream.journal", At: 1, LeaderEpoch: -1})
	if _, err := k.admin.DeleteRecords(t.Context(), offsets); err != nil {
		t.Fatal(err)
	}
	plan := k.plan(Config{})
	if plan.Differs() {
		t.Errorf("expected warnings not to count as a difference, but got\n%s", lines(plan.Items))
	}
	var all []string
	for _, it := range plan.Of(Warn) {
		all = append(all, it.String())
	}
	text := strings.Join(all, "\n")
	for _, want := range []string{
		"the beginning of partition 0, up to offset 1, is gone",
		"replication.factor is 1, wanted 2: what is acknowledged is lost with the one broker that has it",
		"message.max.bytes is 1048588, wanted 8388608",
		"group.min.session.timeout.ms is 30000, wanted 6000: schedulers",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("expected a warning with %q, but got\n%s", want, text)
		}
	}
}

// TestBrokersThatDoNotTell are those whose settings this principal may not see.
func TestBrokersThatDoNotTell(t *testing.T) {
	k := start(t, 1)
	k.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.DescribeConfigs}, Count: -1, Err: kerr.ClusterAuthorizationFailed, When: func(req kmsg.Request) bool {
		return req.(*kmsg.DescribeConfigsRequest).Resources[0].ResourceType == kmsg.ConfigResourceTypeBroker
	}})
	plan := k.plan(Config{})
	if i := slices.IndexFunc(plan.Of(Warn), func(it Item) bool { return strings.Contains(it.Reason, "do not tell their settings") }); i < 0 {
		t.Errorf("expected to hear that the brokers' settings are not known, but got\n%s", lines(plan.Items))
	}
	if done := k.apply(Config{}); len(done) != 8 {
		t.Errorf("expected that not to keep topics from being made, but got\n%s", lines(done))
	}
}

// TestEmbedded holds the plan to the embedded broker's rule, that nothing expires: kfake drops more than it should.
func TestEmbedded(t *testing.T) {
	var topics []embedded.Topic
	for _, spec := range (schemas.Topics{}).Specs(4, 4) {
		if spec.Short != schemas.TopicInboxes {
			topics = append(topics, embedded.Topic{Name: spec.Name, Partitions: spec.Partitions, Configs: map[string]string{"max.message.bytes": spec.Config()["max.message.bytes"]}})
		}
	}
	b, err := embedded.Open(t.Context(), embedded.Config{Dir: t.TempDir(), Addr: "127.0.0.1:0", Topics: topics})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	client := kafkatest.Client(t, b.Addrs())
	done, err := Apply(t.Context(), client, Config{})
	if err != nil || len(done) != 1 || done[0].Topic != "opstream.inboxes" || done[0].Configs["retention.ms"] != "-1" {
		t.Errorf("expected the one missing topic to be made, to be kept for ever, but got %v and\n%s", err, lines(done))
	}
	plan, err := Make(t.Context(), client, Config{})
	if err != nil || plan.Items == nil || len(plan.Items) != 0 {
		t.Errorf("expected nothing to say, but got %v and\n%s", err, lines(plan.Items))
	}
	// Nothing has a record yet, but the broker would not start again.
	_, err = Apply(t.Context(), client, Config{Partitions: 8})
	var refused *RefusedError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "another data folder") {
		t.Errorf("expected other numbers to be refused, but got %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	k := start(t, 1)
	k.cluster.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := Make(ctx, k.client, Config{}); err == nil {
		t.Error("expected an error without a broker, but got a plan")
	}
}

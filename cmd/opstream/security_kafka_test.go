package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/consumers/handlers/noop"
	"github.com/opstream/opstream/consumers/scheduler"
	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/internal/settings"
	"github.com/opstream/opstream/internal/setup"
	"github.com/opstream/opstream/internal/tlsfiles/certtest"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/schemas"
)

// roleFront is the principal of a process that is projector and api.
const roleFront = "front"

// securedRoles are the principals of an installation, and the roles whose rights each has. Their names are those of the roles, but for
// front.
func securedRoles() map[string][]setup.Role {
	out := map[string][]setup.Role{roleFront: {setup.RoleProjector, setup.RoleAPI}}
	for _, role := range setup.Roles() {
		if role != setup.RoleProjector && role != setup.RoleAPI {
			out[string(role)] = []setup.Role{role}
		}
	}
	return out
}

// TestKafkaSecured runs the program over an Apache Kafka that lets in whom it knows, over TLS alone, and lets each do what an ACL
// allows and nothing else.
func TestKafkaSecured(t *testing.T) {
	kafka := kafkatest.StartSecure(t, slices.Collect(maps.Keys(securedRoles()))...)
	withoutOptions(t) // after Kafka has been asked for in the environment
	for _, m := range mechanisms(t, kafka) {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			m.installation(t)
		})
	}
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		refusedBySecured(t, kafka)
	})
	t.Run("every right is needed", func(t *testing.T) {
		t.Parallel()
		everyRightIsNeeded(t, kafka)
	})
	t.Run("rights come and go", func(t *testing.T) {
		t.Parallel()
		rightsComeAndGo(t, kafka)
	})
}

// mechanism is one way to prove to the brokers who one is.
type mechanism struct {
	name    string
	address string
	client  func(t testing.TB, user string) kafkaSecurity
	// whileRunning waits for what else must happen while operations run; nil for nothing.
	whileRunning func(t testing.TB)
}

// mechanisms are all that the program and Kafka both know.
func mechanisms(t *testing.T, kafka *kafkatest.Secure) []*mechanism {
	t.Helper()
	ca := certtest.File(t, t.TempDir(), "ca.crt", kafka.Authority.PEM)
	withPassword := func(t testing.TB, mechanism, user string) kafkaSecurity {
		secret := "file:" + certtest.File(t, t.TempDir(), "password", []byte(kafka.Password(user)+"\n"))
		return kafkaSecurity{tls: true, ca: ca, mechanism: mechanism, user: user, password: settings.Secret(secret)}
	}
	tokens := newTokenEndpoint(t, kafka)
	return []*mechanism{
		{
			name: "oauthbearer", address: kafka.SASL, whileRunning: tokens.replaced,
			client: func(t testing.TB, user string) kafkaSecurity {
				security := kafkaSecurity{tls: true, ca: ca, mechanism: saslOAuth}
				if slices.Contains(askForTokens, user) {
					secret := certtest.File(t, t.TempDir(), "secret", []byte(tokens.secret))
					security.tokenURL, security.tokenCA, security.clientID, security.clientSecret = tokens.url, tokens.ca, user, settings.Secret("file:"+secret)
				} else {
					security.tokenFile = certtest.File(t, t.TempDir(), "token", []byte(kafka.Token(t, user, time.Hour)))
				}
				return security
			},
		},
		{
			name: "scram", address: kafka.SASL, client: func(t testing.TB, user string) kafkaSecurity {
				if user == "worker" || user == "admin" { // everybody has both
					return withPassword(t, saslScram256, user)
				}
				return withPassword(t, saslScram512, user)
			},
		},
		{name: "plain", address: kafka.SASL, client: func(t testing.TB, user string) kafkaSecurity { return withPassword(t, saslPlain, user) }},
		{name: "mutual-tls", address: kafka.Mutual, client: func(t testing.TB, user string) kafkaSecurity { return certificateOf(t, kafka, user) }},
	}
}

// askForTokens are the users that have a client's secret; the others have a file with a token.
var askForTokens = []string{"scheduler", roleFront, "requester"}

// tokenEndpoint gives out tokens that end soon.
type tokenEndpoint struct {
	url, ca, secret string

	mu    sync.Mutex
	asked map[string]int
	news  chan struct{}
}

// shortLife is the life of these tokens: short, so that the brokers want the next one while a test runs.
const shortLife = 4 * time.Second

func newTokenEndpoint(t *testing.T, kafka *kafkatest.Secure) *tokenEndpoint {
	t.Helper()
	e := &tokenEndpoint{secret: "secret-of-clients", asked: map[string]int{}, news: make(chan struct{}, 1)}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, secret, _ := r.BasicAuth()
		if secret != e.secret {
			http.Error(w, `{"error": "invalid_client"}`, http.StatusUnauthorized)
			return
		}
		e.mu.Lock()
		e.asked[user]++
		e.mu.Unlock()
		poke(e.news)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{ // the client hears of an answer that breaks off
			"access_token": kafka.Token(t, user, shortLife), "token_type": "Bearer", "expires_in": int(shortLife / time.Second),
		})
	}))
	t.Cleanup(server.Close)
	e.url = server.URL
	e.ca = certtest.File(t, t.TempDir(), "login.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	return e
}

// replaced waits until the parts that run have needed another token than their first: Kafka closes connections whose token has ended.
func (e *tokenEndpoint) replaced(t testing.TB) {
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		e.mu.Lock()
		least := min(e.asked["scheduler"], e.asked[roleFront])
		seen := fmt.Sprint(e.asked)
		e.mu.Unlock()
		if least >= 3 { // the first may be asked for twice: at the start, and by the parts
			return
		}
		select {
		case <-e.news:
		case <-late:
			t.Fatalf("expected every part to replace its token within 30 s, but they asked: %s", seen)
		}
	}
}

// file is a configuration for this user.
func (m *mechanism) file(t testing.TB, user string) string {
	t.Helper()
	return securityFile(t, m.address, m.name+".", m.client(t, user))
}

// securityFile writes how to connect as people would.
func securityFile(t testing.TB, address, prefix string, security kafkaSecurity) string {
	t.Helper()
	text := "brokers: [" + address + "]\ntopic-prefix: " + prefix + "\n"
	targets := security.targets()
	for _, name := range slices.Sorted(maps.Keys(targets)) {
		switch v := targets[name].(type) {
		case *bool:
			text += fmt.Sprintf("%s: %t\n", name, *v)
		case *string:
			if *v != "" {
				text += fmt.Sprintf("%s: %q\n", name, *v)
			}
		case *settings.Secret:
			if *v != "" {
				text += fmt.Sprintf("%s: %q\n", name, string(*v))
			}
		default:
			t.Fatalf("expected %s to be of a known type, but it is a %T", name, v)
		}
	}
	return writeFile(t, "opstream.yaml", text)
}

// options are those of a client of the test itself.
func (m *mechanism) options(t testing.TB, user string) []kgo.Opt {
	t.Helper()
	security := m.client(t, user)
	opts, err := security.options(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return append(opts, kgo.SeedBrokers(m.address))
}

// command runs the program to its end.
func programRun(t testing.TB, stdin string, args ...string) result {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &said
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), said.String()}
}

// installation makes the topics as admin, gives each its rights as root, runs scheduler, worker and front as processes of their own, has
// operations done that come over HTTP and over Kafka, reads them back as reader, and then lets everybody try to write the journal.
func (m *mechanism) installation(t *testing.T) {
	topics := schemas.Topics{Prefix: m.name + "."}
	grants := []string{"topics", "acls", "apply", "--yes", "--config", m.file(t, kafkatest.Root)}
	for user, roles := range securedRoles() {
		for _, role := range roles {
			grants = append(grants, "--principal", string(role)+"=User:"+user)
		}
	}
	programRun(t, "", grants...).expect(t, exitOK, "rights given")
	programRun(t, "", "topics", "apply", "--yes", "--partitions", "2", "--inbox-partitions", "2", "--config", m.file(t, string(setup.RoleAdmin))).expect(t, exitOK, "done: create "+topics.Journal())

	tables, listen := filepath.Join(t.TempDir(), "tables.db"), freePort(t)
	parts := []*daemon{
		daemonOf(t, "scheduler", "serve", "--roles", "scheduler", "--config", m.file(t, "scheduler")),
		daemonOf(t, "worker", "serve", "--roles", "worker", "--config", m.file(t, "worker")),
		daemonOf(t, roleFront, "serve", "--roles", "projector,api", "--database", tables, "--listen", listen, "--config", m.file(t, roleFront)),
	}
	for _, d := range parts {
		d.launch()
	}
	for _, d := range parts {
		d.up()
	}
	const each = 10
	submit := func(prefix string) {
		t.Helper()
		var requests strings.Builder
		for i := range each {
			fmt.Fprintf(&requests, `{"organization": "o", "id": "%s-%d", "type": "noop", "dependencyToken": "t%d"}`+"\n", prefix, i, i%3)
		}
		programRun(t, requests.String(), "op", "submit", "--server", "http://"+listen, "--from", "-", "--wait", "--timeout", "30s").expect(t, exitOK)
	}
	submit("http")
	core, err := producers.New(producers.Config{Topics: topics, Source: "/crm", Brokers: []string{m.address}, Options: m.options(t, "requester")})
	if err != nil {
		t.Fatal(err)
	}
	for i := range each {
		if err := core.Request(t.Context(), &producers.Request{Organization: "o", ID: fmt.Sprint("kafka-", i), Type: "noop"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := core.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	total := 2 * each
	if m.whileRunning != nil {
		m.whileRunning(t)
		submit("later")
		total += each
	}
	eventually(t, 30*time.Second, func() (bool, string) { // requests that were only put on Kafka are not accepted yet
		r := programRun(t, "", "op", "list", "--server", "http://"+listen, "--status", "succeeded", "--limit", "100", "--output", "json")
		n := len(lines[any](t, r.out))
		return n == total, fmt.Sprintf("expected %d operations to succeed, but %d did: %s", total, n, r)
	})
	reader := m.file(t, "reader")
	programRun(t, "", "journal", "tail", "--config", reader).expect(t, exitOK, "succeeded")
	programRun(t, "", "deadletter", "list", "--config", reader).expect(t, exitOK, "no dead letters")
	programRun(t, "", "verify", "--database", tables, "--config", reader).expect(t, exitOK)
	for _, d := range parts {
		d.signal(syscall.SIGTERM)
	}
	for _, d := range parts {
		if code, _ := d.exits(stopLimit); code != exitOK {
			t.Errorf("expected %s to stop cleanly, but got exit code %d\n%s", d.name, code, d.log)
		}
		for _, word := range []string{"AUTHORIZATION", "secret-", "ey" + "J"} { // a token begins so
			if strings.Contains(d.log.String(), word) {
				t.Errorf("expected nothing about rights and no secret in the log of %s, but there is %q\n%s", d.name, word, d.log)
			}
		}
	}
	m.onlyTheSchedulerWrites(t, topics)
}

// onlyTheSchedulerWrites has everybody append to the journal and to the checkpoints.
func (m *mechanism) onlyTheSchedulerWrites(t *testing.T, topics schemas.Topics) {
	t.Helper()
	for _, topic := range []string{topics.Journal(), topics.Checkpoints()} {
		for user := range securedRoles() {
			// An idempotent producer is refused its id before it comes to the topic, where it may write none.
			client := kafkatest.Client(t, []string{m.address}, append(m.options(t, user), kgo.DisableIdempotentWrite())...)
			err := client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte("x")}).FirstErr()
			switch {
			case user == "scheduler" && err != nil:
				t.Errorf("expected the scheduler to write %s, but: %v", topic, err)
			case user != "scheduler" && !errors.Is(err, kerr.TopicAuthorizationFailed):
				t.Errorf("expected the broker to refuse what %s writes to %s, with TOPIC_AUTHORIZATION_FAILED, but got: %v", user, topic, err)
			}
		}
	}
}

// refusedBySecured: whoever Kafka does not let in hears what to do, with an exit code, and does not see the secret.
func refusedBySecured(t *testing.T, kafka *kafkatest.Secure) {
	t.Helper()
	dir := t.TempDir()
	ca := certtest.File(t, dir, "ca.crt", kafka.Authority.PEM)
	stranger := certtest.New(t, "stranger")
	foreign := certtest.File(t, dir, "stranger.crt", stranger.PEM)
	password := func(mechanism, user, password string) kafkaSecurity {
		return kafkaSecurity{tls: true, ca: ca, mechanism: mechanism, user: user, password: settings.Secret(password)}
	}
	token := func(text string) kafkaSecurity {
		return kafkaSecurity{tls: true, ca: ca, mechanism: saslOAuth, tokenFile: certtest.File(t, t.TempDir(), "token", []byte(text))}
	}
	certificate := func(pair certtest.Pair) kafkaSecurity {
		cert, key := pair.Write(t, t.TempDir())
		return kafkaSecurity{tls: true, ca: ca, cert: cert, key: key}
	}
	const wrongPassword, wrongToken, wrongCertificate = "check kafka-sasl-user, kafka-sasl-password", "see that it has not ended", "give one that they accept with kafka-tls-cert"
	for _, c := range []struct {
		name, address string
		security      kafkaSecurity
		want          string
	}{
		{"wrong password, SCRAM-SHA-512", kafka.SASL, password(saslScram512, "worker", "secret-wrong"), wrongPassword},
		{"wrong password, SCRAM-SHA-256", kafka.SASL, password(saslScram256, "worker", "secret-wrong"), wrongPassword},
		{"wrong password, PLAIN", kafka.SASL, password(saslPlain, "worker", "secret-wrong"), wrongPassword},
		{"nobody of that name", kafka.SASL, password(saslScram512, "eve", "secret-wrong"), wrongPassword},
		{"token that has ended", kafka.SASL, token(kafka.Token(t, "worker", -time.Minute)), wrongToken},
		{"token that another has signed", kafka.SASL, token(kafkatest.NewTokenKey(t).Sign(t, "worker", time.Hour)), wrongToken},
		{"token that is none", kafka.SASL, token("secret-wrong"), wrongToken},
		{"certificate that another has signed", kafka.Mutual, certificate(stranger.Issue("worker")), wrongCertificate},
		{"certificate that has ended", kafka.Mutual, certificate(kafka.Authority.IssueUntil("worker", time.Now().Add(-time.Minute))), wrongCertificate},
		{"no certificate", kafka.Mutual, kafkaSecurity{tls: true, ca: ca}, wrongCertificate},
		{"authority that is not known", kafka.SASL, kafkaSecurity{tls: true, ca: foreign}, "name its certificate with kafka-tls-ca"},
		{"no SASL", kafka.SASL, kafkaSecurity{tls: true, ca: ca}, "or SASL (kafka-sasl-mechanism)"},
		{"no TLS", kafka.SASL, kafkaSecurity{}, "they may expect TLS (kafka-tls)"},
		{"SASL where certificates are wanted", kafka.Mutual, password(saslPlain, "worker", "secret-wrong"), wrongCertificate},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			file := securityFile(t, c.address, "refused.", c.security)
			for _, args := range []string{"serve --roles worker", "topics plan"} {
				began := time.Now()
				r := programRun(t, "", append(strings.Fields(args), "--config", file)...)
				r.expect(t, exitUnavailable, "expected the brokers at "+c.address, c.want)
				if took := time.Since(began); took > 2*reachTimeMax {
					t.Errorf("%s: expected to hear so within %s, but it took %s", args, 2*reachTimeMax, took)
				}
				if text := r.out + r.err; strings.Contains(text, "secret-") || strings.Contains(text, "eyJ") {
					t.Errorf("%s: expected no secret, but got %s", args, r)
				}
			}
		})
	}
}

// lacking is a principal with the rights of its role but for one.
type lacking struct {
	*testing.T
	kafka  *kafkatest.Secure
	topics schemas.Topics
	role   setup.Role
	grant  setup.Grant
	user   string
}

// everyRightIsNeeded takes one right after the other from a principal that has those of its role, and holds what the role then says
// against it: it names what it may not do. A right that nobody misses here is one too many in package setup. What the right includes,
// to see the topic or its settings, stays, so that it is the right itself that is missed; a few times it does not, as when people forget
// a topic altogether.
//
// Principals are told apart by certificates, of which there may be any number.
func everyRightIsNeeded(t *testing.T, kafka *kafkatest.Secure) {
	t.Helper()
	shared := schemas.Topics{Prefix: "rights."}
	listen := freePort(t)
	whole := daemonOf(t, "all roles", "serve", "--roles", "scheduler,worker,projector,api", "--create-topics", "--partitions", "1", "--listen", listen,
		"--config", securityFile(t, kafka.Mutual, shared.Prefix, certificateOf(t, kafka, kafkatest.Root)))
	whole.launch()
	whole.up()
	root := &mechanism{name: "rights", address: kafka.Mutual, client: func(t testing.TB, user string) kafkaSecurity { return certificateOf(t, kafka, user) }}
	garbage := &kgo.Record{Topic: shared.Requests(), Value: []byte("no message at all")}
	if err := kafkatest.Client(t, []string{kafka.Mutual}, root.options(t, kafkatest.Root)...).ProduceSync(t.Context(), garbage).FirstErr(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() (bool, string) { // for who may not read it
		r := programRun(t, "", "deadletter", "list", "--config", root.file(t, kafkatest.Root))
		return strings.Contains(r.out, shared.Requests()), r.String()
	})
	for _, role := range setup.Roles() {
		for i := range grantsOf("", shared, role) {
			l := &lacking{kafka: kafka, topics: shared, role: role, user: fmt.Sprintf("%s-%d", role, i)}
			if role == setup.RoleScheduler || role == setup.RoleAdmin { // which are alone with their topics
				l.topics.Prefix = l.user + "."
			}
			l.begin(t, i, false, listen)
			if l.grant.Operation == "Write" && (role == setup.RoleAPI || l.grant.Name == l.topics.Inboxes()) {
				forgotten := *l
				if forgotten.user += "-forgotten"; role == setup.RoleScheduler {
					forgotten.topics.Prefix = forgotten.user + "."
				}
				forgotten.begin(t, i, true, listen)
			}
		}
	}
}

// grantsOf are all rights of a role, one by one.
func grantsOf(principal string, topics schemas.Topics, role setup.Role) []setup.Grant {
	var out []setup.Grant
	for _, right := range setup.Rights(topics, role, false) {
		for _, op := range right.Operations {
			out = append(out, setup.Grant{Principal: principal, Resource: right.Resource, Name: right.Name, Prefixed: right.Prefixed, Operation: op})
		}
	}
	return out
}

// begin starts the test of grant i.
func (l *lacking) begin(t *testing.T, i int, bare bool, listen string) {
	rest := grantsOf("User:"+l.user, l.topics, l.role)
	l.grant = rest[i]
	included := map[string]string{"Read": "Describe", "Write": "Describe", "Delete": "Describe", "Alter": "Describe", "AlterConfigs": "DescribeConfigs"}[l.grant.Operation]
	if rest[i].Operation = included; included == "" || bare {
		rest = slices.Delete(rest, i, i+1)
	}
	name := fmt.Sprintf("%s: %s %s %s", l.role, l.grant.Operation, l.grant.Resource, strings.TrimPrefix(l.grant.Name, l.topics.Prefix))
	if bare {
		name += ", forgotten"
	}
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		l.T = t
		if err := setup.GrantAll(t.Context(), l.client(kafkatest.Root), rest); err != nil {
			t.Fatal(err)
		}
		switch l.role {
		case setup.RoleScheduler:
			l.scheduler()
		case setup.RoleWorker:
			l.worker("http://" + listen)
		case setup.RoleProjector:
			l.process("serve", "--roles", "projector", "--database", filepath.Join(t.TempDir(), "tables.db"))
		case setup.RoleAPI:
			l.api(bare)
		case setup.RoleRequester:
			l.requester()
		case setup.RoleReader:
			l.reader()
		case setup.RoleAdmin:
			l.admin()
		default:
			t.Fatalf("expected a known role, but got %s", l.role)
		}
	})
}

func certificateOf(t testing.TB, kafka *kafkatest.Secure, user string) kafkaSecurity {
	t.Helper()
	dir := t.TempDir()
	cert, key := kafka.Authority.Issue(user).Write(t, dir)
	return kafkaSecurity{tls: true, ca: certtest.File(t, dir, "ca.crt", kafka.Authority.PEM), cert: cert, key: key}
}

func (l *lacking) config() string {
	return securityFile(l, l.kafka.Mutual, l.topics.Prefix, certificateOf(l, l.kafka, l.user))
}

func (l *lacking) options(user string) []kgo.Opt {
	l.Helper()
	security := certificateOf(l, l.kafka, user)
	opts, err := security.options(slog.New(slog.DiscardHandler))
	if err != nil {
		l.Fatal(err)
	}
	return append(opts, kgo.SeedBrokers(l.kafka.Mutual), kgo.MetadataMinAge(50*time.Millisecond), kgo.FetchMaxWait(500*time.Millisecond))
}

func (l *lacking) client(user string, more ...kgo.Opt) *kgo.Client {
	l.Helper()
	return kafkatest.Client(l, []string{l.kafka.Mutual}, append(l.options(user), more...)...)
}

// missed tells whether a line of the text says that the right is missing.
func (l *lacking) missed(text string) bool {
	code := map[string]string{"topic": "TOPIC_AUTHORIZATION_FAILED", "group": "GROUP_AUTHORIZATION_FAILED", "cluster": "CLUSTER_AUTHORIZATION_FAILED"}[l.grant.Resource]
	for line := range strings.Lines(text) {
		// Who may write no topic at all is refused a producer's id, which is the cluster's.
		refused := strings.Contains(line, code) || l.grant.Operation == "Write" && strings.Contains(line, "CLUSTER_AUTHORIZATION_FAILED")
		if refused && (l.grant.Resource == "cluster" || strings.Contains(line, l.grant.Name)) {
			return true
		}
	}
	return false
}

// misses waits until the log says, after so many bytes, that the right is missing.
func (l *lacking) misses(log *watched, from int, ended <-chan struct{}) {
	l.Helper()
	began, late := time.Now(), time.After(20*time.Second)
	for !l.missed(log.String()[from:]) {
		select {
		case <-log.news:
		case <-ended:
			if !l.missed(log.String()[from:]) {
				l.Fatalf("expected it to say that it may not %s %s %s, but it ended with\n%s", l.grant.Operation, l.grant.Resource, l.grant.Name, log)
			}
			return
		case <-late:
			l.Fatalf("expected it to say within 20 s that it may not %s %s %s, but it says\n%s", l.grant.Operation, l.grant.Resource, l.grant.Name, log)
		}
	}
	l.Logf("after %s", time.Since(began).Round(time.Millisecond))
}

// process is a role as a process of its own.
func (l *lacking) process(args ...string) *daemon {
	d := daemonOf(l, l.user, append(args, "--log", "warn", "--config", l.config())...)
	d.launch()
	l.misses(d.log, 0, d.done)
	return d
}

// worker is given an operation of a type that only it serves.
func (l *lacking) worker(server string) {
	request := fmt.Sprintf(`{"organization": "o", "id": %q, "type": %[1]q}`, l.user)
	programRun(l, request, "op", "submit", "--server", server, "--from", "-").expect(l, exitOK)
	l.process("serve", "--roles", "worker", "--lease", "3s", "--noop", l.user)
}

// api does not run, or does not read, or is asked for an operation.
func (l *lacking) api(bare bool) {
	listen := freePort(l)
	d := daemonOf(l, l.user, "serve", "--roles", "projector,api", "--log", "warn", "--listen", listen, "--config", l.config())
	d.launch()
	if bare || l.grant.Operation == "Read" {
		l.misses(d.log, 0, d.done)
		return
	}
	d.up()
	const request = `{"organization": "o", "id": "a", "type": "noop"}`
	programRun(l, request, "op", "submit", "--server", "http://"+listen, "--from", "-", "--timeout", "5s").expect(l, exitRefused, "its principal needs those of the role api")
	resp, err := http.Post("http://"+listen+"/v1/operations", "application/json", strings.NewReader(request))
	if err != nil {
		l.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != http.StatusServiceUnavailable {
		l.Errorf("expected the API to refuse, but got %s", resp.Status)
	}
	l.misses(d.log, 0, d.done)
}

func (l *lacking) requester() {
	core, err := producers.New(producers.Config{Topics: l.topics, Source: "/crm", Brokers: []string{l.kafka.Mutual}, Options: l.options(l.user)})
	if err != nil {
		l.Fatal(err)
	}
	defer core.Close(l.Context())
	err = core.Request(l.Context(), &producers.Request{Organization: "o", ID: "a", Type: "noop"})
	if refused := (*producers.Error)(nil); !errors.As(err, &refused) || refused.Code != producers.CodeNotAllowed {
		l.Errorf("expected the requester to hear that it may not write, but got: %v", err)
	}
}

func (l *lacking) reader() {
	args := []string{"journal", "tail"}
	if l.grant.Name == l.topics.DeadLetter() {
		args = []string{"deadletter", "list"}
	}
	r := programRun(l, "", append(args, "--config", l.config())...)
	if r.code == exitOK || !l.missed(r.err) {
		l.Errorf("expected it to say that it may not read %s, but got %s", l.grant.Name, r)
	}
}

// admin has something of everything to do: topics that are missing, one with too few partitions, one with a setting that is too small.
func (l *lacking) admin() {
	root := l.client(kafkatest.Root)
	cfg := setup.Config{Topics: l.topics, Partitions: 1, InboxPartitions: 1}
	if _, err := setup.Apply(l.Context(), root, cfg); err != nil {
		l.Fatal(err)
	}
	admin := kadm.NewClient(root)
	if _, err := admin.DeleteTopic(l.Context(), l.topics.DeadLetter()); err != nil {
		l.Fatal(err)
	}
	answers, err := admin.AlterTopicConfigs(l.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: kadm.StringPtr("1000")}}, l.topics.Sessions())
	if err == nil {
		err = answers[0].Err
	}
	if err != nil {
		l.Fatal(err)
	}
	r := programRun(l, "", "topics", "apply", "--yes", "--inbox-partitions", "2", "--config", l.config())
	l.Log(r)
	if !l.missed(r.out + r.err) {
		l.Errorf("expected it to say that it may not %s, but got %s", l.grant.Operation, r)
	}
}

// scheduler has everything to do that a scheduler has: requests, one of which is on the wrong partition and one cannot be read, and two
// owners one after the other, the second of which trims what the first has left.
func (l *lacking) scheduler() {
	root := l.client(kafkatest.Root, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if _, err := setup.Apply(l.Context(), root, setup.Config{Topics: l.topics, Partitions: 2, InboxPartitions: 1}); err != nil {
		l.Fatal(err)
	}
	var requests []*kgo.Record
	for p := range int32(2) {
		rec := binaryMode("stray", `{"organization":"o","id":"stray","type":"noop"}`)
		rec.Topic, rec.Partition, rec.Key = l.topics.Requests(), p, []byte("o/stray")
		requests = append(requests, rec, &kgo.Record{Topic: l.topics.Requests(), Partition: p, Value: []byte("no message at all")})
	}
	if err := root.ProduceSync(l.Context(), requests...).FirstErr(); err != nil {
		l.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.Context())
	var parts sync.WaitGroup
	l.Cleanup(func() {
		cancel()
		parts.Wait()
	})
	work, err := worker.New(worker.Config{
		Opts: l.options(kafkatest.Root), Topics: l.topics, Handlers: map[string]worker.Handler{"noop": noop.Handler{}}, Slots: 1, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		l.Fatal(err)
	}
	parts.Go(func() { _ = work.Run(ctx) }) // what becomes of it shows in the operations
	log := &watched{news: make(chan struct{}, 1)}
	begin := func() (ended chan struct{}, end func()) {
		l.Helper()
		s, err := scheduler.New(scheduler.Config{
			Client: l.options(l.user), Topics: l.topics, Owner: l.user, Logger: slog.New(slog.NewTextHandler(log, nil)), Engine: partition.Config{Lease: 15 * time.Second},
			CheckpointEvery: 50 * time.Millisecond, CheckpointEvents: 1,
		})
		if err != nil {
			l.Fatal(err)
		}
		life, cancel := context.WithCancel(ctx)
		ended = make(chan struct{})
		parts.Go(func() {
			defer close(ended)
			if err := s.Run(life); err != nil {
				fmt.Fprintln(log, err) // the process would end with it
			}
		})
		return ended, func() {
			cancel()
			<-ended
		}
	}
	if own := l.grant.Name == l.topics.Checkpoints() || l.grant.Name == l.topics.Journal(); own && l.grant.Operation != "Write" {
		// What the first owner writes is what the second one reads, or deletes.
		_, end := begin()
		admin := kadm.NewClient(root)
		eventually(l, 20*time.Second, func() (bool, string) {
			ends, err := admin.ListEndOffsets(l.Context(), l.topics.Checkpoints())
			written := true
			ends.Each(func(o kadm.ListedOffset) { written = written && o.Offset > 0 })
			return err == nil && written, fmt.Sprintf("checkpoints of every partition: %v, %v\n%s", ends, err, log)
		})
		end()
	}
	ended, end := begin()
	l.misses(log, 0, ended)
	end()
}

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/opstream/opstream/internal/tlsfiles/certtest"
)

// secureCluster is a broker in memory with these options, and its address.
func secureCluster(t testing.TB, opts ...kfake.Opt) (*kfake.Cluster, string) {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, strings.Join(c.ListenAddrs(), ",")
}

// wholeService runs every role over the brokers of a file, has an operation done, and reads it back with every command that knows Kafka.
func wholeService(t *testing.T, file string) {
	t.Helper()
	tables := filepath.Join(t.TempDir(), "tables.db")
	r := begin(t, "serve", "--roles", "scheduler,worker,projector,api", "--create-topics", "--partitions", "2", "--listen", "127.0.0.1:0", "--database", tables, "--config", file)
	run(t, `{"organization": "o", "id": "a", "type": "noop"}`, "op", "submit", "--server", r.url, "--from", "-", "--wait", "--timeout", "30s").expect(t, exitOK)
	run(t, "", "journal", "tail", "--config", file).expect(t, exitOK, "succeeded")
	run(t, "", "journal", "export", "--config", file).expect(t, exitOK, `"a"`)
	run(t, "", "deadletter", "list", "--config", file).expect(t, exitOK, "no dead letters")
	run(t, "", "verify", "--database", tables, "--config", file).expect(t, exitOK)
	if code := r.end(); code != exitOK {
		t.Errorf("expected a clean end, but got exit code %d\n%s", code, r.log)
	}
	if strings.Contains(r.log.String(), "hunter2") {
		t.Errorf("expected no secret in the log, but it is there\n%s", r.log)
	}
}

func TestWholeServiceOverSecuredBrokers(t *testing.T) {
	withoutOptions(t)
	dir := t.TempDir()
	authority := certtest.New(t, "authority")
	ca := certtest.File(t, dir, "ca.pem", authority.PEM)
	cert, key := authority.Issue("client").Write(t, dir)
	password := certtest.File(t, dir, "password", []byte("hunter2\n"))
	server := &tls.Config{Certificates: []tls.Certificate{authority.Issue("127.0.0.1").TLS(t)}, MinVersion: tls.VersionTLS12}
	mutual := server.Clone()
	mutual.ClientAuth, mutual.ClientCAs = tls.RequireAndVerifyClientCert, authority.Pool()
	t.Setenv("PASSWORD_OF_TEST", "hunter2")
	for _, c := range []struct {
		name   string
		broker []kfake.Opt
		file   string
	}{
		{
			"PLAIN over TLS",
			[]kfake.Opt{kfake.TLS(server), kfake.EnableSASL(), kfake.Superuser(saslPlain, "opstream", "hunter2")},
			"kafka-tls: true\nkafka-tls-ca: " + ca + "\nkafka-sasl-mechanism: PLAIN\nkafka-sasl-user: opstream\nkafka-sasl-password: env:PASSWORD_OF_TEST\n",
		},
		{
			"SCRAM-SHA-256 in the clear",
			[]kfake.Opt{kfake.EnableSASL(), kfake.Superuser(saslScram256, "opstream", "hunter2")},
			"kafka-sasl-mechanism: SCRAM-SHA-256\nkafka-sasl-user: opstream\nkafka-sasl-password: file:" + password + "\n",
		},
		{
			"SCRAM-SHA-512 with a client certificate",
			[]kfake.Opt{kfake.TLS(mutual), kfake.EnableSASL(), kfake.Superuser(saslScram512, "opstream", "hunter2")},
			"kafka-tls: true\nkafka-tls-ca: " + ca + "\nkafka-tls-cert: " + cert + "\nkafka-tls-key: " + key + "\nkafka-sasl-mechanism: SCRAM-SHA-512\nkafka-sasl-user: opstream\nkafka-sasl-password: hunter2\n",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, address := secureCluster(t, c.broker...)
			wholeService(t, writeFile(t, "opstream.yaml", "brokers: ["+address+"]\n"+c.file))
		})
	}
}

// TestWholeServiceWithTokens: the broker in memory knows no OAUTHBEARER, so its side of the handshake stands in for one that takes
// every token: what is shown is which bytes the process sends, for every connection of every part, and that each has read the file anew.
func TestWholeServiceWithTokens(t *testing.T) {
	withoutOptions(t)
	cluster, address := secureCluster(t)
	token := certtest.File(t, t.TempDir(), "token", []byte("token-1\n"))
	var mu sync.Mutex
	var seen []string
	cluster.ControlKey(int16(kmsg.SASLHandshake), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		req := r.(*kmsg.SASLHandshakeRequest)
		resp := req.ResponseKind().(*kmsg.SASLHandshakeResponse)
		resp.SupportedMechanisms = []string{saslOAuth}
		if req.Mechanism != saslOAuth {
			return nil, fmt.Errorf("expected the mechanism OAUTHBEARER, but got %s", req.Mechanism), true
		}
		return resp, nil, true
	})
	cluster.ControlKey(int16(kmsg.SASLAuthenticate), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		req := r.(*kmsg.SASLAuthenticateRequest)
		mu.Lock()
		defer mu.Unlock()
		if seen = append(seen, string(req.SASLAuthBytes)); len(seen) == 3 {
			if err := os.WriteFile(token, []byte("token-2"), 0o600); err != nil {
				return nil, err, true
			}
		}
		return req.ResponseKind(), nil, true
	})
	wholeService(t, writeFile(t, "opstream.yaml", "brokers: ["+address+"]\nkafka-sasl-mechanism: OAUTHBEARER\nkafka-sasl-token-file: "+token+"\n"))
	mu.Lock()
	defer mu.Unlock()
	const first, second = "n,,\x01auth=Bearer token-1\x01\x01", "n,,\x01auth=Bearer token-2\x01\x01"
	if i := slices.Index(seen, second); len(seen) < 6 || seen[0] != first || i < 0 || slices.Contains(seen[i:], first) || slices.ContainsFunc(seen, func(s string) bool { return s != first && s != second }) {
		t.Errorf("expected the first token and then the second from everybody, but got %q", seen)
	}
}

// TestRefusedByTheBrokers: whoever is not let in hears so within a bound, hears what to do, and does not see the secret.
func TestRefusedByTheBrokers(t *testing.T) {
	withoutOptions(t)
	dir := t.TempDir()
	authority := certtest.New(t, "authority")
	ca := certtest.File(t, dir, "ca.pem", authority.PEM)
	other := certtest.File(t, dir, "other.pem", certtest.New(t, "other").PEM)
	server := &tls.Config{Certificates: []tls.Certificate{authority.Issue("127.0.0.1").TLS(t)}, MinVersion: tls.VersionTLS12}
	mutual := server.Clone()
	mutual.ClientAuth, mutual.ClientCAs = tls.RequireAndVerifyClientCert, authority.Pool()
	sasl := []kfake.Opt{kfake.EnableSASL(), kfake.Superuser(saslScram256, "opstream", "right"), kfake.Superuser(saslPlain, "opstream", "right")}
	_, plainly := secureCluster(t)
	_, secured := secureCluster(t, kfake.TLS(server))
	_, both := secureCluster(t, kfake.TLS(mutual))
	_, users := secureCluster(t, sasl...)
	withPassword := func(mechanism, password string) string {
		return "kafka-sasl-mechanism: " + mechanism + "\nkafka-sasl-user: opstream\nkafka-sasl-password: " + password + "\n"
	}
	tlsWith := func(ca string) string { return "kafka-tls: true\nkafka-tls-ca: " + ca + "\n" }
	missing := filepath.Join(dir, "none")
	for _, c := range []struct {
		name, brokers, file string
		want                string
	}{
		{"wrong password, SCRAM", users, withPassword(saslScram256, "hunter2"), "check kafka-sasl-user, kafka-sasl-password"},
		{"wrong password, PLAIN", users, withPassword(saslPlain, "hunter2"), "check kafka-sasl-user, kafka-sasl-password"},
		{"no such mechanism there", users, "kafka-sasl-mechanism: OAUTHBEARER\nkafka-sasl-token-file: " + certtest.File(t, dir, "token", []byte("hunter2")) + "\n", "choose another kafka-sasl-mechanism"},
		{"no user", users, "", "or SASL (kafka-sasl-mechanism)"},
		{"password's file is missing", users, withPassword(saslScram256, "file:"+missing), "correct the reference"},
		{"authority that is not known", secured, "kafka-tls: true\n", "name its certificate with kafka-tls-ca"},
		{"wrong authority", secured, tlsWith(other), "name its certificate with kafka-tls-ca"},
		{"another name", secured, tlsWith(ca) + "kafka-tls-server-name: kafka.example.com\n", "kafka-tls-server-name"},
		{"no client certificate", both, tlsWith(ca), "kafka-tls-cert and kafka-tls-key"},
		{"TLS where there is none", plainly, tlsWith(ca), "TLS at this port"},
		{"no TLS where there is", secured, "", "they may expect TLS (kafka-tls)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := writeFile(t, "opstream.yaml", "brokers: ["+c.brokers+"]\n"+c.file)
			var all sync.WaitGroup // they do nothing but wait for brokers
			for _, command := range []string{"serve --roles worker", "serve --roles projector,api --listen 127.0.0.1:0", "journal tail", "deadletter list"} {
				all.Go(func() {
					began := time.Now()
					r := run(t, "", append(strings.Fields(command), "--config", file)...)
					r.expect(t, exitUnavailable, "expected the brokers at "+c.brokers, c.want)
					if took := time.Since(began); took > 2*reachTimeMax {
						t.Errorf("%s: expected to hear so within %s, but it took %s", command, 2*reachTimeMax, took)
					}
					if strings.Contains(r.out+r.err, "hunter2") {
						t.Errorf("%s: expected no secret, but got %s", command, r)
					}
				})
			}
			all.Wait()
		})
	}
}

func TestKafkaAdviceIsForWhatDoesNotPass(t *testing.T) {
	for _, err := range []error{errors.New("x"), os.ErrDeadlineExceeded, fmt.Errorf("dial: %w", os.ErrNotExist)} {
		if got := kafkaAdvice(err); got != "" {
			t.Errorf("%v: expected to wait, but got the advice %q", err, got)
		}
	}
}

func TestAPIOverHTTPS(t *testing.T) {
	withoutOptions(t)
	dir := t.TempDir()
	authority := certtest.New(t, "authority")
	ca := certtest.File(t, dir, "ca.pem", authority.PEM)
	cert, key := authority.Issue("127.0.0.1").Write(t, dir)
	r := begin(t, "dev", "--data", t.TempDir(), "--kafka", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key)
	if !strings.HasPrefix(r.url, "https://") {
		t.Fatalf("expected an address with https, but got %s", r.url)
	}
	run(t, `{"organization": "o", "id": "a", "type": "noop"}`, "op", "submit", "--server", r.url, "--server-ca", ca, "--from", "-", "--wait", "--timeout", "30s").expect(t, exitOK)
	t.Setenv("OPSTREAM_SERVER", r.url)
	run(t, "", "op", "list").expect(t, exitUnavailable, "--server-ca")
	t.Setenv("OPSTREAM_SERVER_CA", ca)
	run(t, "", "op", "list").expect(t, exitOK, "noop")
	run(t, "", "op", "list", "--server-ca", key).expect(t, exitUsage, "server-ca")
	plain, err := http.Get("http://" + strings.TrimPrefix(r.url, "https://") + "/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	if plain.Body.Close(); plain.StatusCode != http.StatusBadRequest {
		t.Errorf("expected plain http to be refused, but got %s", plain.Status)
	}
	if code := r.end(); code != exitOK {
		t.Errorf("expected a clean end, but got exit code %d\n%s", code, r.log)
	}
}

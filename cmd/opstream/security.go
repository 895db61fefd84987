package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/opstream/opstream/internal/bearer"
	"github.com/opstream/opstream/internal/settings"
	"github.com/opstream/opstream/internal/tlsfiles"
)

// The SASL mechanisms, by the names that Kafka has for them.
const (
	saslPlain    = "PLAIN"
	saslScram256 = "SCRAM-SHA-256"
	saslScram512 = "SCRAM-SHA-512"
	saslOAuth    = "OAUTHBEARER"
)

// kafkaSecurity says how every Kafka client of the process connects and who it is.
type kafkaSecurity struct {
	tls                       bool
	ca, cert, key, serverName string

	mechanism, user          string
	password                 settings.Secret
	tokenFile, tokenURL      string
	tokenCA, clientID, scope string
	clientSecret             settings.Secret
}

// targets are what the options kafka-tls… and kafka-sasl… are given to.
func (k *kafkaSecurity) targets() map[string]any {
	return map[string]any{
		"kafka-tls": &k.tls, "kafka-tls-ca": &k.ca, "kafka-tls-cert": &k.cert, "kafka-tls-key": &k.key, "kafka-tls-server-name": &k.serverName,
		"kafka-sasl-mechanism": &k.mechanism, "kafka-sasl-user": &k.user, "kafka-sasl-password": &k.password,
		"kafka-sasl-token-file": &k.tokenFile, "kafka-sasl-token-url": &k.tokenURL, "kafka-sasl-token-ca": &k.tokenCA,
		"kafka-sasl-client-id": &k.clientID, "kafka-sasl-client-secret": &k.clientSecret, "kafka-sasl-scope": &k.scope,
	}
}

// options are those of Kafka clients. The error tells of everything that is wrong with what was given. Certificates are read here
// once, so that a wrong file ends the start and not the first connection; secrets are read when they are needed.
func (k *kafkaSecurity) options(log *slog.Logger) ([]kgo.Opt, error) {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	var opts []kgo.Opt
	if k.tls {
		files, err := tlsfiles.Open(tlsfiles.Config{CA: k.ca, Cert: k.cert, Key: k.key, Log: log})
		if err != nil {
			fault("kafka-tls: %w", err)
		} else {
			opts = append(opts, kgo.Dialer(secureDialer(files, k.serverName)))
		}
	} else {
		for _, o := range []struct{ name, value string }{{"kafka-tls-ca", k.ca}, {"kafka-tls-cert", k.cert}, {"kafka-tls-key", k.key}, {"kafka-tls-server-name", k.serverName}} {
			if o.value != "" {
				fault("expected kafka-tls to be true with %s, but it is not: the connection would be in the clear", o.name)
			}
		}
	}
	mechanism, err := k.sasl(log)
	if err != nil {
		faults = append(faults, err)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	if mechanism != nil {
		opts = append(opts, kgo.SASL(mechanism))
		if !k.tls && (k.mechanism == saslPlain || k.mechanism == saslOAuth) {
			log.Warn("what proves who this client is crosses the network in the clear: set kafka-tls, or use SCRAM", "mechanism", k.mechanism)
		}
	}
	return opts, nil
}

// handshakeTime bounds the TLS handshake of a connection, and reachTimeMax all that is done at the start to find out whether the brokers let
// this process in: a handshake that is not answered must be heard of within it.
const (
	handshakeTime = 4 * time.Second
	reachTimeMax  = 10 * time.Second
)

// errHandshake marks a TLS handshake that the other side did not answer.
var errHandshake = errors.New("the TLS handshake was not answered")

// secureDialer dials with the certificates of the moment.
func secureDialer(files *tlsfiles.Files, serverName string) func(context.Context, string, string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: reachTimeMax}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		name := serverName
		if name == "" {
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				return nil, fmt.Errorf("expected a broker's address as host:port, but: %w", err)
			}
			name = host
		}
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		secure := tls.Client(conn, files.Client(name))
		bounded, cancel := context.WithTimeout(ctx, handshakeTime)
		defer cancel()
		if err := secure.HandshakeContext(bounded); err != nil {
			_ = conn.Close() // the handshake's error says more
			if bounded.Err() != nil && ctx.Err() == nil {
				err = fmt.Errorf("%w within %s", errHandshake, handshakeTime)
			}
			return nil, fmt.Errorf("TLS with %s: %w", address, err)
		}
		return secure, nil
	}
}

// sasl makes the mechanism, nil for none.
func (k *kafkaSecurity) sasl(log *slog.Logger) (sasl.Mechanism, error) {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	needs := func(name string, set bool) {
		if !set {
			fault("expected kafka-sasl-%s with kafka-sasl-mechanism %s, but it is not given", name, k.mechanism)
		}
	}
	// without refuses what means nothing with the mechanism: it was meant for another one.
	without := func(names map[string]string) {
		for _, name := range slices.Sorted(maps.Keys(names)) {
			if names[name] != "" {
				fault("expected no kafka-sasl-%s with kafka-sasl-mechanism %q, which does not use it; remove one of them", name, k.mechanism)
			}
		}
	}
	password := map[string]string{"user": k.user, "password": string(k.password)}
	token := map[string]string{"token-file": k.tokenFile, "token-url": k.tokenURL, "token-ca": k.tokenCA, "client-id": k.clientID, "client-secret": string(k.clientSecret), "scope": k.scope}
	var mechanism sasl.Mechanism
	switch k.mechanism {
	case "":
		without(password)
		without(token)
	case saslOAuth:
		without(password)
		source, err := k.tokens(log)
		if err != nil {
			faults = append(faults, err)
		}
		mechanism = tokenMechanism{oauth.Oauth(func(ctx context.Context) (auth oauth.Auth, err error) {
			auth.Token, err = source(ctx)
			return auth, err
		})}
	default:
		without(token)
		needs("user", k.user != "")
		needs("password", k.password != "")
		switch k.mechanism {
		case saslPlain:
			mechanism = plain.Plain(func(context.Context) (auth plain.Auth, err error) {
				auth.User = k.user
				auth.Pass, err = k.read("password", k.password)
				return auth, err
			})
		default:
			auth := func(context.Context) (auth scram.Auth, err error) {
				auth.User = k.user
				auth.Pass, err = k.read("password", k.password)
				return auth, err
			}
			if mechanism = scram.Sha512(auth); k.mechanism == saslScram256 {
				mechanism = scram.Sha256(auth)
			}
		}
	}
	return mechanism, errors.Join(faults...)
}

// errToken marks that the brokers have refused a token.
var errToken = errors.New("the brokers refuse the token")

// tokenMechanism is OAUTHBEARER that knows a refusal when it hears one: it does not come as an error of Kafka's protocol but as a
// message of the mechanism (RFC 7628, section 3.2.2), which the client has no type for.
type tokenMechanism struct{ sasl.Mechanism }

func (m tokenMechanism) Authenticate(ctx context.Context, host string) (sasl.Session, []byte, error) {
	session, first, err := m.Mechanism.Authenticate(ctx, host)
	return tokenSession{session}, first, err
}

type tokenSession struct{ sasl.Session }

func (s tokenSession) Challenge(answer []byte) (bool, []byte, error) {
	if len(answer) > 0 {
		return false, nil, fmt.Errorf("%w: %s", errToken, clean(cut(string(answer), 200)))
	}
	return s.Session.Challenge(answer)
}

// errSecret marks that a secret could not be read, which the brokers have nothing to do with.
var errSecret = errors.New("a secret cannot be read")

func (k *kafkaSecurity) read(name string, s settings.Secret) (string, error) {
	text, err := s.Read()
	if err != nil {
		return "", fmt.Errorf("%w: kafka-sasl-%s: %w", errSecret, name, err)
	}
	return text, nil
}

// tokens is where the tokens for OAUTHBEARER come from.
func (k *kafkaSecurity) tokens(log *slog.Logger) (bearer.Source, error) {
	switch {
	case (k.tokenFile == "") == (k.tokenURL == ""):
		return nil, errors.New("expected either kafka-sasl-token-file or kafka-sasl-token-url with kafka-sasl-mechanism OAUTHBEARER, which say where tokens come from")
	case k.tokenFile != "":
		if k.tokenCA != "" || k.clientID != "" || k.clientSecret != "" || k.scope != "" {
			return nil, errors.New("expected no kafka-sasl-token-ca, -client-id, -client-secret or -scope with kafka-sasl-token-file: they are for a token endpoint")
		}
		return bearer.File(func() (string, error) { return k.read("token-file", settings.Secret("file:"+k.tokenFile)) }), nil
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if k.tokenCA != "" {
		files, err := tlsfiles.Open(tlsfiles.Config{CA: k.tokenCA, Log: log})
		if err != nil {
			return nil, fmt.Errorf("kafka-sasl-token-ca: %w", err)
		}
		transport.DialTLSContext = secureDialer(files, "")
	}
	secret := func() (string, error) { return k.read("client-secret", k.clientSecret) }
	if k.clientSecret == "" {
		secret = nil
	}
	client, err := bearer.New(bearer.Credentials{
		URL: k.tokenURL, ID: k.clientID, Secret: secret, Scope: k.scope, HTTP: &http.Client{Transport: transport},
	})
	if err != nil {
		return nil, fmt.Errorf("kafka-sasl-token-url: %w; give kafka-sasl-client-id and kafka-sasl-client-secret", err)
	}
	return client.Token, nil
}

// readable says what of the secrets cannot be read now.
func (k *kafkaSecurity) readable() error {
	var faults []error
	secrets := map[string]settings.Secret{"password": k.password, "client-secret": k.clientSecret}
	if k.tokenFile != "" {
		secrets["token-file"] = settings.Secret("file:" + k.tokenFile)
	}
	for _, name := range slices.Sorted(maps.Keys(secrets)) {
		if _, err := k.read(name, secrets[name]); err != nil {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

// reachKafka makes sure that the brokers let this process in. Brokers that cannot be reached now it leaves to the parts, which wait
// for them; what no waiting mends is an error that says what to do.
func reachKafka(ctx context.Context, brokers []string, opts []kgo.Opt, log *slog.Logger) error {
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return usage("expected --brokers such as %s, but: %w", defaultBroker, err)
	}
	defer client.Close()
	bounded, cancel := context.WithTimeout(ctx, reachTimeMax)
	defer cancel()
	// A broker that goes down closes connections as one does that refuses a password; the latter does it each time.
	for range 3 {
		if err = client.Ping(bounded); !errors.Is(err, io.EOF) {
			break
		}
		select {
		case <-bounded.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	switch {
	case err == nil || ctx.Err() != nil:
		return nil // to be stopped is no failure
	case kafkaAdvice(err) == "":
		log.Warn("no broker can be reached yet", "brokers", strings.Join(brokers, ","), "err", err)
		return nil
	}
	return &exitError{exitUnavailable, kafkaRefusal(brokers, err)}
}

func kafkaRefusal(brokers []string, err error) error {
	return fmt.Errorf("expected the brokers at %s to let this client in, but: %w\n%s", clean(strings.Join(brokers, ",")), err, kafkaAdvice(err))
}

// kafkaAdvice says what to do about an error that waiting does not mend: about certificates, passwords, and a side that speaks TLS to
// one that does not. It is "" for all others.
func kafkaAdvice(err error) string {
	var authority x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	var header tls.RecordHeaderError
	var alert tls.AlertError
	var opErr *net.OpError
	var eof *kgo.ErrFirstReadEOF
	switch {
	case errors.Is(err, errSecret):
		return "give this user the right to read it, or correct the reference"
	case errors.Is(err, errToken):
		return "the brokers do not accept this token: see that it has not ended, and that they know who has signed it and for whom (kafka-sasl-token-file, or kafka-sasl-token-url and kafka-sasl-scope)"
	case errors.As(err, &authority):
		return "the brokers' certificate is signed by an authority that is not known here: name its certificate with kafka-tls-ca"
	case errors.As(err, &hostname):
		return "the brokers' certificate bears another name: give one that it bears with kafka-tls-server-name, or name the brokers as it does"
	case errors.As(err, &invalid):
		return "the brokers' certificate cannot be used (see above); renew it, or set this machine's clock"
	case errors.As(err, &header), errors.Is(err, errHandshake):
		return "the brokers do not speak TLS at this port: give the port that does, or leave kafka-tls out"
	case strings.Contains(err.Error(), "tls alert record"): // the client has no type for it
		return "the brokers answer with TLS: they may expect TLS (kafka-tls) at this port"
	case errors.As(err, &alert), errors.As(err, &opErr) && opErr.Op == "remote error":
		return "the brokers refused the TLS connection: when they ask for a client certificate, give one that they accept with kafka-tls-cert and kafka-tls-key"
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return "the brokers do not accept this user and password (or token): check kafka-sasl-user, kafka-sasl-password and kafka-sasl-mechanism, and that the user exists there"
	case errors.Is(err, kerr.UnsupportedSaslMechanism):
		return "the brokers do not know this mechanism: choose another kafka-sasl-mechanism"
	case errors.Is(err, kerr.IllegalSaslState):
		return "the brokers expect no SASL, or another state of it, at this port: check the port and kafka-sasl-mechanism"
	case errors.As(err, &eof):
		return "the brokers closed the connection at once: they may expect TLS (kafka-tls) or SASL (kafka-sasl-mechanism) at this port, or none of them"
	case errors.Is(err, io.EOF):
		return "the brokers closed the connection as this client began to speak: check kafka-sasl-user, kafka-sasl-password and kafka-sasl-mechanism, and whether they expect TLS (kafka-tls) or SASL (kafka-sasl-mechanism) at this port, or none of them"
	}
	return ""
}

// kafkaFlags are what a command needs to read from Kafka: the brokers, and how to connect.
type kafkaFlags struct {
	*options
	brokers  []string
	prefix   string
	security kafkaSecurity
}

// add gives a command --brokers, --topic-prefix and the options of connections.
func (k *kafkaFlags) add(c *cobra.Command) {
	targets := k.security.targets()
	targets["brokers"], targets["topic-prefix"] = &k.brokers, &k.prefix
	k.options = addOptions(c, nil, targets)
}

// connect finds the values and returns the options of clients, without the brokers.
func (k *kafkaFlags) connect(cmd *cobra.Command) ([]kgo.Opt, error) {
	if err := k.resolve(cmd); err != nil {
		return nil, err
	}
	opts, err := k.security.options(slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn})))
	return opts, usageOf(err)
}

// checkPair reads a certificate and its key, if they are given.
func checkPair(cert, key string, log *slog.Logger) error {
	if cert == "" && key == "" {
		return nil
	}
	if _, err := tlsfiles.Open(tlsfiles.Config{Cert: cert, Key: key, Log: log}); err != nil {
		return fmt.Errorf("tls-cert, tls-key: %w", err)
	}
	return nil
}

// secured wraps the API's listener when a certificate is given, and returns the scheme of its address. Only HTTP/1.1 is spoken: that
// is what the API's limits are made for.
func (c *serviceConfig) secured(l net.Listener) (net.Listener, string, error) {
	if c.tlsCert == "" && c.tlsKey == "" {
		return l, "http", nil
	}
	files, err := tlsfiles.Open(tlsfiles.Config{Cert: c.tlsCert, Key: c.tlsKey, Log: c.log})
	if err != nil {
		return nil, "", errors.Join(fmt.Errorf("tls-cert, tls-key: %w", err), l.Close())
	}
	return tls.NewListener(l, files.Server("http/1.1")), "https", nil
}

package kafkatest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opstream/opstream/internal/tlsfiles/certtest"
)

// Root is the super user of every [Secure].
const Root = "root"

// tokenAudience is what deploy/local/kafka has the broker expect of tokens.
const tokenAudience = "kafka"

// Secure is an Apache Kafka of one test that speaks TLS alone, lets in whom it knows, and lets everybody do what an ACL allows and
// nothing else. A client is known by password (SCRAM-SHA-256, SCRAM-SHA-512, PLAIN) or token (OAUTHBEARER) at one address, and by its
// certificate at another, where it is called as the certificate's CN.
type Secure struct {
	*Local
	SASL, Mutual string // addresses
	// Authority has signed the broker's certificate, and signs those that it lets in.
	Authority *certtest.Authority

	passwords map[string]string
	signer    *TokenKey
}

// StartSecure starts one with these users beside [Root]. It ends with the test, which is skipped where nobody has asked for an Apache
// Kafka.
func StartSecure(t testing.TB, users ...string) *Secure {
	t.Helper()
	leaveOut(t)
	s := &Secure{Authority: certtest.New(t, "authority of the brokers"), passwords: map[string]string{}, signer: NewTokenKey(t)}
	dir, names := t.TempDir(), ""
	for _, user := range append(users, Root) {
		s.passwords[user] = "secret-" + rand.Text()
		names += user + " " + s.passwords[user] + "\n"
	}
	certtest.File(t, dir, "users", []byte(names))
	certtest.File(t, dir, "ca.crt", s.Authority.PEM)
	certtest.File(t, dir, "jwks.json", s.signer.jwks(t))
	s.Authority.Issue("127.0.0.1").Write(t, dir)
	s.Local = startFor(t, "", 1, "--secure", dir)
	for _, seed := range s.seeds {
		protocol, address, _ := strings.Cut(seed, "://")
		switch protocol {
		case "SASL_SSL":
			s.SASL = address
		case "SSL":
			s.Mutual = address
		}
	}
	if s.SASL == "" || s.Mutual == "" {
		t.Fatalf("expected deploy/local/kafka to print two addresses, but got %q", s.seeds)
	}
	return s
}

// Password is what this user proves itself with.
func (s *Secure) Password(user string) string { return s.passwords[user] }

// Token is a token that the broker takes for this long; a negative time is one that has ended.
func (s *Secure) Token(t testing.TB, user string, life time.Duration) string {
	t.Helper()
	return s.signer.Sign(t, user, life)
}

// TokenKey signs tokens.
type TokenKey struct{ key *ecdsa.PrivateKey }

// NewTokenKey makes a key that no broker knows yet.
func NewTokenKey(t testing.TB) *TokenKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &TokenKey{key}
}

func encoded(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// jwks is the public half as RFC 7517 has it.
func (k *TokenKey) jwks(t testing.TB) []byte {
	t.Helper()
	point, err := k.key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Appendf(nil, `{"keys": [{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "test", "x": %q, "y": %q}]}`,
		encoded(point[1:33]), encoded(point[33:]))
}

// Sign makes a token as RFC 7519 has it.
func (k *TokenKey) Sign(t testing.TB, user string, life time.Duration) string {
	t.Helper()
	now := time.Now()
	claims, err := json.Marshal(map[string]any{
		"iss": "test", "aud": tokenAudience, "sub": user, "jti": rand.Text(), "scope": "kafka",
		"iat": now.Add(min(life, 0) - time.Second).Unix(), "exp": now.Add(life).Unix(),
	})
	if err != nil {
		t.Fatal(err)
	}
	text := encoded([]byte(`{"alg":"ES256","kid":"test","typ":"JWT"}`)) + "." + encoded(claims)
	digest := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, k.key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return text + "." + encoded(signature)
}

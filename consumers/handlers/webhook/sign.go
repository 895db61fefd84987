package webhook

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The headers of Standard Webhooks, in Go's canonical form.
const (
	HeaderID        = "Webhook-Id"
	HeaderTimestamp = "Webhook-Timestamp"
	HeaderSignature = "Webhook-Signature"
)

// Tolerance is how far a receiver's clock and a message's timestamp may be apart unless [Verify] is told otherwise.
const Tolerance = 5 * time.Minute

// MinKey is the least length of a key in bytes, as the specification has it. A shorter one is refused on both sides: it is
// a mistake more often than a choice, and an empty one would sign for everybody.
const MinKey = 24

// What is wrong with a message. A receiver answers each with 401.
var (
	ErrHeaders   = errors.New("webhook: the signature headers are missing or malformed")
	ErrTimestamp = errors.New("webhook: the message is too old or too new")
	ErrSignature = errors.New("webhook: no signature fits the message and the keys")
)

const secretPrefix = "whsec_"

// Key makes a signing key of a secret: what follows whsec_ is base64, and anything else is the key itself. Its error does
// not show the secret.
func Key(secret []byte) ([]byte, error) {
	key := secret
	if text, ok := bytes.CutPrefix(bytes.TrimSpace(secret), []byte(secretPrefix)); ok {
		key = make([]byte, base64.StdEncoding.DecodedLen(len(text)))
		n, err := base64.StdEncoding.Decode(key, text)
		if err != nil {
			return nil, fmt.Errorf("expected base64 after %s in a webhook secret, but it is none", secretPrefix)
		}
		key = key[:n]
	}
	if len(key) < MinKey {
		return nil, fmt.Errorf("expected a webhook secret of at least %d bytes, but it has %d", MinKey, len(key))
	}
	return key, nil
}

// Sign returns one signature as it stands in the header: v1, a comma, and the HMAC-SHA256 of id, timestamp and body in
// base64. The id must not hold a full stop, which separates the three.
func Sign(key []byte, id string, at time.Time, body []byte) string {
	return sign(key, id, strconv.FormatInt(at.Unix(), 10), body)
}

func sign(key []byte, id, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, key)
	head := make([]byte, 0, 128)
	head = append(head, id...)
	head = append(head, '.')
	head = append(head, timestamp...)
	head = append(head, '.')
	mac.Write(head)
	mac.Write(body)
	const version = "v1,"
	out := append(head[:0], version...)
	return string(base64.StdEncoding.AppendEncode(out, mac.Sum(make([]byte, 0, sha256.Size))))
}

// Verify tells a receiver whether a message was sent by somebody who has one of the secrets, within the tolerance of now
// (zero means [Tolerance]), and returns the message's id. Secrets are what [Key] takes; give the old one beside the new
// one while they change over. The body must be the bytes that came in, not JSON that was read and written again.
//
// The id is the same in every attempt of an operation: do nothing for an id that was dealt with, and answer as before.
func Verify(header http.Header, body []byte, now time.Time, tolerance time.Duration, secrets ...[]byte) (id string, err error) {
	if tolerance <= 0 {
		tolerance = Tolerance
	}
	if len(secrets) == 0 {
		return "", errors.New("expected at least one secret to verify a webhook with, but there is none")
	}
	// A header that comes twice would let two readers see two different messages.
	ids, timestamps, signatures := header[HeaderID], header[HeaderTimestamp], header[HeaderSignature]
	if len(ids) != 1 || len(timestamps) != 1 || len(signatures) != 1 {
		return "", fmt.Errorf("%w: expected one each of %s, %s and %s, but there are %d, %d and %d",
			ErrHeaders, HeaderID, HeaderTimestamp, HeaderSignature, len(ids), len(timestamps), len(signatures))
	}
	id = ids[0]
	if id == "" || strings.Contains(id, ".") {
		return "", fmt.Errorf("%w: expected an id without full stops, but it is %.100q", ErrHeaders, id)
	}
	sent, err := parseTimestamp(timestamps[0])
	if err != nil {
		return "", err
	}
	if apart := now.Sub(sent); apart > tolerance || apart < -tolerance {
		return "", fmt.Errorf("%w: it was sent at %s, and now it is %s", ErrTimestamp, sent.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}

	// No early end: how long this takes depends on the numbers of secrets and signatures alone.
	fits := false
	for i, secret := range secrets {
		key, err := Key(secret)
		if err != nil {
			return "", fmt.Errorf("secret %d: %w", i+1, err)
		}
		want := []byte(sign(key, id, timestamps[0], body))
		for got := range strings.SplitSeq(signatures[0], " ") {
			if hmac.Equal([]byte(got), want) {
				fits = true
			}
		}
	}
	if !fits {
		return "", ErrSignature
	}
	return id, nil
}

// parseTimestamp takes digits only, so that a timestamp has one form, and few enough for every clock.
func parseTimestamp(s string) (time.Time, error) {
	const digits = "0123456789"
	if s == "" || len(s) > 11 || strings.Trim(s, digits) != "" {
		return time.Time{}, fmt.Errorf("%w: expected seconds since 1970 as the timestamp, but it is %.40q", ErrHeaders, s)
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("%w: %w", ErrHeaders, err)
	}
	return time.Unix(n, 0), nil
}

package webhook

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
)

// The signatures were computed by other programs: the first is in the tests of the specification's own libraries, and all
// were computed again with Python's hmac module, the second with openssl as well.
var vectors = []struct {
	secret, id string
	at         int64
	body, want string
}{
	{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, `{"test": 2432232314}`, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
	{prefixedKey, "contoso/7d9f1f2e-0001", 1764000000, `{"account":"A-17"}`, "v1,tWp0eNzDuwv1ApDjCx17WLW9wU/ISKOv3ETbfalMB48="},
	{prefixedKey, "contoso/7d9f1f2e-0001", 1764000000, ``, "v1,DZi0QHWO8vpG3/3gCRcIkCw++4kfWE2W0UH1mpwRz0c="},
	{string(bytes.Repeat([]byte("k"), 64)), "contoso/op%C3%A9", 1, `{"n":"Zoë"}`, "v1,5XHoKDhwfgpdnRh/muI5s89+qJ5rKIjTlJAO8lvQZqk="},
}

func TestSignatureVectors(t *testing.T) {
	for _, v := range vectors {
		key, err := Key([]byte(v.secret))
		if err != nil {
			t.Fatal(err)
		}
		at := time.Unix(v.at, 999_999_999)
		if got := Sign(key, v.id, at, []byte(v.body)); got != v.want {
			t.Errorf("%s: got %s, want %s", v.id, got, v.want)
		}
		header := http.Header{}
		header.Set("webhook-id", v.id)
		header.Set("webhook-timestamp", itoa(v.at))
		header.Set("webhook-signature", v.want)
		if id, err := Verify(header, []byte(v.body), at, 0, []byte(v.secret)); err != nil || id != v.id {
			t.Errorf("%s: verifying gives %q, %v", v.id, id, err)
		}
	}
}

func TestKey(t *testing.T) {
	for secret, want := range map[string][]byte{
		prefixedKey:                        rawKey,
		"  " + prefixedKey + "\n":          rawKey, // as it stands in a file
		string(rawKey):                     rawKey,
		"whsec_AAECAwQFBgcICQoLDA0ODxAR":   nil, // 18 bytes
		"whsec_not base64 at all, that is": nil,
		"whsec_":                           nil,
		"":                                 nil,
		"short":                            nil,
	} {
		key, err := Key([]byte(secret))
		if want == nil {
			if err == nil || len(secret) > 8 && strings.Contains(err.Error(), secret[6:]) {
				t.Errorf("%q: expected an error without the secret, but got %v, %v", secret, key, err)
			}
			continue
		}
		if err != nil || !bytes.Equal(key, want) {
			t.Errorf("%q: got %v, %v", secret, key, err)
		}
	}
}

func TestVerify(t *testing.T) {
	const id, at, body = "contoso/op-1", int64(1764000000), `{"a":1}`
	other := bytes.Repeat([]byte("o"), 32)
	signed := func(key []byte) string { return sign(key, id, itoa(at), []byte(body)) }
	good := signed(rawKey)
	for _, c := range []struct {
		name    string
		change  func(http.Header)
		body    string
		now     int64
		secrets [][]byte
		want    error
	}{
		{name: "as sent"},
		{name: "prefixed secret", secrets: [][]byte{[]byte(prefixedKey)}},
		{name: "receiver has both keys, sender the old one", secrets: [][]byte{other, rawKey}},
		{name: "sender has both keys", change: func(h http.Header) { h.Set(HeaderSignature, signed(other)+" "+good) }},
		{name: "other versions beside", change: func(h http.Header) { h.Set(HeaderSignature, "v1a,AAAA v2,"+good[3:]+"  "+good) }},
		{name: "edge of the past", now: at + 300},
		{name: "edge of the future", now: at - 300},

		{name: "too old", now: at + 301, want: ErrTimestamp},
		{name: "too new", now: at - 301, want: ErrTimestamp},
		{name: "another body", body: `{"a":2}`, want: ErrSignature},
		{name: "another key", secrets: [][]byte{other}, want: ErrSignature},
		{name: "another id", change: func(h http.Header) { h.Set(HeaderID, "contoso/op-2") }, want: ErrSignature},
		{name: "another time", change: func(h http.Header) { h.Set(HeaderTimestamp, itoa(at+1)) }, want: ErrSignature},
		{name: "time with a leading zero", change: func(h http.Header) { h.Set(HeaderTimestamp, "0"+itoa(at)) }, want: ErrSignature},
		{name: "empty signature", change: func(h http.Header) { h.Set(HeaderSignature, "v1,") }, want: ErrSignature},
		{name: "beginning of a signature", change: func(h http.Header) { h.Set(HeaderSignature, good[:20]) }, want: ErrSignature},
		{name: "another version", change: func(h http.Header) { h.Set(HeaderSignature, "v2"+good[2:]) }, want: ErrSignature},
		{name: "no version", change: func(h http.Header) { h.Set(HeaderSignature, good[3:]) }, want: ErrSignature},

		{name: "no id", change: func(h http.Header) { h.Del(HeaderID) }, want: ErrHeaders},
		{name: "no timestamp", change: func(h http.Header) { h.Del(HeaderTimestamp) }, want: ErrHeaders},
		{name: "no signature", change: func(h http.Header) { h.Del(HeaderSignature) }, want: ErrHeaders},
		{name: "two ids", change: func(h http.Header) { h.Add(HeaderID, "contoso/op-2") }, want: ErrHeaders},
		{name: "empty id", change: func(h http.Header) { h.Set(HeaderID, "") }, want: ErrHeaders},
		{name: "signed time", change: func(h http.Header) { h.Set(HeaderTimestamp, "+"+itoa(at)) }, want: ErrHeaders},
		{name: "no time", change: func(h http.Header) { h.Set(HeaderTimestamp, "yesterday") }, want: ErrHeaders},
		{name: "far future", change: func(h http.Header) { h.Set(HeaderTimestamp, "99999999999999999999") }, want: ErrHeaders},
		{name: "last digits that are taken", change: func(h http.Header) { h.Set(HeaderTimestamp, "99999999999") }, want: ErrTimestamp},
	} {
		header := http.Header{HeaderID: {id}, HeaderTimestamp: {itoa(at)}, HeaderSignature: {good}}
		if c.change != nil {
			c.change(header)
		}
		if c.body == "" {
			c.body = body
		}
		if c.now == 0 {
			c.now = at
		}
		if c.secrets == nil {
			c.secrets = [][]byte{rawKey}
		}
		got, err := Verify(header, []byte(c.body), time.Unix(c.now, 0), 0, c.secrets...)
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) || err == nil && got != id {
			t.Errorf("%s: got %q, %v; want %v", c.name, got, err, c.want)
		}
	}

	header := http.Header{HeaderID: {id}, HeaderTimestamp: {itoa(at)}, HeaderSignature: {sign(nil, id, itoa(at), []byte(body))}}
	for _, secrets := range [][][]byte{nil, {nil}, {{}}, {rawKey, nil}} {
		if _, err := Verify(header, []byte(body), time.Unix(at, 0), 0, secrets...); err == nil {
			t.Errorf("expected secrets %q to verify nothing, but they do", secrets)
		}
	}
}

// A full stop in an id would let the signature of one message stand for another, whose id is the part before it.
func TestFullStopsAreRefused(t *testing.T) {
	const body = `{}`
	// Somebody whose operation is named contoso/op-1.1764000000 sees this signature …
	seen := sign(rawKey, "contoso/op-1.1764000000", "1764000005", []byte(body))
	// … which fits a message contoso/op-1 with another body, too.
	if sign(rawKey, "contoso/op-1", "1764000000", []byte("1764000005."+body)) != seen {
		t.Fatal("expected the two to be signed alike")
	}
	header := http.Header{HeaderID: {"contoso/op-1.1764000000"}, HeaderTimestamp: {"1764000005"}, HeaderSignature: {seen}}
	if _, err := Verify(header, []byte(body), time.Unix(1764000005, 0), 0, rawKey); !errors.Is(err, ErrHeaders) {
		t.Errorf("expected an id with a full stop to be refused, but got %v", err)
	}
	// So this side never sends one.
	op := opOf(t)
	op.ID = "op-1.1764000000"
	if got := messageID(op); got != "contoso/op-1%2E1764000000" {
		t.Errorf("got %q", got)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add("contoso/op-1", "1764000000", "v1,AAAA", []byte(`{}`))
	f.Fuzz(func(t *testing.T, id, timestamp, signature string, body []byte) {
		header := http.Header{HeaderID: {id}, HeaderTimestamp: {timestamp}, HeaderSignature: {signature}}
		if _, err := Verify(header, body, time.Unix(1764000000, 0), 0, rawKey); err == nil && !strings.Contains(signature, sign(rawKey, id, timestamp, body)) {
			t.Errorf("verified without a signature")
		}
	})
}

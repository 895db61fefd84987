package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opstream/opstream/consumers/worker"
)

// EventType is the event's type when the operation's data names none.
const EventType = "opstream.plugin.execute.v1"

// The bounds of what data may ask for.
const (
	maxURL         = 8 << 10
	maxAttribute   = 256
	maxHeaders     = 64
	maxHeaderBytes = 16 << 10
	maxKeys        = 4
)

// data is what the operation's data may hold.
type data struct {
	URL            string            `json:"url"`
	Method         string            `json:"method"`
	Headers        map[string]string `json:"headers"`
	Payload        json.RawMessage   `json:"payload"`
	SecretName     string            `json:"secretName"`
	TimeoutSeconds *float64          `json:"timeoutSeconds"`
	Type           string            `json:"type"`
	Subject        string            `json:"subject"`
}

// timeout is how long the whole call may take.
func (c *Config) timeout(d *data) (time.Duration, error) {
	if d.TimeoutSeconds == nil {
		return c.Timeout, nil
	}
	if s := *d.TimeoutSeconds; s > 0 && s <= c.MaxTimeout.Seconds() {
		return time.Duration(s * float64(time.Second)), nil
	}
	return 0, fmt.Errorf("expected timeoutSeconds above 0 and up to %v, but it is %v", c.MaxTimeout.Seconds(), *d.TimeoutSeconds)
}

// check looks at everything that data alone decides, and returns the URL.
func (c *Config) check(d *data) (*url.URL, error) {
	u, err := c.target(d.URL)
	if err != nil {
		return nil, err
	}
	switch d.Method {
	case "":
		d.Method = http.MethodPost
	case http.MethodPost, http.MethodPut, http.MethodPatch:
	default:
		return nil, invalid("expected the method POST, PUT or PATCH, but it is %.40q", d.Method)
	}
	if d.Type == "" {
		d.Type = EventType
	}
	for _, a := range [...]struct{ name, value string }{{"type", d.Type}, {"subject", d.Subject}, {"secretName", d.SecretName}} {
		if len(a.value) > maxAttribute || strings.ContainsFunc(a.value, isControl) {
			return nil, invalid("expected %s to have at most %d bytes and no control characters, but it is %.100q", a.name, maxAttribute, a.value)
		}
	}
	if len(d.Headers) > maxHeaders {
		return nil, invalid("expected at most %d headers, but there are %d", maxHeaders, len(d.Headers))
	}
	return u, nil
}

// target refuses what can be refused without asking a name server. That a name leads to a refused address is found out
// when it is dialed.
func (c *Config) target(raw string) (*url.URL, error) {
	if raw == "" || len(raw) > maxURL {
		return nil, invalid("expected a url of 1 to %d bytes, but it has %d", maxURL, len(raw))
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, invalid("expected a url, but it cannot be read as one")
	}
	switch {
	case u.Scheme == "http" && !c.AllowPlain:
		return nil, invalid("expected an https url, but it is http, which this installation does not allow")
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, invalid("expected an https url, but its scheme is %.40q", u.Scheme)
	case u.Hostname() == "" || u.Opaque != "":
		return nil, invalid("expected a url with a host, but it has none")
	case u.User != nil:
		return nil, invalid("expected a url without user and password, which would stay in the log for ever; use secretName")
	case u.Fragment != "":
		return nil, invalid("expected a url without a fragment, which is never sent")
	case strings.ContainsAny(u.Hostname(), "%\\"):
		return nil, invalid("expected a plain host name or address, but it is %.100q", u.Hostname())
	}
	port := uint64(443)
	if u.Scheme == "http" {
		port = 80
	}
	if text := u.Port(); text != "" {
		if port, err = strconv.ParseUint(text, 10, 16); err != nil || port == 0 {
			return nil, invalid("expected a port from 1 to 65535, but it is %.40q", text)
		}
	}
	if len(c.Ports) > 0 && !slices.Contains(c.Ports, uint16(port)) {
		return nil, invalid("expected one of the ports %v, but it is %d", c.Ports, port)
	}
	if a, err := netip.ParseAddr(u.Hostname()); err == nil {
		if reason := c.refused(a); reason != "" {
			return nil, refusedAddress(u.Host, &addressError{reason})
		}
	}
	return u, nil
}

// reserved are the headers that the data may not set: those that frame the message or speak to the next hop, those that
// this package sets, and those that hold credentials, which would stay in the log for ever.
var reserved = map[string]string{
	"Connection": framing, "Keep-Alive": framing, "Proxy-Connection": framing, "Te": framing, "Trailer": framing,
	"Transfer-Encoding": framing, "Upgrade": framing, "Expect": framing, "Host": framing, "Content-Length": framing,
	"Http2-Settings": framing, "Content-Encoding": framing, "Accept-Encoding": framing,
	"Content-Type": own, "Idempotency-Key": own, "X-Idempotency-Key": own,
	"Authorization": secret, "Proxy-Authorization": secret, "Proxy-Authenticate": secret, "Cookie": secret,
}

const (
	framing = "it belongs to the connection"
	own     = "the handler sets it"
	secret  = "credentials do not belong into an operation's data; use secretName"
)

// setHeaders copies the data's headers.
func setHeaders(h http.Header, from map[string]string) error {
	size := 0
	for name, value := range from {
		if !isToken(name) {
			return invalid("expected a header name, but it is %.100q", name)
		}
		key := http.CanonicalHeaderKey(name)
		why := reserved[key]
		for _, prefix := range [...]string{"Ce-", "Webhook-", "Opstream-"} {
			if strings.HasPrefix(key, prefix) {
				why = own
			}
		}
		if why != "" {
			return invalid("expected headers that data may set, but %s is none: %s", key, why)
		}
		if !isHeaderText(value) {
			return invalid("expected printable ASCII in header %s, but there is something else", key)
		}
		if _, twice := h[key]; twice {
			return invalid("expected each header once, but %s comes twice", key)
		}
		if size += len(name) + len(value); size > maxHeaderBytes {
			return invalid("expected at most %d bytes of headers, but there are more", maxHeaderBytes)
		}
		h[key] = []string{value}
	}
	return nil
}

// request builds the call. The URL and the data have been checked.
func (h *Handler) request(ctx context.Context, op *worker.Operation, d *data, u *url.URL) (*http.Request, error) {
	header := make(http.Header, 16+len(d.Headers))
	if err := setHeaders(header, d.Headers); err != nil {
		return nil, err
	}
	if h.cfg.Authorize != nil {
		if err := h.cfg.Authorize(ctx, op.Organization, d.SecretName, header); err != nil {
			return nil, noSecret(asItSays, fmt.Errorf("expected to find the credentials of %q, but: %w", d.SecretName, err))
		}
	}
	now := h.cfg.Now()
	id, timestamp := messageID(op), strconv.FormatInt(now.Unix(), 10)

	values := make([]string, 0, 16) // one array for all
	set := func(key, value string) {
		values = append(values, value)
		header[key] = values[len(values)-1 : len(values) : len(values)]
	}
	set("Ce-Specversion", "1.0")
	set("Ce-Id", encode(string(op.ID), ""))
	set("Ce-Type", encode(d.Type, ""))
	set("Ce-Source", encode("/organizations/"+url.PathEscape(op.Organization), ""))
	set("Ce-Time", now.UTC().Format(time.RFC3339Nano))
	if s := subject(op, d); s != "" {
		set("Ce-Subject", encode(s, ""))
	}
	if len(d.Payload) > 0 {
		set("Content-Type", "application/json")
	}
	// The transport takes this header to mean that it may send again when a kept connection turns out to be dead.
	set("Idempotency-Key", encode(op.OperationKey(), ""))
	set("Opstream-Attempt", strconv.FormatUint(uint64(op.Attempt), 10))
	set(HeaderID, id)
	set(HeaderTimestamp, timestamp)
	if _, given := header["User-Agent"]; !given {
		set("User-Agent", h.cfg.UserAgent)
	}
	if d.SecretName != "" {
		signatures, err := h.signatures(ctx, op, d, id, timestamp)
		if err != nil {
			return nil, err
		}
		set(HeaderSignature, signatures)
	} else if h.cfg.RequireSignature {
		return nil, invalid("expected a secretName, because this installation sends no unsigned calls")
	}

	body := d.Payload
	r := &http.Request{
		Method: d.Method, URL: u, Host: u.Host, Header: header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: http.NoBody, GetBody: func() (io.ReadCloser, error) { return http.NoBody, nil },
	}
	if len(body) > 0 {
		r.ContentLength = int64(len(body))
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		r.Body, _ = r.GetBody()
	}
	return r.WithContext(ctx), nil
}

// signatures signs with every key there is, so that a receiver may change over at any time.
func (h *Handler) signatures(ctx context.Context, op *worker.Operation, d *data, id, timestamp string) (string, error) {
	if h.cfg.Secrets == nil {
		return "", noSecret(worker.Suspend, fmt.Errorf("expected a store of secrets to look up %q in, but this worker has none", d.SecretName))
	}
	secrets, err := h.cfg.Secrets(ctx, op.Organization, d.SecretName)
	switch {
	case err != nil:
		return "", noSecret(asItSays, fmt.Errorf("expected to find the secret %q, but: %w", d.SecretName, err))
	case len(secrets) == 0:
		return "", noSecret(worker.Suspend, fmt.Errorf("expected the secret %q, but organization %q has none of that name", d.SecretName, op.Organization))
	case len(secrets) > maxKeys:
		return "", noSecret(worker.Suspend, fmt.Errorf("expected at most %d keys of the secret %q, but there are %d; remove the oldest", maxKeys, d.SecretName, len(secrets)))
	}
	out := ""
	for i, s := range secrets {
		key, err := Key(s)
		if err != nil {
			return "", noSecret(worker.Suspend, fmt.Errorf("key %d of the secret %q: %w", i+1, d.SecretName, err))
		}
		if i > 0 {
			out += " "
		}
		out += sign(key, id, timestamp, d.Payload)
	}
	return out, nil
}

// asItSays leaves the class to the error: a store that knows better than to try again says worker.Suspend or worker.Final.
func asItSays(err error) error { return err }

func noSecret(class func(error) error, err error) error {
	return class(worker.WithCode(err, CodeSecret, 0, "The secret that signs the call could not be used."))
}

// messageID is the same for all attempts of an operation. It holds no full stop, because full stops part it from the
// timestamp in what is signed: with one in it, a signature would fit a second message as well.
func messageID(op *worker.Operation) string { return encode(op.OperationKey(), ".") }

func subject(op *worker.Operation, d *data) string {
	if d.Subject != "" {
		return d.Subject
	}
	if r := op.Request; r != nil && r.Context != nil && r.Context.RegardingType != "" && r.Context.RegardingID != "" {
		return r.Context.RegardingType + "/" + r.Context.RegardingID
	}
	return ""
}

// encode writes s as the HTTP binding of CloudEvents asks: a space, a quote, a percent sign, and what is not printable
// ASCII become percent and two digits for each byte. So do the bytes of more.
func encode(s, more string) string {
	plain := func(c byte) bool {
		return c > ' ' && c <= '~' && c != '"' && c != '%' && strings.IndexByte(more, c) < 0
	}
	i := 0
	for i < len(s) && plain(s[i]) {
		i++
	}
	if i == len(s) {
		return s
	}
	const digits = "0123456789ABCDEF"
	out := append(make([]byte, 0, len(s)+16), s[:i]...)
	for ; i < len(s); i++ {
		if c := s[i]; plain(c) {
			out = append(out, c)
		} else {
			out = append(out, '%', digits[c>>4], digits[c&15])
		}
	}
	return string(out)
}

// isToken says whether s is a header's name, by RFC 9110.
func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		alphanumeric := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !alphanumeric && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// isHeaderText says whether s may be a header's value. What lies beyond ASCII is legal, but means something else to everyone.
func isHeaderText(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r != '\t' && (r < ' ' || r > '~') })
}

func isControl(r rune) bool { return r < ' ' || r >= 0x7F && r <= 0x9F }

func invalid(format string, values ...any) error {
	return worker.Final(worker.WithCode(fmt.Errorf("webhook: "+format, values...), worker.CodeInvalidData, 0, ""))
}

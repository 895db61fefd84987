package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/opstream/opstream/consumers/worker"
)

// Config is what the operator of the worker decides, and no operation's data can.
type Config struct {
	// Secrets looks up what signs the calls of an organization: all keys in force under the name, the newest first, each
	// raw or in the form whsec_ and base64. None means that there is no such name, which waits for a person; an error is
	// tried again. It is called for every call that names a secret, so it should remember. Default: no call can be signed.
	Secrets func(ctx context.Context, organization, name string) ([][]byte, error)
	// RequireSignature refuses operations that name no secret. Default: they are sent without a signature.
	RequireSignature bool
	// Authorize adds credentials, such as an Authorization header, to a call; name is the data's secretName, and may be
	// empty. It cannot replace the headers that the handler sets. Default: none.
	Authorize func(ctx context.Context, organization, name string, header http.Header) error

	// AllowPrivate opens the ranges of private networks: loopback, RFC 1918, carriers' networks, unique local. Link-local
	// addresses and the metadata services of cloud hosts stay shut. Default: public addresses only.
	AllowPrivate bool
	// Allow opens these ranges whatever they are. Default: none.
	Allow []netip.Prefix
	// AllowPlain allows http beside https. Default: https only.
	AllowPlain bool
	// Ports are the ports that may be called. Default: any.
	Ports []uint16

	// Timeout bounds a whole call whose data says nothing about it, from looking up the secret to the last byte of the
	// answer. Default: 30 s.
	Timeout time.Duration
	// MaxTimeout bounds what data may ask for. Default: 2 minutes, as the original gave its plug-ins.
	MaxTimeout time.Duration
	// DialTimeout bounds the connection to one address, with the look-up of the name. Default: 5 s.
	DialTimeout time.Duration
	// TLSTimeout bounds the TLS handshake. Default: 5 s.
	TLSTimeout time.Duration
	// HeaderTimeout bounds the wait for an answer once the request is sent. Default: MaxTimeout, so that only Timeout counts.
	HeaderTimeout time.Duration

	// MaxIdle bounds the connections that are kept although they have nothing to do. Default: 256.
	MaxIdle int
	// MaxIdlePerHost is its part for one host. Default: 32.
	MaxIdlePerHost int
	// IdleTimeout closes a kept connection. Default: 90 s.
	IdleTimeout time.Duration

	// TLS is copied; give it roots or a client certificate. Default: the system's roots, TLS 1.2 and newer.
	TLS *tls.Config
	// Resolver resolves the names. Default: net.DefaultResolver.
	Resolver *net.Resolver
	// Proxy returns the proxy for a call. The addresses that are checked are then the proxy's, so the proxy must refuse
	// what lies behind it. Default: none, whatever the environment says.
	Proxy func(*http.Request) (*url.URL, error)
	// UserAgent is the header of that name, unless data sets it. Default: opstream-webhook/1.
	UserAgent string
	// Now is the clock of timestamps and of Retry-After. Default: time.Now.
	Now func() time.Time
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		of *time.Duration
		is time.Duration
	}{{&c.MaxTimeout, 2 * time.Minute}, {&c.DialTimeout, 5 * time.Second}, {&c.TLSTimeout, 5 * time.Second}, {&c.IdleTimeout, 90 * time.Second}} {
		if *d.of == 0 {
			*d.of = d.is
		}
	}
	if c.Timeout == 0 {
		c.Timeout = min(30*time.Second, c.MaxTimeout)
	}
	if c.HeaderTimeout == 0 {
		c.HeaderTimeout = c.MaxTimeout
	}
	if c.MaxIdle == 0 {
		c.MaxIdle = 256
	}
	if c.MaxIdlePerHost == 0 {
		c.MaxIdlePerHost = min(32, c.MaxIdle)
	}
	if c.TLS == nil {
		c.TLS = &tls.Config{}
	}
	c.TLS = c.TLS.Clone()
	if c.TLS.MinVersion == 0 {
		c.TLS.MinVersion = tls.VersionTLS12
	}
	if c.UserAgent == "" {
		c.UserAgent = "opstream-webhook/1"
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Allow, c.Ports = slices.Clone(c.Allow), slices.Clone(c.Ports)
	return c
}

// validate reports all faults at once. Defaults are in place.
func (c *Config) validate() error {
	var faults []error
	fault := func(format string, values ...any) { faults = append(faults, fmt.Errorf("webhook: "+format, values...)) }
	for _, d := range []struct {
		name string
		is   time.Duration
	}{
		{"Timeout", c.Timeout},
		{"MaxTimeout", c.MaxTimeout},
		{"DialTimeout", c.DialTimeout},
		{"TLSTimeout", c.TLSTimeout},
		{"HeaderTimeout", c.HeaderTimeout},
		{"IdleTimeout", c.IdleTimeout},
	} {
		if d.is < 0 {
			fault("expected %s to be positive, but it is %s", d.name, d.is)
		}
	}
	if c.Timeout > c.MaxTimeout {
		fault("expected Timeout to be at most MaxTimeout, %s, but it is %s", c.MaxTimeout, c.Timeout)
	}
	if c.MaxIdle < 0 || c.MaxIdlePerHost < 0 {
		fault("expected MaxIdle and MaxIdlePerHost to be positive, but they are %d and %d", c.MaxIdle, c.MaxIdlePerHost)
	}
	for _, p := range c.Allow {
		switch {
		case !p.IsValid():
			fault("expected Allow to hold ranges of addresses, but one is empty")
		case p.Addr().Is4In6():
			fault("expected ranges of IPv4 in Allow to be written as such, but %s is written as IPv6", p)
		}
	}
	if slices.Contains(c.Ports, 0) {
		fault("expected Ports from 1 to 65535, but one is 0")
	}
	if !isHeaderText(c.UserAgent) {
		fault("expected UserAgent to be printable ASCII, but it is %q", c.UserAgent)
	}
	return errors.Join(faults...)
}

// Handler makes the calls. It keeps connections, so use one for all operations.
type Handler struct {
	cfg       Config
	transport *http.Transport
}

// New makes a handler.
func New(cfg Config) (*Handler, error) {
	h := &Handler{cfg: cfg.withDefaults()}
	if err := h.cfg.validate(); err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: h.cfg.DialTimeout, KeepAlive: 30 * time.Second, Resolver: h.cfg.Resolver, Control: h.cfg.control}
	h.transport = &http.Transport{
		Proxy:                  h.cfg.Proxy,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        h.cfg.TLS,
		TLSHandshakeTimeout:    h.cfg.TLSTimeout,
		ResponseHeaderTimeout:  h.cfg.HeaderTimeout,
		MaxResponseHeaderBytes: maxAnswerHeader,
		MaxIdleConns:           h.cfg.MaxIdle,
		MaxIdleConnsPerHost:    h.cfg.MaxIdlePerHost,
		IdleConnTimeout:        h.cfg.IdleTimeout,
		DisableCompression:     true, // a small answer could be a large one
		ForceAttemptHTTP2:      true, // which a dialer of one's own switches off
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
	}
	return h, nil
}

// Close closes the connections that are kept. Calls that are under way are not touched.
func (h *Handler) Close() { h.transport.CloseIdleConnections() }

// Handle makes the call that the operation's data describes, once.
func (h *Handler) Handle(ctx context.Context, op *worker.Operation) (any, error) {
	var d data
	if err := op.Decode(&d); err != nil {
		return nil, err
	}
	u, err := h.cfg.check(&d)
	if err != nil {
		return nil, err
	}
	timeout, err := h.cfg.timeout(&d)
	if err != nil {
		return nil, invalid("%w", err)
	}
	call, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	request, err := h.request(call, op, &d, u)
	if err != nil {
		if ctx.Err() != nil {
			return nil, interrupted(ctx, u.Host)
		}
		return nil, err
	}
	// The transport rather than a client: it follows no redirects, and keeps no cookies.
	response, err := h.transport.RoundTrip(request)
	switch {
	case err == nil:
		defer func() { _ = response.Body.Close() }()
		return h.answer(ctx, op, u.Host, response)
	case ctx.Err() != nil:
		return nil, interrupted(ctx, u.Host)
	case call.Err() != nil:
		return nil, slow(u.Host, timeout)
	}
	return nil, unreachable(u.Host, err)
}

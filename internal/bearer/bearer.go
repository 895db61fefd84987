// Package bearer gets the tokens with which a client of Kafka proves who it is (SASL OAUTHBEARER, RFC 7628).
//
// A token comes from a file, where somebody else keeps it fresh (as Kubernetes does with the tokens of service accounts), or
// from an authorization server, to which the client shows an id and a secret (the client credentials grant of RFC 6749,
// section 4.4).
package bearer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Source returns a token that is valid now. It is called for each authentication.
type Source func(ctx context.Context) (string, error)

// File reads the token anew for each authentication with read, which returns the file's content.
func File(read func() (string, error)) Source {
	return func(context.Context) (string, error) {
		text, err := read()
		if err != nil {
			return "", fmt.Errorf("token: %w", err)
		}
		token := strings.TrimSpace(text)
		if err := check(token); err != nil {
			return "", err
		}
		return token, nil
	}
}

// check refuses what cannot be a token: RFC 6750 has an alphabet for it, and anything else would change the meaning of the message
// in which it is sent.
func check(token string) error {
	if token == "" {
		return errors.New("expected a token, but it is empty")
	}
	body := strings.TrimRight(token, "=")
	for i := range len(body) {
		c := body[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("-._~+/", rune(c)) {
			return fmt.Errorf("expected a token of letters, digits and -._~+/ (RFC 6750), but character %d is another one", i+1)
		}
	}
	return nil
}

// Credentials say where a token is asked for, and by whom.
type Credentials struct {
	URL    string // of the token endpoint; https, or http on this host
	ID     string
	Secret func() (string, error) // read for each request
	Scope  string                 // "" asks for the server's default
	// HTTP sends the requests. Default: a client without redirects.
	HTTP *http.Client
	// Now is the time by which tokens expire. Default time.Now.
	Now func() time.Time
}

const (
	// answerMax bounds an answer of the token endpoint, in bytes.
	answerMax = 1 << 20
	// answerTime bounds one request to it.
	answerTime = 10 * time.Second
	// early is how long before its end a token is replaced, so that it does not expire on its way; of a token that lives for less
	// than twice as long, half its life.
	early = time.Minute
	// unknownLife is for how long a token is used whose life the server does not tell.
	unknownLife = 5 * time.Minute
)

// CheckURL says whether a token may be asked for there: the secret must not cross a network that others can read.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return errors.New("expected the address of a token endpoint, such as https://login.example.com/token, without user or fragment")
	}
	if u.Scheme == "https" {
		return nil
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()) {
		return nil
	}
	return fmt.Errorf("expected a token endpoint with https, or http on this host, but got %s://%s; the client's secret would be readable on the way", u.Scheme, u.Host)
}

// Client asks an authorization server for tokens and keeps each until shortly before its end.
type Client struct {
	cfg Credentials

	mu    sync.Mutex
	token string
	until time.Time
}

// New makes a Client.
func New(cfg Credentials) (*Client, error) {
	var faults []error
	if err := CheckURL(cfg.URL); err != nil {
		faults = append(faults, err)
	}
	if cfg.ID == "" || cfg.Secret == nil {
		faults = append(faults, errors.New("expected a client id and a client secret for the token endpoint, but one of them is missing"))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	if cfg.HTTP == nil {
		cfg.HTTP = &http.Client{}
	}
	if cfg.HTTP.CheckRedirect == nil {
		c := *cfg.HTTP
		// A secret is not sent to wherever an answer points.
		c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		cfg.HTTP = &c
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Client{cfg: cfg}, nil
}

// Token returns a token that is valid for a while yet. While one is asked for, others who need it wait for the same answer.
func (c *Client) Token(ctx context.Context) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token != "" && c.cfg.Now().Before(c.until) {
		return c.token, nil
	}
	asked := c.cfg.Now()
	token, life, err := c.ask(ctx)
	if err != nil {
		return "", fmt.Errorf("token of %s: %w", c.cfg.URL, err)
	}
	c.token, c.until = token, asked.Add(life-min(early, life/2))
	return token, nil
}

// answer is what a token endpoint says (RFC 6749, sections 5.1 and 5.2).
type answer struct {
	AccessToken string          `json:"access_token"`
	TokenType   string          `json:"token_type"`
	ExpiresIn   json.RawMessage `json:"expires_in"` // seconds; some servers write a string
	Error       string          `json:"error"`
	Description string          `json:"error_description"`
}

func (c *Client) ask(ctx context.Context) (token string, life time.Duration, err error) {
	secret, err := c.cfg.Secret()
	if err != nil {
		return "", 0, fmt.Errorf("client secret: %w", err)
	}
	form := url.Values{"grant_type": {"client_credentials"}}
	if c.cfg.Scope != "" {
		form.Set("scope", c.cfg.Scope)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.cfg.URL, strings.NewReader(form.Encode()))
	if err != nil {
		return "", 0, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	// Section 2.3.1 wants both form-encoded.
	req.SetBasicAuth(url.QueryEscape(c.cfg.ID), url.QueryEscape(secret))
	resp, err := c.cfg.HTTP.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, answerMax+1))
	if err != nil {
		return "", 0, fmt.Errorf("expected an answer, but it broke off: %w", err)
	}
	if len(body) > answerMax {
		return "", 0, fmt.Errorf("expected an answer of at most %d bytes, but it is longer", answerMax)
	}
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")) // "" is none of those that are expected
	var a answer
	if err := json.Unmarshal(body, &a); err != nil || media != "application/json" {
		return "", 0, fmt.Errorf("expected JSON, but got %s with status %s; is the address a token endpoint?", quoted(media), resp.Status)
	}
	switch {
	case a.Error != "" || resp.StatusCode != http.StatusOK:
		return "", 0, fmt.Errorf("expected a token, but it was refused with status %s: %s %s; check client id, secret and scope", resp.Status, quoted(a.Error), quoted(a.Description))
	case !strings.EqualFold(a.TokenType, "bearer"):
		return "", 0, fmt.Errorf("expected a token of type Bearer, but got %s", quoted(a.TokenType))
	}
	if err := check(a.AccessToken); err != nil {
		return "", 0, err
	}
	return a.AccessToken, lifeOf(a.ExpiresIn), nil
}

// lifeOf reads for how long a token is valid.
func lifeOf(raw json.RawMessage) time.Duration {
	var seconds json.Number
	if err := json.Unmarshal(raw, &seconds); err != nil { // also takes a string with a number in it
		return unknownLife
	}
	n, err := seconds.Float64()
	if err != nil || n <= 0 || n > float64(24*time.Hour/time.Second) {
		if n > 0 {
			return 24 * time.Hour
		}
		return unknownLife
	}
	return time.Duration(n * float64(time.Second))
}

// quoted bounds what is shown of somebody else's text.
func quoted(text string) string {
	const most = 200
	if len(text) > most {
		text = text[:most]
	}
	return fmt.Sprintf("%q", text)
}

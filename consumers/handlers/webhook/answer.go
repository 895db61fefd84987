package webhook

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/retry"
	"github.com/opstream/opstream/schemas"
)

// The codes of failures.
const (
	CodeAddress      = "webhook_address_refused" // final: the URL leads into a private network
	CodeCertificate  = "webhook_certificate"     // suspends: the receiver's certificate is not valid
	CodeUnreachable  = "webhook_unreachable"     // tried again: no connection, or it broke
	CodeTimeout      = "webhook_timeout"         // tried again: no answer in time
	CodeSecret       = "webhook_secret"          // suspends: there is no usable key; tried again: the store failed
	CodeUnauthorized = "webhook_unauthorized"    // suspends: 401, 403, 407
	CodeRedirected   = "webhook_redirected"      // final: 3xx
	CodeGone         = "webhook_gone"            // final: 410, the receiver wants no more calls
	CodeRejected     = "webhook_rejected"        // final: any other 4xx
	CodeBusy         = "webhook_busy"            // tried again: 408, 425, 429
	CodeServerError  = "webhook_server_error"    // tried again: 5xx
	CodeProtocol     = "webhook_protocol"        // final: the answer is none
)

// The bounds of an answer.
const (
	maxAnswerHeader = 64 << 10
	maxAnswerBody   = 64 << 10
	maxErrorText    = 1 << 10
)

// The bounds of what Retry-After may ask for.
const (
	maxWait   = time.Hour
	maxYields = 10
)

// Result is the result of an operation that succeeded.
type Result struct {
	Status  int             `json:"status"`
	Body    json.RawMessage `json:"body,omitempty"`    // the answer, if it is JSON
	Omitted string          `json:"omitted,omitempty"` // why it is not in Body: not_json, too_large, incomplete
}

// checkpoint counts how often the receiver's Retry-After has been obeyed.
type checkpoint struct {
	Yields int `json:"yields"`
}

// answer says what the receiver's answer means.
func (h *Handler) answer(ctx context.Context, op *worker.Operation, host string, r *http.Response) (any, error) {
	body, whole := readBody(r)
	status := r.StatusCode
	if status >= 200 && status < 300 {
		// The status decides, even if the rest of the answer did not come: the receiver has done its part, and a second
		// call would only be a duplicate.
		return result(r, body, whole), nil
	}

	said := fmt.Sprintf("%s answered %d %s", host, status, http.StatusText(status))
	if text := clean(body, maxErrorText); text != "" {
		said += ": " + text
	}
	err := errors.New("webhook: " + strings.TrimSpace(said))
	fails := func(class func(error) error, code, friendly string) (any, error) {
		return nil, class(worker.WithCode(err, code, retry.CodeNetwork, friendly))
	}
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden, status == http.StatusProxyAuthRequired:
		return fails(worker.Suspend, CodeUnauthorized, "The receiver did not accept the call's credentials. Mend them and resume the operation.")
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status == http.StatusTooManyRequests:
		if wait := h.yield(ctx, op, r); wait != nil {
			return nil, wait
		}
		return fails(worker.Retry, CodeBusy, "The receiver is busy. The call is tried again.")
	case status >= 500 && status < 600:
		if wait := h.yield(ctx, op, r); wait != nil {
			return nil, wait
		}
		return fails(worker.Retry, CodeServerError, "The receiver reported an error of its own. The call is tried again.")
	case status >= 300 && status < 400:
		err = fmt.Errorf("%w; redirects are not followed: put the final address into url", err)
		return fails(worker.Final, CodeRedirected, "The receiver has moved. Correct the address and retry the operation.")
	case status == http.StatusGone:
		return fails(worker.Final, CodeGone, "The receiver wants no more of these calls. Remove the subscription.")
	case status >= 400 && status < 500:
		return fails(worker.Final, CodeRejected, "The receiver refused the call. Correct the data and retry the operation.")
	}
	return fails(worker.Final, CodeProtocol, "The receiver's answer is not one that a webhook gives.")
}

// yield waits for as long as the receiver asks, without burning an attempt, unless that is no longer than a second (the
// retry policy's business), or has been granted often enough: a receiver that says "later" for ever must come to an
// end. It returns nil when the failure is an ordinary one.
func (h *Handler) yield(ctx context.Context, op *worker.Operation, r *http.Response) error {
	now := h.cfg.Now()
	wait := retryAfter(r.Header.Get("Retry-After"), now)
	if wait <= time.Second {
		return nil
	}
	var before checkpoint
	// What cannot be read is somebody else's, and counts for nothing: the next one is ours.
	if len(op.Checkpoint) > 0 && json.Unmarshal(op.Checkpoint, &before) != nil {
		before = checkpoint{}
	}
	if before.Yields < 0 || before.Yields >= maxYields {
		return nil
	}
	until := now.Add(min(wait, maxWait))
	// Only people look at it, so nothing depends on whether it arrives.
	_ = op.Progress(ctx, map[string]any{"status": r.StatusCode, "retryAfter": until.UTC().Format(time.RFC3339), "waits": before.Yields + 1})
	return worker.YieldUntil(until, checkpoint{before.Yields + 1})
}

// retryAfter reads the header: seconds or a date. What cannot be read is 0.
func retryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if value != "" && strings.Trim(value, "0123456789") == "" {
		if len(value) > 9 {
			return maxWait
		}
		n, err := strconv.Atoi(value)
		if err != nil {
			return 0
		}
		return time.Duration(n) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return at.Sub(now)
}

// readBody reads at most maxAnswerBody, and says whether that was all. What is read to its end leaves the connection fit
// for the next call.
func readBody(r *http.Response) (body []byte, whole bool) {
	if n := r.ContentLength; n >= 0 && n <= maxAnswerBody {
		body = make([]byte, n)
		got, err := io.ReadFull(r.Body, body)
		return body[:got], err == nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxAnswerBody+1))
	return body, err == nil && len(body) <= maxAnswerBody
}

func result(r *http.Response, body []byte, whole bool) Result {
	out := Result{Status: r.StatusCode}
	switch {
	case r.ContentLength > maxAnswerBody || len(body) > maxAnswerBody:
		out.Omitted = "too_large"
	case !whole:
		out.Omitted = "incomplete"
	case len(body) == 0:
	case !isJSON(r.Header.Get("Content-Type")) || !utf8.Valid(body) || !json.Valid(body):
		out.Omitted = "not_json"
	default:
		out.Body = body
		// A report must be able to hold it: a member that is named twice, or too many levels, are JSON to most but not to us.
		if data, err := json.Marshal(out); err != nil || schemas.CheckJSON(data, len(data)) != nil {
			out.Body, out.Omitted = nil, "not_json"
		}
	}
	return out
}

func isJSON(contentType string) bool {
	kind, _, _ := strings.Cut(contentType, ";")
	kind = strings.ToLower(strings.TrimSpace(kind))
	return kind == "application/json" || strings.HasPrefix(kind, "application/") && strings.HasSuffix(kind, "+json")
}

// clean makes one line of text that is safe to show of what a stranger sent.
func clean(b []byte, n int) string {
	if len(b) > n {
		for n > 0 && !utf8.RuneStart(b[n]) {
			n--
		}
		b = b[:n]
	}
	text := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(string(b), "?"))
	return strings.Join(strings.Fields(text), " ")
}

// interrupted is what is told when the worker ended the call.
func interrupted(ctx context.Context, host string) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, worker.ErrPauseRequested) {
		return worker.YieldFor("", nil)
	}
	return fmt.Errorf("webhook: the call to %s was given up, and may have arrived: %w", host, cause)
}

func slow(host string, timeout time.Duration) error {
	err := fmt.Errorf("webhook: expected an answer of %s within %s, but there was none", host, timeout)
	return worker.Retry(worker.WithCode(err, CodeTimeout, retry.CodeNetwork, "The receiver did not answer in time. The call is tried again."))
}

func refusedAddress(host string, why *addressError) error {
	err := fmt.Errorf("webhook: no call to %s: %w; allow its range in the worker's configuration if that is meant", host, why)
	return worker.Final(worker.WithCode(err, CodeAddress, 0, "The address of the receiver is not one that may be called."))
}

// unreachable says what it means that there was no answer.
func unreachable(host string, err error) error {
	if why := (*addressError)(nil); errors.As(err, &why) {
		return refusedAddress(host, why)
	}
	// The chain ends here: names and numbers of our own network, which it may hold, are no business of whoever reads it.
	text := clean([]byte(err.Error()), maxErrorText)
	if dns := (*net.DNSError)(nil); errors.As(err, &dns) {
		text = "its name could not be looked up"
		if dns.IsNotFound {
			text = "there is no such name"
		}
	}
	said := fmt.Errorf("webhook: no answer of %s: %s", host, text)
	if bad := (*tls.CertificateVerificationError)(nil); errors.As(err, &bad) {
		return worker.Suspend(worker.WithCode(said, CodeCertificate, retry.CodeNetwork, "The receiver's certificate is not valid. When it is, resume the operation."))
	}
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		return worker.Retry(worker.WithCode(said, CodeTimeout, retry.CodeNetwork, "The receiver did not answer in time. The call is tried again."))
	}
	return worker.Retry(worker.WithCode(said, CodeUnreachable, retry.CodeNetwork, "The receiver could not be reached. The call is tried again."))
}

package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/internal/tlsfiles"
)

func newOp() *cobra.Command {
	c := &cobra.Command{
		Use:     "op",
		Aliases: []string{"operation", "operations"},
		Short:   "Submit operations, look at them and steer them",
		Long: `op speaks to a running service over HTTP. Tables are for people: times in them are
local and short. With --output json every line is one JSON object, with times as in
RFC 3339, for programs.

The service is at ` + defaultServer + ` unless --server or the environment variable
OPSTREAM_SERVER says otherwise.`,
		Example: `  opstream op submit --from requests.jsonl --wait
  opstream op list --organization contoso --status failed
  opstream op history mail-7 --organization contoso`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newOpSubmit(), newOpGet(), newOpList(), newOpHistory(), newOpCounts(), newOpWait())
	for _, command := range opCommands {
		c.AddCommand(newOpCommand(command))
	}
	return c
}

const defaultServer = "http://" + defaultListen

// remote is what every command has that speaks to the service: where it is, and how to answer.
type remote struct {
	*options
	server, ca string
	output     outputFlag
}

func (r *remote) add(c *cobra.Command) {
	r.options = addOptions(c, nil, map[string]any{"server": &r.server, "server-ca": &r.ca})
	r.output.add(c)
}

// client makes the client for the address.
func (r *remote) client(cmd *cobra.Command) (*api.Client, error) {
	if err := r.resolve(cmd); err != nil {
		return nil, err
	}
	address := r.server
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, usage("expected --server to be an address such as %s, but got %q", defaultServer, r.server)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = answerTime
	transport.MaxIdleConnsPerHost = parallelReads
	if r.ca != "" {
		files, err := tlsfiles.Open(tlsfiles.Config{CA: r.ca})
		if err != nil {
			return nil, usage("server-ca: %w", err)
		}
		transport.TLSClientConfig = files.Client("")
	}
	return &api.Client{Base: strings.TrimSuffix(u.String(), "/"), HTTP: &http.Client{Transport: transport}}, nil
}

// The service answers within api.WaitMax of what it is asked to wait for, plus what it takes.
const answerTime = api.WaitMax + 40*time.Second

// usage is the error of a wrong command line.
func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// organizationFlag is --organization, which names an operation together with its id.
func organizationFlag(c *cobra.Command, to *string) {
	c.Flags().StringVarP(to, "organization", "O", "", "organization of the operation")
}

func needOrganization(organization string) error {
	if organization == "" {
		return usage("expected --organization: an id names an operation only within its organization")
	}
	return nil
}

// exitCode says how the command ends for an error of the client.
func exitCode(err error) int {
	var p *api.Problem
	var netErr net.Error
	switch {
	case errors.As(err, &p):
		return exitCodeOf(p)
	case errors.Is(err, context.Canceled):
		return exitFailed
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &netErr), errors.Is(err, syscall.ECONNRESET):
		return exitUnavailable
	}
	return exitFailed
}

func exitCodeOf(p *api.Problem) int {
	switch {
	case p.Code == api.Code(operation.NotFound) || p.Code == api.Code(operation.WasDeleted) || p.Code == api.Code(operation.Forgotten):
		return exitNotFound
	case p.Fault == api.FaultService && p.Status != http.StatusInternalServerError:
		return exitUnavailable
	case p.Fault == api.FaultService:
		return exitFailed
	default:
		return exitRefused
	}
}

// fail makes of an error of the client what the command ends with. For programs a problem is printed as it came.
func (r *remote) fail(cmd *cobra.Command, err error) error {
	var exit *exitError
	if err == nil || errors.As(err, &exit) {
		return err
	}
	var p *api.Problem
	if r.output.json() && errors.As(err, &p) {
		if err := printJSON(cmd.ErrOrStderr(), struct {
			Problem *api.Problem `json:"problem"`
		}{p}); err != nil {
			return err
		}
		return &exitError{exitCodeOf(p), nil}
	}
	return &exitError{exitCode(err), errors.New(r.explain(err))}
}

// explain says what went wrong, whose doing it was and what to do next.
func (r *remote) explain(err error) string {
	var p *api.Problem
	var netErr net.Error
	var authority x509.UnknownAuthorityError
	switch {
	case errors.As(err, &p):
		return problemText(p)
	case errors.As(err, &authority):
		return fmt.Sprintf("the certificate of %s is signed by an authority that is not known here: name its certificate with --server-ca or OPSTREAM_SERVER_CA", clean(r.server))
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("nothing answers at %s (connection refused); start it with: opstream dev --data DIR\nor give the address of one that runs with --server or OPSTREAM_SERVER", clean(r.server))
	case errors.Is(err, context.Canceled):
		return "stopped before it was done; ids make it harmless to repeat the command"
	case errors.As(err, &netErr):
		return fmt.Sprintf("expected an answer of %s, but none came: %s; look whether the service runs there, and repeat the command", clean(r.server), clean(netErr.Error()))
	}
	return clean(err.Error())
}

// problemText writes a problem for people.
func problemText(p *api.Problem) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", clean(string(p.Code)), clean(cmp.Or(p.Detail, p.Title)))
	if p.Field != "" {
		fmt.Fprintf(&b, "\n  field: %s", clean(p.Field))
	}
	switch p.Fault {
	case api.FaultService:
		b.WriteString("\n  whose fault: the service's")
	case api.FaultHandler:
		b.WriteString("\n  whose fault: the handler's")
	default:
		b.WriteString("\n  whose fault: the request's")
	}
	if p.Retryable {
		b.WriteString("; the same may succeed later")
	}
	if next := nextOf(p); next != "" {
		fmt.Fprintf(&b, "\n  next: %s", clean(next))
	}
	if p.RetryAfter > 0 {
		fmt.Fprintf(&b, " (in %s)", p.RetryAfter)
	}
	return b.String()
}

// nextOf says what to do, if the detail does not say so already.
func nextOf(p *api.Problem) string {
	if strings.Contains(p.Detail, p.Next) {
		return ""
	}
	return p.Next
}

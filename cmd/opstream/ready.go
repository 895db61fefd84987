package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"
)

func newReady() *cobra.Command {
	var address string
	var live bool
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "ready",
		Short: "Ask a process whether it is ready",
		Long: `ready asks the operations listener of a process (opstream serve --ops-listen) whether the
process is ready, and ends with 0 if it is and with 5 if it is not, with the reason. An API
that was ready stays so without its database or brokers, and says what it lacks. It is the
health check of containers, which hold nothing but this program.`,
		Example: `  opstream ready --ops 127.0.0.1:9600
  opstream ready --live`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			host, port, err := net.SplitHostPort(address)
			if err != nil {
				return usage("expected --ops HOST:PORT, the process's --ops-listen, but got %q", clean(address))
			}
			// Where a process listens at all addresses, it does at this one.
			if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
				host = "127.0.0.1"
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			path := "/readyz"
			if live {
				path = "/livez"
			}
			lacks, err := probe(ctx, "http://"+net.JoinHostPort(host, port)+path)
			if err != nil {
				return &exitError{exitUnavailable, err}
			}
			if lacks != "" {
				fmt.Fprintln(cmd.OutOrStdout(), "ready for what works without this:", clean(lacks))
			}
			return nil
		},
	}
	fl := c.Flags()
	fl.StringVar(&address, "ops", cmp.Or(os.Getenv("OPSTREAM_OPS_LISTEN"), "127.0.0.1:9600"), "where the process has its --ops-listen (environment: OPSTREAM_OPS_LISTEN)")
	fl.BoolVar(&live, "live", false, "ask whether it lives, not whether it is ready")
	fl.DurationVar(&timeout, "timeout", 3*time.Second, "how long to wait for the answer")
	return c
}

// probe asks, and returns nil for yes, and what the process lacks all the same.
func probe(ctx context.Context, url string) (lacks string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", fmt.Errorf("expected an address that can be asked: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("expected an answer, but: %w; does the process run with --ops-listen?", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return "", fmt.Errorf("expected %s, but the answer broke off: %w", url, err)
	}
	var why struct {
		Reason string `json:"reason"`
	}
	said := json.Unmarshal(body, &why) == nil && why.Reason != ""
	switch {
	case resp.StatusCode == http.StatusOK:
		return why.Reason, nil
	case said:
		return "", errors.New(clean(why.Reason))
	}
	return "", fmt.Errorf("expected 200 from %s, but got %s", url, resp.Status)
}

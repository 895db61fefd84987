// Command opstream is the whole service in one binary: the scheduler, workers, projector and API of an asynchronous
// operation service on Kafka, and the tools to use and look after it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes, the same for every command.
const (
	exitOK          = 0
	exitFailed      = 1 // something went wrong that is not one of these
	exitUsage       = 2 // the command line is wrong
	exitRefused     = 3 // the service refused at least one request or command
	exitNotFound    = 4 // there is no such operation
	exitUnavailable = 5 // the service cannot be reached, or did not answer in time
	exitDiffers     = 6 // verify: the tables are not what the journal says; topics --check: Kafka is not as it should be
)

func main() {
	if os.Getenv("GOGC") == "" {
		// Most of what is allocated is garbage within milliseconds, and little lives long: collecting half as often costs
		// memory in proportion to the little, and saves CPU in proportion to the much.
		debug.SetGCPercent(200)
	}
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it
		ends = append(ends, syscall.SIGHUP) // the terminal is gone, or somebody expects the configuration to be read again, which a start does
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// exitError is an error with an exit code of its own. Err may be nil: then everything was said already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// execute runs one command line and returns the exit code.
func execute(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	var exit *exitError
	switch {
	case err == nil:
		return exitOK
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(errOut, "opstream: stopped by a signal before it was done; its output is not complete")
		return exitFailed
	case errors.As(err, &exit):
		if exit.err != nil {
			fmt.Fprintln(errOut, "opstream:", readable(exit.err))
		}
		return exit.code
	default:
		fmt.Fprintln(errOut, "opstream:", readable(err))
		return exitFailed
	}
}

// errorBytes bounds what is said of one error.
const errorBytes = 8 << 10

// readable is an error's text as it can be shown: errors quote what came from outside. Its lines stay lines.
func readable(err error) string {
	text := err.Error()
	if len(text) > errorBytes {
		text = text[:errorBytes/2] + " … " + text[len(text)-errorBytes/2:]
	}
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = clean(lines[i])
	}
	return strings.Join(lines, "\n")
}

// newRoot makes the tree of commands anew, so that tests do not share flags.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "opstream",
		Short: "Run a CRM's work later: in order, once, and answered for",
		Long: `opstream takes operations that a CRM must not wait for (plug-ins, mail, imports, …),
runs them later in the right order, and tells anyone who asks where each one stands.
Every change of an operation is an event in a journal on Kafka; all else can be made
again from it.

Exit codes: 0 done · 1 failed · 2 wrong command line · 3 something was refused ·
4 not found · 5 the service cannot be reached or did not answer in time ·
6 verify or topics --check found a difference.`,
		Example: `  opstream demo                  watch a help desk's 21 348 operations run
  opstream dev --data ./data     the whole service in one process
  opstream op list --status running`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &exitError{exitUsage, fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	root.AddCommand(
		newDemo(), newDev(), newServe(), newTopics(), newReady(), newOp(), newJournal(), newDeadLetter(), newVerify(), newBench(), newConfig(), newVersion(),
	)
	for _, c := range all(root) {
		usageErrors(c)
	}
	return root
}

func all(c *cobra.Command) []*cobra.Command {
	out := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		out = append(out, all(sub)...)
	}
	return out
}

// usageErrors gives wrong arguments the exit code of a wrong command line.
func usageErrors(c *cobra.Command) {
	check := c.Args
	if check == nil {
		return
	}
	c.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &exitError{exitUsage, fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
		}
		return nil
	}
}

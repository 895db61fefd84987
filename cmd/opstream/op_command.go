package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/schemas"
)

// opCommand is one of the commands that steer operations.
type opCommand struct {
	kind         operation.CommandKind
	short, long  string
	example      string
	until, retry bool
}

var opCommands = []opCommand{
	{
		kind: operation.Cancel, short: "Cancel operations",
		long:    "cancel ends operations. A running one is asked to stop, and ends as its handler does;\nwith --wait the command waits for that.",
		example: "  opstream op cancel mail-7 mail-8 --organization contoso --reason 'sent by hand'",
	},
	{
		kind: operation.Pause, short: "Pause operations until they are resumed",
		long:    "pause holds operations back until somebody resumes them. A running one pauses when its\nhandler comes to a safe point.",
		example: "  opstream op pause import-3 --organization contoso --reason 'the source is being mended'",
	},
	{
		kind: operation.Resume, short: "Resume operations that are suspended",
		long:    "resume lifts everything that operations wait for but the order of their dependency token.",
		example: "  opstream op resume import-3 --organization contoso",
	},
	{
		kind: operation.Postpone, short: "Postpone operations until a given time", until: true,
		long:    "postpone holds operations back until a time. A running one is paused first.",
		example: "  opstream op postpone mail-7 --organization contoso --until +2h\n  opstream op postpone mail-7 --organization contoso --until 2030-01-31T08:00:00Z",
	},
	{
		kind: operation.Retry, short: "Retry operations that have failed", retry: true,
		long:    "retry runs failed operations again, with the same input or, with --data, with a corrected one.",
		example: "  opstream op retry mail-7 --organization contoso\n  opstream op retry mail-7 --organization contoso --data corrected.json",
	},
	{
		kind: operation.Delete, short: "Delete operations that have ended",
		long:    "delete removes operations that have ended from the tables. The journal keeps them.",
		example: "  opstream op delete mail-7 --organization contoso --reason 'asked for by the customer'",
	},
}

// refusedID is what programs read of a command that was refused.
type refusedID struct {
	Organization string       `json:"organization"`
	ID           string       `json:"id"`
	Problem      *api.Problem `json:"problem"`
}

func newOpCommand(command opCommand) *cobra.Command {
	var r remote
	var organization, by, reason, until, data, token, partitionKey, after, key string
	var wait time.Duration
	name := command.kind.String()
	c := &cobra.Command{
		Use:   name + " ID… --organization O [--by WHO] [--reason WHY]",
		Short: command.short,
		Long: command.long + `

Who gives the command, and why, is written into the journal. The operations are told one
after another; if one is refused the others are told all the same. Giving the command again
does no harm. The tables are not needed to find an operation that has neither dependency
token nor partition key, or whose token or key is given.`,
		Example: command.example,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			if err := needOrganization(organization); err != nil {
				return err
			}
			if key != "" && len(ids) > 1 {
				return usage("expected one ID with --key, but got %d: a key names one command", len(ids))
			}
			if wait < 0 || wait > api.WaitMax {
				return usage("expected --wait to be at most %s, but got %s; opstream op wait waits for longer", api.WaitMax, wait)
			}
			body := api.CommandBody{By: by, Reason: reason}
			if command.until {
				at, err := parseUntil(until, time.Now())
				if err != nil {
					return err
				}
				body.Until = at.Format(time.RFC3339Nano)
			}
			if data != "" {
				var err error
				if body.Data, err = readData(data, cmd.InOrStdin()); err != nil {
					return err
				}
			}
			client, err := r.client(cmd)
			if err != nil {
				return err
			}
			target := url.Values{}
			if token != "" {
				target.Set("dependencyToken", token)
			}
			if partitionKey != "" {
				target.Set("partitionKey", partitionKey)
			}
			out := cmd.OutOrStdout()
			rows := newTable(out, "ID", "STATUS", "EVENT", "POSITION")
			code := exitOK
			for _, id := range ids {
				call := api.Call{After: after, Wait: wait, Key: key}
				if key == "" {
					call.Key = uuid.NewString()
				}
				outcome, err := client.Command(cmd.Context(), name, organization, id, body, target, call)
				var p *api.Problem
				if errors.As(err, &p) && p.Code == api.OutcomeUnknown {
					// The same command under the same key: if the first one took effect, this is told so.
					outcome, err = client.Command(cmd.Context(), name, organization, id, body, target, call)
				}
				switch {
				case err == nil && r.output.json():
					if err := printJSON(out, outcome); err != nil {
						return err
					}
				case err == nil:
					event := outcome.Event
					if outcome.Unchanged {
						event = "nothing to do"
					}
					rows.row(outcome.ID, outcome.Status, event, outcome.Position)
				case !errors.As(err, &p):
					if !rows.empty() {
						rows.print()
					}
					return r.fail(cmd, err)
				default:
					code = worse(code, exitCodeOf(p))
					if r.output.json() {
						if err := printJSON(out, refusedID{organization, id, p}); err != nil {
							return err
						}
						break
					}
					fmt.Fprintf(cmd.ErrOrStderr(), "opstream: %s: %s\n", cut(clean(id), 200), problemText(p))
				}
			}
			if !r.output.json() && !rows.empty() {
				if err := rows.flush(); err != nil {
					return err
				}
			}
			if code != exitOK {
				return &exitError{code, nil}
			}
			return nil
		},
	}
	organizationFlag(c, &organization)
	fl := c.Flags()
	fl.StringVar(&by, "by", userName(), "who gives the command")
	fl.StringVar(&reason, "reason", "", "why")
	if command.until {
		fl.StringVar(&until, "until", "", "a time as in RFC 3339, or a plus and how long from now, such as +90m")
	}
	if command.retry {
		fl.StringVar(&data, "data", "", "file with the corrected input as JSON, - for standard input")
	}
	fl.DurationVar(&wait, "wait", 0, "wait so long, at most "+api.WaitMax.String()+", for the effect")
	fl.StringVar(&token, "token", "", "dependency token of the operations, if they have one: the tables are then not needed")
	fl.StringVar(&partitionKey, "partition-key", "", "partition key of the operations, if they have one: the tables are then not needed")
	fl.StringVar(&key, "key", "", "id under which a repetition of this command is recognised (made when absent)")
	afterFlag(c, &after)
	r.add(c)
	return c
}

// worse returns the exit code that tells more: that the service was not there, then that it refused, then that nothing was found.
func worse(a, b int) int {
	rank := map[int]int{exitOK: 0, exitNotFound: 1, exitRefused: 2, exitFailed: 3, exitUnavailable: 4}
	if rank[b] > rank[a] {
		return b
	}
	return a
}

// userName is who gives commands unless somebody else is named.
func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return ""
}

// parseUntil reads a time, or a duration from now.
func parseUntil(text string, now time.Time) (time.Time, error) {
	if duration, relative := strings.CutPrefix(text, "+"); relative {
		d, err := time.ParseDuration(duration)
		if err != nil || d <= 0 {
			return time.Time{}, usage("expected --until such as +90m or +36h, but got %q", text)
		}
		return now.Add(d).UTC(), nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, usage("expected --until with a time such as 2030-01-31T08:00:00Z, or +90m for 90 minutes from now, but got %q", text)
	}
	return t.UTC(), nil
}

// readData reads the input of an operation and makes sure that it is JSON of a size that can be sent.
func readData(name string, stdin io.Reader) (json.RawMessage, error) {
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, usage("cannot read --data: %w", err)
		}
		defer func() { _ = f.Close() }() // it was only read
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, schemas.MaxRequestBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read --data: %w", err)
	}
	if len(data) > schemas.MaxRequestBytes {
		return nil, usage("expected at most %d bytes in --data, but %s has more; put large data where the handler can fetch it", schemas.MaxRequestBytes, name)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return nil, usage("expected JSON in --data, but %s is not: %w", name, err)
	}
	return compact.Bytes(), nil
}

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
)

// afterFlag is --after, with which a read waits for what was written.
func afterFlag(c *cobra.Command, to *string) {
	c.Flags().StringVar(to, "after", "", "wait until the tables hold these positions (as answers to commands have them)")
}

func newOpGet() *cobra.Command {
	var r remote
	var organization, after string
	c := &cobra.Command{
		Use:   "get ID --organization O",
		Short: "Show one operation: where it stands, and why",
		Example: `  opstream op get mail-7 --organization contoso
  opstream op get mail-7 --organization contoso --output json | jq .request`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needOrganization(organization); err != nil {
				return err
			}
			client, err := r.client(cmd)
			if err != nil {
				return err
			}
			o, err := client.Get(cmd.Context(), organization, args[0], api.Call{After: after})
			if err != nil {
				return r.fail(cmd, err)
			}
			if r.output.json() {
				return printJSON(cmd.OutOrStdout(), o)
			}
			return showOperation(cmd.OutOrStdout(), o, time.Now())
		},
	}
	organizationFlag(c, &organization)
	afterFlag(c, &after)
	r.add(c)
	return c
}

// showOperation prints all of an operation, one thing a line.
func showOperation(out io.Writer, o *api.Operation, now time.Time) error {
	var b bytes.Buffer
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-14s%s\n", name, clean(value))
		}
	}
	at := func(t *time.Time) string {
		if t == nil {
			return ""
		}
		return shortTime(*t, now)
	}
	line("id", o.ID)
	line("organization", o.Organization)
	kind := o.Type
	if o.TypeCode != 0 {
		kind += fmt.Sprintf(" (%d)", o.TypeCode)
	}
	line("type", kind)
	line("name", o.Name)
	line("status", fmt.Sprintf("%s (%s %d, %s %d)", o.Status, o.State, o.StateCode, o.StatusReason, o.StatusCode))
	line("wait", o.Wait)
	line("why", o.Why)
	line("until", at(o.Until))
	line("blocked by", o.BlockedBy)
	if o.Failure != nil {
		line("failure", failureText(o.Failure))
	}
	line("attempt", fmt.Sprintf("%d (%d failed)", o.Attempt, o.Failures))
	line("session", o.Session)
	line("token", o.DependencyToken)
	line("partition key", o.PartitionKey)
	line("priority", strconv.Itoa(o.Priority))
	line("correlation", o.CorrelationID)
	line("created", shortTime(o.CreatedAt, now)+" ("+age(o.CreatedAt, now)+" ago)")
	line("started", at(o.StartedAt))
	line("completed", at(o.CompletedAt))
	line("changed", shortTime(o.ModifiedAt, now))
	line("by", byText(o.By))
	line("position", o.Position)
	for _, part := range []struct {
		name string
		data json.RawMessage
	}{{"request", o.Request}, {"progress", o.Progress}, {"result", o.Result}} {
		if len(part.data) > 0 {
			line(part.name, string(part.data))
		}
	}
	_, err := out.Write(b.Bytes())
	return err
}

func failureText(f *api.Failure) string {
	text := f.Code
	if f.ErrorCode != 0 {
		text += fmt.Sprintf(" (%d)", f.ErrorCode)
	}
	message := f.FriendlyMessage
	if message == "" {
		message = f.Message
	}
	if message != "" {
		text = strings.TrimPrefix(text+": "+message, ": ")
	}
	return fmt.Sprintf("%s [fault of the %s]", text, f.Fault)
}

// failureLine is failureText for a row of a table: of a message of many lines, such as a panic's with its stack, it has the
// first. opstream op get shows the others, and so does --output json.
func failureLine(f *api.Failure) string {
	short := *f
	for _, text := range []*string{&short.Message, &short.FriendlyMessage} {
		if first, _, more := strings.Cut(*text, "\n"); more {
			*text = first + "…"
		}
	}
	return failureText(&short)
}

func byText(by *api.By) string {
	switch {
	case by == nil:
		return ""
	case by.Reason == "":
		return by.Who
	case by.Who == "":
		return "because " + by.Reason
	default:
		return by.Who + ", because " + by.Reason
	}
}

func newOpList() *cobra.Command {
	var r remote
	var organization, token, correlation, order, after string
	var statuses, waits, types []string
	var limit int
	var all bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List operations, newest first",
		Long: `list shows the operations that all the filters let through. A filter that takes a list
lets through what is in it. Pages are fetched while they are printed, so that --all takes
no more memory than one page.`,
		Example: `  opstream op list --organization contoso --status failed,canceled
  opstream op list --wait paused --order oldest
  opstream op list --all --output json > operations.jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return usage("expected --limit to be 1 or more, but got %d; --all lists all", limit)
			}
			if order != "newest" && order != "oldest" {
				return usage("expected --order newest or oldest, but got %q", order)
			}
			if err := needValues(cmd, "organization", "token", "correlation-id", "status", "wait", "type"); err != nil {
				return err
			}
			client, err := r.client(cmd)
			if err != nil {
				return err
			}
			filter := url.Values{"order": {order}}
			for name, value := range map[string]string{
				"organization": organization, "token": token, "correlationId": correlation,
				"status": strings.Join(statuses, ","), "wait": strings.Join(waits, ","), "type": strings.Join(types, ","),
			} {
				if value != "" {
					filter.Set(name, value)
				}
			}
			page := pageMax
			if !all {
				// One more than is shown tells whether there is more.
				page = min(limit+1, pageMax)
			}
			filter.Set("limit", strconv.Itoa(page))
			out, now := cmd.OutOrStdout(), time.Now()
			rows := newTable(out, "ID", "ORGANIZATION", "TYPE", "STATUS", "AGE", "WHY")
			shown, more := 0, false
			for o, err := range client.List(cmd.Context(), filter, api.Call{After: after}) {
				if err != nil {
					if !rows.empty() {
						rows.print()
					}
					return r.fail(cmd, err)
				}
				if !all && shown == limit {
					more = true
					break
				}
				shown++
				if r.output.json() {
					if err := printJSON(out, &o); err != nil {
						return err
					}
					continue
				}
				rows.row(o.ID, o.Organization, o.Type, o.Status, age(o.CreatedAt, now), whyText(&o))
				if rows.broken != nil {
					return rows.broken
				}
			}
			if r.output.json() {
				return nil
			}
			if shown == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "no operations")
				return nil
			}
			if err := rows.flush(); err != nil {
				return err
			}
			if more {
				fmt.Fprintf(cmd.ErrOrStderr(), "these are the first %d; --limit N shows more, --all all\n", shown)
			}
			return nil
		},
	}
	fl := c.Flags()
	fl.StringVarP(&organization, "organization", "O", "", "only of this organization")
	fl.StringSliceVar(&statuses, "status", nil, "only in these statuses: "+strings.Join(statusNames(), ", "))
	fl.StringSliceVar(&waits, "wait", nil, "only those that wait for one of these: "+strings.Join(waitNames(), ", "))
	fl.StringSliceVar(&types, "type", nil, "only of these types, by name or by the original's number")
	fl.StringVar(&token, "token", "", "only with this dependency token")
	fl.StringVar(&correlation, "correlation-id", "", "only with this correlation id")
	fl.IntVar(&limit, "limit", 100, "at most so many")
	fl.BoolVar(&all, "all", false, "all of them, whatever --limit says")
	fl.StringVar(&order, "order", "newest", "newest or oldest first, by time of creation")
	afterFlag(c, &after)
	r.add(c)
	for name, values := range map[string][]string{"status": statusNames(), "wait": waitNames(), "order": {"newest", "oldest"}} {
		_ = c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	return c
}

// pageMax is what the service gives in one page.
const pageMax = 1000

// needValues refuses filters that are given and empty: what a script's unset variable leaves would be the operations of all.
func needValues(cmd *cobra.Command, flags ...string) error {
	for _, name := range flags {
		if f := cmd.Flags().Lookup(name); f.Changed && (f.Value.String() == "" || f.Value.String() == "[]") { // the latter is a list's
			return usage("expected --%s with a value, but it is empty; leave it out to see all", name)
		}
	}
	return nil
}

// whyText says why an operation is not done, or did not succeed.
func whyText(o *api.Operation) string {
	if o.Why == "" && o.Failure != nil && o.Status != operation.StatusSucceeded.String() {
		return failureLine(o.Failure)
	}
	return o.Why
}

func statusNames() []string {
	var names []string
	for s := operation.StatusReady; s < operation.StatusDeleted; s++ {
		names = append(names, s.String())
	}
	return names
}

func waitNames() []string {
	var names []string
	for w := operation.WaitNone + 1; w <= operation.WaitServicePaused; w++ {
		names = append(names, w.String())
	}
	return names
}

func newOpHistory() *cobra.Command {
	var r remote
	var organization, after string
	c := &cobra.Command{
		Use:     "history ID --organization O",
		Short:   "Show how an operation got where it is, oldest event first",
		Example: "  opstream op history mail-7 --organization contoso",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needOrganization(organization); err != nil {
				return err
			}
			client, err := r.client(cmd)
			if err != nil {
				return err
			}
			out, now := cmd.OutOrStdout(), time.Now()
			rows := newTable(out, "TIME", "POSITION", "EVENT", "ATTEMPT", "DETAILS")
			for e, err := range client.History(cmd.Context(), organization, args[0], api.Call{After: after}) {
				switch {
				case err != nil:
					if !rows.empty() {
						rows.print()
					}
					return r.fail(cmd, err)
				case r.output.json():
					if err := printJSON(out, &e); err != nil {
						return err
					}
				default:
					attempt := ""
					if e.Attempt > 0 {
						attempt = strconv.FormatUint(uint64(e.Attempt), 10)
					}
					rows.row(shortTime(e.At, now), e.Position, e.Event, attempt, historyDetails(&e, now))
				}
			}
			if r.output.json() {
				return nil
			}
			return rows.flush()
		},
	}
	organizationFlag(c, &organization)
	afterFlag(c, &after)
	r.add(c)
	return c
}

// historyDetails writes what an event says beside its name.
func historyDetails(e *api.HistoryEvent, now time.Time) string {
	var parts []string
	add := func(format, value string) {
		if value != "" {
			parts = append(parts, fmt.Sprintf(format, value))
		}
	}
	add("%s", e.Command)
	add("%s", e.Code)
	add("%s", e.Reason)
	if e.Failure != nil {
		add("%s", failureLine(e.Failure))
	}
	add("waits: %s", strings.Join(e.Waits, ", "))
	if e.Until != nil {
		add("until %s", shortTime(*e.Until, now))
	}
	add("for event %s", e.WaitsFor)
	add("after %s", e.Upstream)
	add("by %s", byText(e.By))
	add("session %s", e.Session)
	add("progress %s", string(e.Progress))
	add("result %s", string(e.Result))
	return strings.Join(parts, "; ")
}

func newOpCounts() *cobra.Command {
	var r remote
	var organization, after string
	c := &cobra.Command{
		Use:     "counts",
		Short:   "Count operations by status, by what they wait for and by type",
		Example: "  opstream op counts --organization contoso",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needValues(cmd, "organization"); err != nil {
				return err
			}
			client, err := r.client(cmd)
			if err != nil {
				return err
			}
			counts, err := client.Counts(cmd.Context(), organization, api.Call{After: after})
			if err != nil {
				return r.fail(cmd, err)
			}
			out := cmd.OutOrStdout()
			if r.output.json() {
				return printJSON(out, counts)
			}
			return showCounts(out, counts)
		},
	}
	c.Flags().StringVarP(&organization, "organization", "O", "", "only of this organization")
	afterFlag(c, &after)
	r.add(c)
	return c
}

// showCounts prints the numbers by status, by what is waited for and by type.
func showCounts(out io.Writer, counts *api.Counts) error {
	rows := newTable(out, "STATUS", "COUNT")
	for _, s := range counts.ByStatus {
		rows.row(s.Status, strconv.FormatInt(s.Count, 10))
	}
	rows.row("total", strconv.FormatInt(counts.Total, 10))
	if err := rows.flush(); err != nil {
		return err
	}
	if len(counts.ByWait) > 0 {
		fmt.Fprintln(out)
		rows = newTable(out, "WAITS FOR", "COUNT")
		for _, w := range counts.ByWait {
			rows.row(w.Wait, strconv.FormatInt(w.Count, 10))
		}
		if err := rows.flush(); err != nil {
			return err
		}
	}
	if len(counts.ByType) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	return showTypes(out, counts.ByType)
}

// showTypes prints a row for each type, with a column for each status that any of them has.
func showTypes(out io.Writer, types []api.TypeCount) error {
	statuses := slices.DeleteFunc(statusNames(), func(status string) bool {
		return !slices.ContainsFunc(types, func(t api.TypeCount) bool { return t.ByStatus[status] > 0 })
	})
	header := []string{"TYPE", "COUNT"}
	for _, s := range statuses {
		header = append(header, strings.ToUpper(s))
	}
	rows := newTable(out, header...)
	for _, t := range types {
		cells := []string{t.Type, strconv.FormatInt(t.Count, 10)}
		for _, s := range statuses {
			cells = append(cells, strconv.FormatInt(t.ByStatus[s], 10))
		}
		rows.row(cells...)
	}
	return rows.flush()
}

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/term"

	"github.com/opstream/opstream/internal/setup"
	"github.com/opstream/opstream/schemas"
)

func newTopics() *cobra.Command {
	c := &cobra.Command{
		Use:   "topics",
		Short: "Set up the topics on Kafka, and the rights on them",
		Long: `topics compares the topics of an installation with what the service needs: how many
partitions, how long records are kept, how large they may be, how many copies must have
them. plan shows what would change, apply changes it. Nothing is ever deleted or made
smaller. Doing it twice does nothing the second time.`,
		Example: `  opstream topics plan --brokers kafka-1:9092
  opstream topics apply --brokers kafka-1:9092 --yes
  opstream topics acls --role worker`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newTopicsPlan(), newTopicsApply(), newTopicsACLs())
	return c
}

// topicsFlags say which Kafka, and what it should have.
type topicsFlags struct {
	kafka    kafkaFlags
	security []kgo.Opt // of clients; set by validate
	cfg      setup.Config
	check    bool
	timeout  time.Duration
	output   outputFlag
}

func (f *topicsFlags) addTimeout(c *cobra.Command) {
	c.Flags().DurationVar(&f.timeout, "timeout", time.Minute, "give up when the brokers take longer")
}

func (f *topicsFlags) add(c *cobra.Command) {
	f.kafka.add(c)
	f.addTimeout(c)
	fl := c.Flags()
	fl.Int32Var(&f.cfg.Partitions, "partitions", 0, fmt.Sprintf("partitions of requests, reports, signals, journal and checkpoints; 0 keeps what they have, or makes %d", schemas.DefaultPartitions))
	fl.Int32Var(&f.cfg.InboxPartitions, "inbox-partitions", 0, fmt.Sprintf("partitions of inboxes; 0 keeps what they have, or makes %d", schemas.DefaultInboxPartitions))
	fl.Int16Var(&f.cfg.Replication, "replication-factor", 0, "copies of topics that are made; 0 makes 3, or as many as there are brokers")
	fl.IntVar(&f.cfg.MinInSync, "min-insync-replicas", 0, "copies that must have a record before it counts; 0 means 2 of three or more copies, else 1")
	f.output.add(c)
}

// validate finds the values, and refuses numbers that mean nothing.
func (f *topicsFlags) validate(cmd *cobra.Command) error {
	var err error
	if f.security, err = f.kafka.connect(cmd); err != nil {
		return err
	}
	var faults []error
	for _, n := range []struct {
		name  string
		value int64
	}{
		{"partitions", int64(f.cfg.Partitions)},
		{"inbox-partitions", int64(f.cfg.InboxPartitions)},
		{"replication-factor", int64(f.cfg.Replication)},
		{"min-insync-replicas", int64(f.cfg.MinInSync)},
	} {
		if n.value < 0 || n.value > 10_000 {
			faults = append(faults, fmt.Errorf("expected --%s from 0 to 10000, but got %d", n.name, n.value))
		}
	}
	if f.timeout <= 0 {
		faults = append(faults, fmt.Errorf("expected --timeout above 0, but got %s", f.timeout))
	}
	if err := errors.Join(faults...); err != nil {
		return &exitError{exitUsage, err}
	}
	f.cfg.Topics = schemas.Topics{Prefix: f.kafka.prefix}
	return nil
}

// connect makes a client, and makes sure that a broker answers.
func (f *topicsFlags) connect(ctx context.Context) (*kgo.Client, error) {
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(f.kafka.brokers...), kgo.ClientID("opstream-topics"), kgo.MetadataMinAge(100 * time.Millisecond),
	}, f.security...)...)
	if err != nil {
		return nil, usage("expected --brokers such as %s, but: %w", defaultBroker, err)
	}
	bounded, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	if err := client.Ping(bounded); err != nil {
		client.Close()
		if kafkaAdvice(err) != "" {
			return nil, &exitError{exitUnavailable, kafkaRefusal(f.kafka.brokers, err)}
		}
		return nil, &exitError{exitUnavailable, fmt.Errorf("expected a broker at %s, but: %w\ngive the address of one that runs with --brokers or OPSTREAM_BROKERS", clean(strings.Join(f.kafka.brokers, ",")), err)}
	}
	return client, nil
}

func newTopicsPlan() *cobra.Command {
	var f topicsFlags
	c := &cobra.Command{
		Use:   "plan",
		Short: "Show what apply would change",
		Long: `plan shows what opstream topics apply would do, and does nothing. The column DO says:
create, grow (more partitions) or set (a setting); refuse, for what must not be done and
keeps apply from doing anything; warn, for what people should know.

With --check the exit code is 6 when anything differs, for pipelines; warnings do not count.`,
		Example: `  opstream topics plan
  opstream topics plan --check --output json | jq '.items[] | select(.action != "warn")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.plan(cmd) },
	}
	f.add(c)
	c.Flags().BoolVar(&f.check, "check", false, "exit with code 6 when anything differs")
	return c
}

// plan makes a plan and shows it.
func (f *topicsFlags) plan(cmd *cobra.Command) error {
	if err := f.validate(cmd); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	client, err := f.connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	plan, err := setup.Make(ctx, client, f.cfg)
	if err != nil {
		return err
	}
	if err := f.show(cmd.OutOrStdout(), plan); err != nil {
		return err
	}
	if f.check && plan.Differs() {
		return &exitError{exitDiffers, nil}
	}
	return nil
}

func (f *topicsFlags) show(out io.Writer, plan *setup.Plan) error {
	if f.output.json() {
		return printJSON(out, plan)
	}
	if err := showItems(out, plan.Items); err != nil {
		return err
	}
	if !plan.Differs() {
		_, err := fmt.Fprintln(out, "nothing to do: the topics are as they should be")
		return err
	}
	return nil
}

// showItems writes a table, and below it what a table has no room for.
func showItems(out io.Writer, items []setup.Item) error {
	if len(items) == 0 {
		return nil
	}
	rows := newTable(out, "DO", "TOPIC", "SETTING", "IS", "WANT")
	for _, it := range items {
		topic := it.Topic
		if topic == "" {
			topic = "(brokers)"
		}
		rows.row(string(it.Action), topic, it.Setting, it.Is, it.Want)
	}
	if err := rows.flush(); err != nil {
		return err
	}
	said := map[string]bool{}
	for _, it := range items {
		if it.Action != setup.Refuse && it.Action != setup.Warn || said[it.Reason] {
			continue
		}
		said[it.Reason] = true
		fmt.Fprintf(out, "\n%s: %s\n", it.Action, clean(it.String()))
	}
	_, err := fmt.Fprintln(out)
	return err
}

func newTopicsApply() *cobra.Command {
	var f topicsFlags
	var yes, dryRun bool
	c := &cobra.Command{
		Use:   "apply",
		Short: "Create topics, and change what differs",
		Long: `apply shows what opstream topics plan shows, asks, and does it. What must not be done
(moving keys to other partitions, for instance) is refused with the way out, and then nothing
is done: exit code 3. Interrupted at any moment, it can be given again.

The principal needs the rights of the role admin; opstream topics acls lists them.`,
		Example: `  opstream topics apply --partitions 24
  opstream topics apply --yes --replication-factor 3 --min-insync-replicas 2`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dryRun || f.check {
				if yes {
					return usage("expected --yes, or --dry-run and --check, but got both")
				}
				return f.plan(cmd)
			}
			return f.apply(cmd, yes)
		},
	}
	f.add(c)
	fl := c.Flags()
	fl.BoolVar(&yes, "yes", false, "do not ask")
	fl.BoolVar(&dryRun, "dry-run", false, "only show what would be done, like opstream topics plan")
	fl.BoolVar(&f.check, "check", false, "like --dry-run, and exit with code 6 when anything differs")
	return c
}

func (f *topicsFlags) apply(cmd *cobra.Command, yes bool) error {
	if err := f.validate(cmd); err != nil {
		return err
	}
	client, err := f.connect(cmd.Context())
	if err != nil {
		return err
	}
	defer client.Close()
	bounded, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	plan, err := setup.Make(bounded, client, f.cfg)
	cancel()
	if err != nil {
		return err
	}
	out, people := cmd.OutOrStdout(), cmd.OutOrStdout()
	if f.output.json() {
		people = cmd.ErrOrStderr()
	}
	if !f.output.json() || !yes {
		shown := *f
		shown.output = "table"
		if err := shown.show(people, plan); err != nil {
			return err
		}
	}
	if refused := plan.Of(setup.Refuse); len(refused) > 0 {
		if f.output.json() {
			if err := printJSON(out, applied{Plan: plan, Done: []setup.Item{}}); err != nil {
				return err
			}
		}
		return &exitError{exitRefused, &setup.RefusedError{Plan: plan}}
	}
	if len(plan.Changes()) == 0 {
		if f.output.json() {
			return printJSON(out, applied{Plan: plan, Done: []setup.Item{}})
		}
		return nil
	}
	if !yes {
		if err := confirm(cmd, people, fmt.Sprintf("Make these %d changes? Type yes: ", len(plan.Changes()))); err != nil {
			return err
		}
	}
	// The time that people take to answer is not the brokers'.
	bounded, cancel = context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	done, err := setup.Apply(bounded, client, f.cfg)
	if f.output.json() {
		err = errors.Join(err, printJSON(out, applied{Plan: plan, Done: append([]setup.Item{}, done...)}))
	} else {
		for _, it := range done {
			fmt.Fprintf(out, "done: %s %s\n", it.Action, clean(it.String()))
		}
	}
	var refused *setup.RefusedError
	switch {
	case errors.As(err, &refused):
		return &exitError{exitRefused, err}
	case err != nil:
		return fmt.Errorf("%w\n%d changes were made; apply again to go on from there", err, len(done))
	}
	return nil
}

// applied is what programs read of apply.
type applied struct {
	*setup.Plan
	Done []setup.Item `json:"done"`
}

// confirm asks a person. Where there is none, nothing is assumed.
func confirm(cmd *cobra.Command, out io.Writer, question string) error {
	in := cmd.InOrStdin()
	if file, ok := in.(*os.File); ok && !term.IsTerminal(int(file.Fd())) {
		return usage("expected --yes, because there is nobody to ask: standard input is no terminal; nothing was changed")
	}
	fmt.Fprint(out, question)
	answer, err := bufio.NewReader(in).ReadString('\n')
	if strings.TrimSpace(answer) != "yes" {
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read the answer: %w", err)
		}
		return errors.New("expected yes, but got another answer; nothing was changed")
	}
	return nil
}

func newTopicsACLs() *cobra.Command {
	var f topicsFlags
	var roles []string
	var commands, idempotentWrite bool
	c := &cobra.Command{
		Use:   "acls",
		Short: "Show the least rights that each role needs on Kafka",
		Long: `acls lists what the principal of each role must be allowed to do, and no more. Only the
scheduler may write the journal and the checkpoints; nobody may delete the journal's records.
Roles are those of opstream serve, and three beside them: requester (a CRM core that requests
over Kafka), reader (whoever reads the journal and the dead letters) and admin (opstream
topics). A process with several roles needs the rights of all of them.

It asks no broker. With --kafka-acls it prints commands for Kafka's own tool; opstream topics
acls apply gives the rights itself.`,
		Example: `  opstream topics acls --role scheduler,worker
  opstream topics acls --kafka-acls --principal worker=User:crm-worker --brokers kafka-1:9092`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.kafka.resolve(cmd); err != nil {
				return err
			}
			f.cfg.Topics = schemas.Topics{Prefix: f.kafka.prefix}
			chosen, err := parseRoles(roles)
			if err != nil {
				return err
			}
			principals, err := f.principals(cmd)
			if err != nil {
				return err
			}
			if len(roles) == 0 && len(principals) > 0 {
				chosen = slices.DeleteFunc(chosen, func(r setup.Role) bool { return len(principals[r]) == 0 })
			}
			return f.rights(cmd.OutOrStdout(), chosen, principals, commands, idempotentWrite)
		},
	}
	f.kafka.add(c)
	fl := c.Flags()
	fl.StringSliceVar(&roles, "role", nil, "only these roles")
	fl.BoolVar(&commands, "kafka-acls", false, "print commands for Kafka's kafka-acls.sh")
	principalFlags(c, &idempotentWrite)
	f.output.add(c)
	c.AddCommand(newTopicsACLsApply())
	return c
}

func principalFlags(c *cobra.Command, idempotentWrite *bool) {
	c.Flags().StringArray("principal", nil, "ROLE=User:NAME, once for each")
	c.Flags().BoolVar(idempotentWrite, "idempotent-write", false, "with the right that brokers before Kafka 2.8 ask of producers")
}

func parseRoles(names []string) ([]setup.Role, error) {
	all := setup.Roles()
	if len(names) == 0 {
		return all, nil
	}
	var out []setup.Role
	for _, name := range names {
		if !slices.Contains(all, setup.Role(name)) {
			return nil, usage("expected a role out of %s, but got %q", joinRoles(all), clean(cut(name, 60)))
		}
		out = append(out, setup.Role(name))
	}
	return out, nil
}

func joinRoles(roles []setup.Role) string {
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = string(r)
	}
	return strings.Join(names, ", ")
}

// principals reads --principal.
func (f *topicsFlags) principals(cmd *cobra.Command) (map[setup.Role][]string, error) {
	given, err := cmd.Flags().GetStringArray("principal")
	if err != nil {
		return nil, err
	}
	out := map[setup.Role][]string{}
	for _, text := range given {
		role, principal, ok := strings.Cut(text, "=")
		kind, name, typed := strings.Cut(principal, ":")
		if !ok || !typed || kind == "" || name == "" {
			return nil, usage("expected --principal ROLE=User:NAME, but got %q", clean(cut(text, 100)))
		}
		if name == "*" {
			return nil, usage("expected --principal with one name, but got %q: everybody must not have these rights", clean(cut(text, 100)))
		}
		if _, err := parseRoles([]string{role}); err != nil {
			return nil, err
		}
		out[setup.Role(role)] = append(out[setup.Role(role)], principal)
	}
	return out, nil
}

func (f *topicsFlags) rights(out io.Writer, roles []setup.Role, principals map[setup.Role][]string, commands, idempotentWrite bool) error {
	rows := newTable(out, "ROLE", "RESOURCE", "NAME", "MAY", "BECAUSE IT")
	var all []setup.Right
	for _, role := range roles {
		for _, r := range setup.Rights(f.cfg.Topics, role, idempotentWrite) {
			all = append(all, r)
			name := r.Name
			if r.Prefixed {
				name += "*"
			}
			rows.row(string(role), r.Resource, name, strings.Join(r.Operations, ", "), r.Why)
		}
	}
	switch {
	case commands:
		for _, r := range all {
			who := principals[r.Role]
			if len(who) == 0 {
				who = []string{"User:opstream-" + string(r.Role)}
			}
			for _, principal := range who {
				fmt.Fprintln(out, r.Command(principal, strings.Join(f.kafka.brokers, ",")))
			}
		}
		return nil
	case f.output.json():
		for _, r := range all {
			if err := printJSON(out, r); err != nil {
				return err
			}
		}
		return nil
	}
	return rows.flush()
}

func newTopicsACLsApply() *cobra.Command {
	var f topicsFlags
	var yes, dryRun, idempotentWrite bool
	c := &cobra.Command{
		Use:   "apply --principal ROLE=User:NAME …",
		Short: "Give principals the rights of their roles",
		Long: `apply gives each principal what its role needs and it does not have yet. It takes nothing
away: whoever else may write the journal or the checkpoints is named, for people to judge.
The principal that gives rights needs Describe and Alter on the cluster.`,
		Example: `  opstream topics acls apply --principal scheduler=User:a --principal worker=User:b
  opstream topics acls apply --principal api=User:c --principal projector=User:c --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dryRun || f.check {
				if yes {
					return usage("expected --yes, or --dry-run and --check, but got both")
				}
				yes = false
			}
			if err := f.validate(cmd); err != nil {
				return err
			}
			principals, err := f.principals(cmd)
			if err != nil {
				return err
			}
			if len(principals) == 0 {
				return usage("expected --principal ROLE=User:NAME at least once; the roles are %s", joinRoles(setup.Roles()))
			}
			client, err := f.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			return f.giveRights(cmd, client, principals, idempotentWrite, yes, dryRun || f.check)
		},
	}
	f.kafka.add(c)
	f.addTimeout(c)
	fl := c.Flags()
	fl.BoolVar(&yes, "yes", false, "do not ask")
	fl.BoolVar(&dryRun, "dry-run", false, "only show what is missing")
	fl.BoolVar(&f.check, "check", false, "like --dry-run, and exit with code 6 when a right is missing")
	principalFlags(c, &idempotentWrite)
	f.output.add(c)
	return c
}

func (f *topicsFlags) giveRights(cmd *cobra.Command, client *kgo.Client, principals map[setup.Role][]string, idempotentWrite, yes, dry bool) error {
	bounded, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	plan, err := setup.PlanACLs(bounded, client, f.cfg.Topics, principals, idempotentWrite)
	cancel()
	if err != nil {
		return err
	}
	out, people := cmd.OutOrStdout(), cmd.OutOrStdout()
	if f.output.json() {
		people = cmd.ErrOrStderr()
	}
	if !f.output.json() {
		if err := showGrants(people, plan); err != nil {
			return err
		}
	} else if err := printJSON(out, plan); err != nil {
		return err
	}
	switch {
	case dry && f.check && len(plan.Missing) > 0:
		return &exitError{exitDiffers, nil}
	case dry, len(plan.Missing) == 0:
		return nil
	}
	if !yes {
		if err := confirm(cmd, people, fmt.Sprintf("Give these %d rights? Type yes: ", len(plan.Missing))); err != nil {
			return err
		}
	}
	bounded, cancel = context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	if err := setup.GrantAll(bounded, client, plan.Missing); err != nil {
		return fmt.Errorf("%w\nsome rights may have been given; apply again gives those that are missing then", err)
	}
	fmt.Fprintf(people, "%d rights given\n", len(plan.Missing))
	return nil
}

func showGrants(out io.Writer, plan *setup.ACLPlan) error {
	rows := newTable(out, "DO", "PRINCIPAL", "MAY", "RESOURCE", "NAME")
	row := func(do string, g setup.Grant) {
		name := g.Name
		if g.Prefixed {
			name += "*"
		}
		rows.row(do, g.Principal, g.Operation, g.Resource, name)
	}
	for _, g := range plan.Missing {
		row("give", g)
	}
	for _, g := range plan.Foreign {
		row("warn", g)
	}
	if !rows.empty() {
		if err := rows.flush(); err != nil {
			return err
		}
	}
	if len(plan.Foreign) > 0 {
		fmt.Fprintln(out, "\nwarn: these may write or delete what only the scheduler should; take the right away with kafka-acls --remove, unless it is meant")
	}
	if len(plan.Missing) == 0 {
		fmt.Fprintln(out, "nothing to do: every principal has the rights of its role")
	}
	return nil
}

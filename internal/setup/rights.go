package setup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/opstream/opstream/schemas"
)

// A Role is who has rights: a role of opstream serve, or somebody beside the service.
type Role string

// The roles.
const (
	RoleScheduler Role = "scheduler"
	RoleWorker    Role = "worker"
	RoleProjector Role = "projector"
	RoleAPI       Role = "api"
	RoleRequester Role = "requester" // a CRM core that requests over Kafka
	RoleReader    Role = "reader"    // notifiers, audit, and people with opstream journal, verify and deadletter
	RoleAdmin     Role = "admin"     // opstream topics apply
)

// Roles lists all of them.
func Roles() []Role {
	return []Role{RoleScheduler, RoleWorker, RoleProjector, RoleAPI, RoleRequester, RoleReader, RoleAdmin}
}

// A Right lets a role do some things with one resource of Kafka's.
type Right struct {
	Role       Role     `json:"role"`
	Resource   string   `json:"resource"` // topic, group or cluster
	Name       string   `json:"name"`
	Prefixed   bool     `json:"prefixed,omitempty"` // of everything whose name begins with Name
	Operations []string `json:"operations"`         // as kafka-acls has them
	Why        string   `json:"why"`
}

const (
	resourceTopic   = "topic"
	resourceGroup   = "group"
	resourceCluster = "cluster"
	clusterName     = "kafka-cluster"
)

// Rights lists the least that a role needs: a test over Kafka takes away one after the other. Read, Write, Delete and Alter include
// Describe, and AlterConfigs includes DescribeConfigs. Whoever may write a topic may be an
// idempotent producer from Kafka 2.8 on; idempotentWrite adds the right that older brokers ask for. Nobody may delete records
// of the journal, and only the scheduler may write it: its Delete on checkpoints is how it trims them.
func Rights(topics schemas.Topics, role Role, idempotentWrite bool) []Right {
	var out []Right
	on := func(topic, why string, operations ...string) {
		out = append(out, Right{Role: role, Resource: resourceTopic, Name: topic, Operations: operations, Why: why})
	}
	prefix := strings.TrimSuffix(topics.Requests(), schemas.TopicRequests)
	writes := false
	switch role {
	case RoleScheduler:
		writes = true
		on(topics.Requests(), "takes requests and commands", "Read")
		on(topics.Reports(), "hears what became of attempts", "Read")
		on(topics.Signals(), "tells other partitions, and hears them", "Read", "Write")
		on(topics.Journal(), "recovers from it, and alone appends to it", "Read", "Write")
		on(topics.Checkpoints(), "begins recovery with them, writes and trims them", "Read", "Write", "Delete")
		on(topics.Inboxes(), "hands out work", "Write")
		on(topics.Sessions(), "hears which workers live", "Read")
		on(topics.DeadLetter(), "sets aside what cannot be read", "Write")
		out = append(out, Right{Role: role, Resource: resourceGroup, Name: prefix + "scheduler", Operations: []string{"Read"}, Why: "shares the partitions out"})
	case RoleWorker:
		writes = true
		on(topics.Inboxes(), "takes its work", "Read")
		on(topics.Reports(), "tells what became of it", "Write")
		on(topics.Sessions(), "shows that it lives", "Write")
	case RoleProjector:
		on(topics.Journal(), "makes tables of it", "Read")
	case RoleAPI:
		writes = true
		on(topics.Requests(), "passes on requests and commands", "Write")
		on(topics.Journal(), "finds the answers to them", "Read")
	case RoleRequester:
		writes = true
		on(topics.Requests(), "requests operations", "Write")
	case RoleReader:
		on(topics.Journal(), "reads every event", "Read")
		on(topics.DeadLetter(), "reads what was set aside", "Read")
	case RoleAdmin:
		out = append(
			out,
			Right{Role: role, Resource: resourceTopic, Name: prefix, Prefixed: true, Operations: []string{"Create", "Alter", "AlterConfigs"}, Why: "makes topics and changes their settings"},
			Right{Role: role, Resource: resourceCluster, Name: clusterName, Operations: []string{"DescribeConfigs"}, Why: "checks the brokers' settings"},
		)
	}
	if writes && idempotentWrite {
		out = append(out, Right{Role: role, Resource: resourceCluster, Name: clusterName, Operations: []string{"IdempotentWrite"}, Why: "appends without duplicates (brokers before 2.8)"})
	}
	return out
}

// Command is the right as a command line of Kafka's own tool.
func (r Right) Command(principal, brokers string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "kafka-acls.sh --bootstrap-server %s --add --allow-principal %s", quote(brokers), quote(principal))
	for _, op := range r.Operations {
		b.WriteString(" --operation " + op)
	}
	switch r.Resource {
	case resourceCluster:
		b.WriteString(" --cluster")
	default:
		fmt.Fprintf(&b, " --%s %s", r.Resource, quote(r.Name))
	}
	if r.Prefixed {
		b.WriteString(" --resource-pattern-type prefixed")
	}
	return b.String()
}

// quote makes a word of a shell.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-:,/=@", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// Grant is one operation that one principal may do: what a broker keeps.
type Grant struct {
	Principal string `json:"principal"`
	Resource  string `json:"resource"`
	Name      string `json:"name"`
	Prefixed  bool   `json:"prefixed,omitempty"`
	Operation string `json:"operation"`
}

// ACLPlan is what stands between the rights that there are and those that there should be.
type ACLPlan struct {
	Missing []Grant `json:"missing"` // never nil
	// Foreign are grants of others that let them change what only the scheduler may: [Apply] leaves them to people.
	Foreign []Grant `json:"foreign"` // never nil
}

// PlanACLs compares the rights of the principals (such as User:a), by role, with what the brokers have. It needs Describe on the
// cluster.
func PlanACLs(ctx context.Context, client *kgo.Client, topics schemas.Topics, principals map[Role][]string, idempotentWrite bool) (*ACLPlan, error) {
	resp, err := describeACLs(ctx, client)
	if err != nil {
		return nil, err
	}
	plan := &ACLPlan{Missing: []Grant{}, Foreign: []Grant{}}
	for _, role := range Roles() {
		for _, principal := range principals[role] {
			for _, right := range Rights(topics, role, idempotentWrite) {
				for _, op := range right.Operations {
					g := Grant{Principal: principal, Resource: right.Resource, Name: right.Name, Prefixed: right.Prefixed, Operation: op}
					if !granted(resp, g) && !slices.Contains(plan.Missing, g) {
						plan.Missing = append(plan.Missing, g)
					}
				}
			}
		}
	}
	plan.Foreign = append(plan.Foreign, foreign(resp, topics, principals[RoleScheduler])...)
	return plan, nil
}

// describeACLs asks a broker for all rights that it knows of.
func describeACLs(ctx context.Context, client *kgo.Client) (*kmsg.DescribeACLsResponse, error) {
	req := kmsg.NewPtrDescribeACLsRequest()
	req.ResourceType, req.ResourcePatternType = kmsg.ACLResourceTypeAny, kmsg.ACLResourcePatternTypeAny
	req.Operation, req.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
	resp, err := req.RequestWith(ctx, client)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil {
		return nil, fmt.Errorf("ask for the rights that there are: %w", explainACL(err))
	}
	return resp, nil
}

// granted says whether there is a grant to the letter: one that covers more may be taken away for other reasons.
func granted(resp *kmsg.DescribeACLsResponse, g Grant) bool {
	want := g.Creation()
	for _, res := range resp.Resources {
		if res.ResourceType != want.ResourceType || res.ResourceName != want.ResourceName || res.ResourcePatternType != want.ResourcePatternType {
			continue
		}
		for _, acl := range res.ACLs {
			if acl.Principal == want.Principal && acl.Host == want.Host && acl.Operation == want.Operation && acl.PermissionType == want.PermissionType {
				return true
			}
		}
	}
	return false
}

// foreign finds who else may change the journal or the checkpoints.
func foreign(resp *kmsg.DescribeACLsResponse, topics schemas.Topics, schedulers []string) []Grant {
	var out []Grant
	for _, res := range resp.Resources {
		covers := false
		for _, topic := range []string{topics.Journal(), topics.Checkpoints()} {
			covers = covers || res.ResourceName == topic || res.ResourceName == "*" ||
				res.ResourcePatternType == kmsg.ACLResourcePatternTypePrefixed && strings.HasPrefix(topic, res.ResourceName)
		}
		if res.ResourceType != kmsg.ACLResourceTypeTopic || !covers {
			continue
		}
		for _, acl := range res.ACLs {
			changes := acl.Operation == kmsg.ACLOperationWrite || acl.Operation == kmsg.ACLOperationDelete || acl.Operation == kmsg.ACLOperationAll
			known := slices.Contains(schedulers, acl.Principal)
			if known && res.ResourceName == topics.Checkpoints() || known && res.ResourceName == topics.Journal() && acl.Operation == kmsg.ACLOperationWrite {
				continue
			}
			if changes && acl.PermissionType == kmsg.ACLPermissionTypeAllow {
				out = append(out, Grant{
					Principal: acl.Principal, Resource: resourceTopic, Name: res.ResourceName,
					Prefixed: res.ResourcePatternType == kmsg.ACLResourcePatternTypePrefixed, Operation: operationName(acl.Operation),
				})
			}
		}
	}
	slices.SortFunc(out, func(a, b Grant) int {
		return cmp.Or(cmp.Compare(a.Principal, b.Principal), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Operation, b.Operation))
	})
	return out
}

// GrantAll gives the rights, and returns when a broker shows them: what the controller has taken, brokers act upon a little later, and
// who comes at once would be refused. It needs Alter on the cluster. Giving one that is there already changes nothing.
func GrantAll(ctx context.Context, client *kgo.Client, grants []Grant) error {
	if len(grants) == 0 {
		return nil
	}
	req := kmsg.NewPtrCreateACLsRequest()
	for _, g := range grants {
		req.Creations = append(req.Creations, g.Creation())
	}
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return fmt.Errorf("give the rights: %w", explainACL(err))
	}
	if len(resp.Results) != len(grants) {
		return fmt.Errorf("give the rights: expected %d answers, but got %d; plan again to see what was given", len(grants), len(resp.Results))
	}
	var faults []error
	for i, r := range resp.Results {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			g := grants[i]
			faults = append(faults, fmt.Errorf("let %s %s %s %s: %w", g.Principal, g.Operation, g.Resource, g.Name, explainACL(err)))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	for round := 0; ; round++ {
		resp, err := describeACLs(ctx, client)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(grants, func(g Grant) bool { return !granted(resp, g) })
		if i < 0 {
			return nil
		}
		if round == rounds {
			g := grants[i]
			return fmt.Errorf("expected the brokers to show that %s may %s %s %s, but they do not; look at the brokers' logs and plan again", g.Principal, g.Operation, g.Resource, g.Name)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(min(20*time.Millisecond<<round, roundPause)):
		}
	}
}

func explainACL(err error) error {
	if errors.Is(err, kerr.ClusterAuthorizationFailed) {
		return fmt.Errorf("%w; rights are seen with Describe and given with Alter on the cluster: use the principal that has these (one of the brokers' super.users, as a rule)", err)
	}
	return explain(err)
}

// operations are Kafka's names for what the protocol has numbers for.
func operations() map[string]kmsg.ACLOperation {
	return map[string]kmsg.ACLOperation{
		"All": kmsg.ACLOperationAll, "Read": kmsg.ACLOperationRead, "Write": kmsg.ACLOperationWrite, "Create": kmsg.ACLOperationCreate,
		"Delete": kmsg.ACLOperationDelete, "Alter": kmsg.ACLOperationAlter, "Describe": kmsg.ACLOperationDescribe,
		"DescribeConfigs": kmsg.ACLOperationDescribeConfigs, "AlterConfigs": kmsg.ACLOperationAlterConfigs,
		"IdempotentWrite": kmsg.ACLOperationIdempotentWrite,
	}
}

func operationName(op kmsg.ACLOperation) string {
	for name, o := range operations() {
		if o == op {
			return name
		}
	}
	return op.String()
}

// Creation is the grant as the protocol has it.
func (g Grant) Creation() kmsg.CreateACLsRequestCreation {
	c := kmsg.NewCreateACLsRequestCreation()
	switch g.Resource {
	case resourceTopic:
		c.ResourceType = kmsg.ACLResourceTypeTopic
	case resourceGroup:
		c.ResourceType = kmsg.ACLResourceTypeGroup
	default:
		c.ResourceType = kmsg.ACLResourceTypeCluster
	}
	c.ResourceName, c.ResourcePatternType = g.Name, kmsg.ACLResourcePatternTypeLiteral
	if g.Prefixed {
		c.ResourcePatternType = kmsg.ACLResourcePatternTypePrefixed
	}
	c.Principal, c.Host = g.Principal, "*"
	c.Operation, c.PermissionType = operations()[g.Operation], kmsg.ACLPermissionTypeAllow
	return c
}

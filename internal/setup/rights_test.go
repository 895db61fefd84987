package setup

import (
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/opstream/opstream/schemas"
)

// TestOnlyTheSchedulerWritesTheJournal holds the table to what everything else rests on.
func TestOnlyTheSchedulerWritesTheJournal(t *testing.T) {
	topics := schemas.Topics{Prefix: "x."}
	for _, role := range Roles() {
		rights := Rights(topics, role, true)
		if len(rights) == 0 {
			t.Errorf("expected %s to have rights, but it has none", role)
		}
		for _, r := range rights {
			for _, op := range r.Operations {
				if _, known := operations()[op]; !known {
					t.Errorf("%s: expected an operation of Kafka's, but got %q", role, op)
				}
				protected := r.Name == topics.Journal() || r.Name == topics.Checkpoints() || r.Prefixed
				changes := op == "Write" || op == "Delete" || op == "All"
				if protected && changes && role != RoleScheduler {
					t.Errorf("expected only the scheduler to change %s, but %s may %s", r.Name, role, op)
				}
				if r.Name == topics.Journal() && op == "Delete" {
					t.Errorf("expected nobody to delete records of the journal, but %s may", role)
				}
			}
			if r.Resource != resourceCluster && !strings.HasPrefix(r.Name, "x.") {
				t.Errorf("%s: expected names with the prefix, but got %s", role, r.Name)
			}
		}
	}
}

func TestCommand(t *testing.T) {
	for want, r := range map[string]Right{
		"kafka-acls.sh --bootstrap-server a:1,b:2 --add --allow-principal User:ann --operation Read --operation Write --topic opstream.journal":          Rights(schemas.Topics{}, RoleScheduler, false)[3],
		"kafka-acls.sh --bootstrap-server a:1,b:2 --add --allow-principal User:ann --operation Read --group opstream.scheduler":                          Rights(schemas.Topics{}, RoleScheduler, false)[8],
		"kafka-acls.sh --bootstrap-server a:1,b:2 --add --allow-principal User:ann --operation IdempotentWrite --cluster":                                Rights(schemas.Topics{}, RoleRequester, true)[1],
		"kafka-acls.sh --bootstrap-server a:1,b:2 --add --allow-principal User:ann --operation Read --topic 'it'\\''s' --resource-pattern-type prefixed": {Resource: "topic", Name: "it's", Prefixed: true, Operations: []string{"Read"}},
	} {
		if got := r.Command("User:ann", "a:1,b:2"); got != want {
			t.Errorf("expected\n%s\nbut got\n%s", want, got)
		}
	}
}

func TestACLs(t *testing.T) {
	k := start(t, 1)
	principals := map[Role][]string{RoleScheduler: {"User:s1", "User:s2"}, RoleWorker: {"User:w"}, RoleAPI: {"User:w"}}
	plan := func() *ACLPlan {
		t.Helper()
		p, err := PlanACLs(t.Context(), k.client, schemas.Topics{}, principals, false)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := plan()
	// Two schedulers with 13 each, a worker with 3, an API with 2.
	if len(first.Missing) != 2*13+3+2 || len(first.Foreign) != 0 {
		t.Fatalf("expected all rights to be missing, but got %+v", first)
	}
	if err := GrantAll(t.Context(), k.client, first.Missing[:7]); err != nil {
		t.Fatal(err)
	}
	if rest := plan(); len(rest.Missing) != len(first.Missing)-7 {
		t.Errorf("expected the rest to be missing, but got %+v", rest.Missing)
	}
	for range 2 { // twice is once
		if err := GrantAll(t.Context(), k.client, first.Missing); err != nil {
			t.Fatal(err)
		}
	}
	if rest := plan(); len(rest.Missing)+len(rest.Foreign) != 0 {
		t.Errorf("expected nothing to be missing, but got %+v", rest)
	}

	for _, b := range []*kadm.ACLBuilder{
		kadm.NewACLs().Topics("opstream.journal").Allow("User:eve").Operations(kadm.OpWrite).ResourcePatternType(kadm.ACLPatternLiteral),
		kadm.NewACLs().Topics("opstream.").Allow("User:eve").Operations(kadm.OpAll).ResourcePatternType(kadm.ACLPatternPrefixed),
		kadm.NewACLs().Topics("*").Allow("User:eve").Operations(kadm.OpDelete).ResourcePatternType(kadm.ACLPatternLiteral),
		kadm.NewACLs().Topics("opstream.journal").Allow("User:s1").Operations(kadm.OpDelete).ResourcePatternType(kadm.ACLPatternLiteral),
		// Harmless.
		kadm.NewACLs().Topics("opstream.journal").Allow("User:bob").Operations(kadm.OpRead).ResourcePatternType(kadm.ACLPatternLiteral),
		kadm.NewACLs().Topics("opstream.requests").Allow("User:bob").Operations(kadm.OpWrite).ResourcePatternType(kadm.ACLPatternLiteral),
		kadm.NewACLs().Topics("opstream.journal").Deny("User:bob").Operations(kadm.OpWrite).ResourcePatternType(kadm.ACLPatternLiteral),
	} {
		if _, err := k.admin.CreateACLs(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, g := range plan().Foreign {
		got = append(got, g.Principal+" "+g.Operation+" "+g.Name)
	}
	want := "User:eve Delete *, User:eve All opstream., User:eve Write opstream.journal, User:s1 Delete opstream.journal"
	if strings.Join(got, ", ") != want {
		t.Errorf("expected these to be named: %s; but got %s", want, strings.Join(got, ", "))
	}
}

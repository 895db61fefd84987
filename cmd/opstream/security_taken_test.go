package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/internal/setup"
	"github.com/opstream/opstream/schemas"
)

// rightsComeAndGo takes one right after the other from roles at work, as somebody does who tidies up, and gives it back when the role has
// said what it may not do. Nobody starts anything again: each goes on by itself, and nothing is lost or done twice.
func rightsComeAndGo(t *testing.T, kafka *kafkatest.Secure) {
	in := newInstallation(t, t.TempDir())
	in.broker, in.topics, in.rate = kafka.Mutual, schemas.Topics{Prefix: "taken."}, 50
	root := &lacking{T: t, kafka: kafka, topics: in.topics, user: kafkatest.Root}
	client := root.client(kafkatest.Root)
	if _, err := setup.Apply(t.Context(), client, setup.Config{Topics: in.topics, Partitions: 2, InboxPartitions: 2}); err != nil {
		t.Fatal(err)
	}
	in.opts, in.secured = root.options(kafkatest.Root), root.config()
	grants := map[string][]setup.Grant{}
	for name, roles := range map[string][]setup.Role{
		"scheduler": {setup.RoleScheduler}, "worker": {setup.RoleWorker}, "api": {setup.RoleProjector, setup.RoleAPI},
	} {
		user := "taken-" + name
		seen := map[setup.Grant]bool{}
		for _, role := range roles {
			for _, g := range grantsOf("User:"+user, in.topics, role) {
				if !seen[g] {
					seen[g] = true
					grants[name] = append(grants[name], g)
				}
			}
		}
		if err := setup.GrantAll(t.Context(), client, grants[name]); err != nil {
			t.Fatal(err)
		}
		args := []string{"serve", "--roles", strings.Join(rolesOf(roles), ","), "--log", "warn", "--config", securityFile(t, in.broker, in.topics.Prefix, certificateOf(t, kafka, user))}
		switch name {
		case "api":
			args = append(args, "--database", filepath.Join(t.TempDir(), databaseFile), "--listen", strings.TrimPrefix(in.url, "http://"))
			in.tables = args[len(args)-3]
		default:
			args = append(args, "--lease", "3s")
		}
		in.parts = append(in.parts, daemonOf(t, name, args...))
	}
	in.start().underLoad(func(uint64) {
		in.probe("before")
		for _, d := range in.parts {
			for i, g := range grants[d.name] {
				what := fmt.Sprintf("%s: %s %s %s", d.name, g.Operation, g.Resource, strings.TrimPrefix(g.Name, in.topics.Prefix))
				before := len(d.log.String())
				revoke(t, client, g)
				switch {
				case notMissedAtWork[what]:
					<-after(500 * time.Millisecond)
				case g.Operation == "Write" && g.Name == in.topics.Requests():
					request := `{"organization": "o", "id": "refused", "type": "noop"}`
					// Brokers hear a moment later that a right is gone; and while others are refused at the same moment it is not known which of
					// the answers is whose.
					eventually(t, 20*time.Second, func() (bool, string) {
						r := programRun(t, request, "op", "submit", "--server", in.url, "--from", "-", "--timeout", "5s")
						return r.code == exitRefused && strings.Contains(r.out, "its principal needs those of the role api"), r.String()
					})
				default:
					l := &lacking{T: t, kafka: kafka, topics: in.topics, grant: g}
					l.misses(d.log, before, d.done)
				}
				if what == "api: Read topic journal" {
					eventually(t, 20*time.Second, func() (bool, string) {
						got := readyz(t, in.url)
						return strings.Contains(got, "answers to commands are not heard") || strings.Contains(got, "the tables cannot be written"), got
					})
				}
				if err := setup.GrantAll(t.Context(), client, grants[d.name][i:i+1]); err != nil {
					t.Fatal(err)
				}
				back := time.Now()
				in.probe("after " + what)
				said := d.log.String()[before:]
				t.Logf("%s: an operation was done %s after it was given back; %d lines were logged", what, time.Since(back).Round(time.Millisecond), strings.Count(said, "\n"))
				if strings.Count(said, "\n") > 20 {
					t.Errorf("%s: expected a few lines, but it said\n%s", what, said)
				}
				in.alive()
			}
		}
	})
}

// notMissedAtWork are rights that are needed when a partition is taken over, or for what does not come here.
var notMissedAtWork = map[string]bool{
	"scheduler: Read topic journal":     true,
	"scheduler: Read topic checkpoints": true,
	"scheduler: Write topic signals":    true,
	"scheduler: Write topic deadletter": true,
}

func rolesOf(roles []setup.Role) (names []string) {
	for _, r := range roles {
		names = append(names, string(r))
	}
	return names
}

// revoke takes a right away.
func revoke(t testing.TB, client *kgo.Client, g setup.Grant) {
	t.Helper()
	all := kmsg.NewPtrDeleteACLsRequest()
	f := kmsg.NewDeleteACLsRequestFilter()
	created := g.Creation()
	f.ResourceType, f.ResourceName, f.ResourcePatternType = created.ResourceType, &created.ResourceName, created.ResourcePatternType
	f.Principal, f.Host, f.Operation, f.PermissionType = &created.Principal, &created.Host, created.Operation, created.PermissionType
	all.Filters = append(all.Filters, f)
	resp, err := all.RequestWith(t.Context(), client)
	if err == nil {
		err = kerr.ErrorForCode(resp.Results[0].ErrorCode)
	}
	if err != nil || len(resp.Results[0].MatchingACLs) != 1 {
		t.Fatalf("expected one right to be taken away, but got %+v, %v", resp, err)
	}
}

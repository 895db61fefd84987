package partition_test

import (
	"fmt"
	"strings"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/domain/retry"
)

const t0 = operation.Time(1_700_000_000_000_000)

// testConfig makes the limits small enough for tests to meet them.
func testConfig() partition.Config {
	return partition.Config{
		Partitions: 1, KnownMax: 4096, FailedMax: 64, Lease: 15 * time.Second, ResendAfter: 5 * time.Second,
		Weight: func(org string) int {
			if org == "heavy" {
				return 3
			}
			return 1
		},
		Policy: func(string) *retry.Policy {
			return &retry.Policy{MaxAttempts: 3, Initial: time.Second, Multiplier: 2, Max: time.Minute}
		},
	}
}

// request makes a request whose Raw says all that tells it apart.
func request(org, id, kind, token string, policy operation.UpstreamPolicy, priority int8, postpone operation.Time) *operation.Request {
	return &operation.Request{
		ID: operation.ID(id), Organization: org, Type: kind, DependencyToken: token, OnUpstreamFailure: policy,
		Priority: priority, PostponeUntil: postpone,
		Raw: fmt.Appendf(nil, `{"id":%q,"type":%q,"token":%q,"policy":%q,"priority":%d,"postpone":%d}`, id, kind, token, policy, priority, postpone),
	}
}

func seconds(at operation.Time) string {
	return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(at-t0)/1e6), ".0")
}

// describe writes an event on one line: its kind, its operation and what counts in it.
func describe(e *operation.Event) string {
	text := e.Kind.String()
	if e.ID != "" {
		text += " " + string(e.ID)
	}
	add := func(show bool, format string, value any) {
		if show {
			text += fmt.Sprintf(" "+format, value)
		}
	}
	add(e.Kind == operation.Dispatched, "attempt=%v", e.Attempt)
	add(e.Kind == operation.Dispatched || e.Kind == operation.LeaseWasLost, "session=%v", e.Session)
	add(e.Until != 0, "until=%v", seconds(e.Until))
	add(e.Upstream != "", "upstream=%v", e.Upstream)
	add(e.Kind == operation.Rejected || e.Kind == operation.Unchanged, "%v", e.Command)
	add(e.Code != "", "code=%v", e.Code)
	add(e.Kind == operation.Unchanged, "status=%v", e.Status)
	add(e.Owner != "", "owner=%v", e.Owner)
	return text
}

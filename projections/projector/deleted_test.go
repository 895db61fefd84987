package projector_test

import (
	"testing"

	"github.com/opstream/opstream/domain/operation"
)

// Anybody may delete an id that never was, and the scheduler journals it: the tables must not stop there.
func TestWhatNeverWasIsDeletedAndTheTablesGoOn(t *testing.T) {
	b := newBench(t)
	store := open(t)
	p, _ := b.run(b.config(store))
	gone := operation.Event{Kind: operation.Deleted, Org: "contoso", ID: "never", Cause: operation.Cause{Topic: "requests"}}
	b.wait(p, 0, b.events(0, gone))
	b.wait(p, 0, b.events(0, gone, b.request("op"), gone))
	if part := p.Status().Partitions[0]; part.Stopped != nil {
		t.Fatalf("expected the partition to be projected on, but it stopped: %v", part.Stopped)
	}
	if report := b.verify(store); report.Operations != 1 || !report.OK() {
		t.Errorf("expected one operation and no difference, but got %+v", report)
	}
}

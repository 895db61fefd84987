package main

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
)

// TestGroupGivesUpAPart: one that does not stop keeps the others from nothing. Its time is virtual: the others need some, too.
func TestGroupGivesUpAPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup()
		var order []string
		release := make(chan struct{})
		defer close(release)
		g.start("first", func(ctx context.Context) error {
			<-ctx.Done()
			order = append(order, "first")
			return nil
		})
		g.start("stuck", func(context.Context) error {
			<-release
			return nil
		})
		g.start("last", func(ctx context.Context) error {
			<-ctx.Done()
			order = append(order, "last")
			return nil
		})
		err := g.stop()
		if err == nil || !strings.Contains(err.Error(), "stuck: expected it to stop within 40s") {
			t.Errorf("expected to hear of the part that did not stop, but got: %v", err)
		}
		if strings.Join(order, " ") != "last first" {
			t.Errorf("expected the others to stop, the last one first, but got %v", order)
		}
	})
}

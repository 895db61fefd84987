package operation_test

import (
	"testing"

	"github.com/opstream/opstream/domain/operation"
)

// Verify shows what is in a table that somebody changed.
func TestNumbersWithoutANameAreShown(t *testing.T) {
	if got := operation.Status(77).String(); got != "unknown 77" {
		t.Errorf("expected the number of a status that there is not, but got %q", got)
	}
	if got := operation.Wait(77).String(); got != "unknown 77" {
		t.Errorf("expected the number of a wait that there is not, but got %q", got)
	}
}

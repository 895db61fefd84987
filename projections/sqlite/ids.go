package sqlite

import (
	"context"
	"fmt"
)

// Ids come in no order, so an index over all of them has every batch write a page of its own for nearly every operation: with a
// million operations that doubled the cost of one. Therefore new ids go to a small table, and when that is full, all of
// them go to the large one, in its order, many to a page.
const (
	// minNew is how many ids the small table takes at least before it is emptied into the large one.
	minNew = 65_536
	// newShare: it takes this part of all ids, when that is more.
	newShare = 32
)

// byID finds the keys of a hash, as i.
const byID = "(SELECT key FROM ids_new WHERE id_hash = ?1 UNION ALL SELECT key FROM ids WHERE id_hash = ?1) AS i"

// countIDs learns how full the small table is.
func (a *applier) countIDs(ctx context.Context) error {
	v, err := a.sizeNew.one(ctx)
	if err != nil {
		return fmt.Errorf("count the new ids: %w", err)
	}
	a.fresh, _ = v.(int64)
	return nil
}

// moveIDs empties the small table when it is full.
func (a *applier) moveIDs(ctx context.Context) error {
	if a.fresh < a.minNew {
		return nil
	}
	v, err := a.sizeAll.one(ctx)
	if err != nil {
		return fmt.Errorf("count the operations: %w", err)
	}
	if all, _ := v.(int64); a.fresh < all/newShare {
		return nil
	}
	if _, err := a.copyNew.run(ctx); err != nil {
		return fmt.Errorf("move the new ids to the others: %w", err)
	}
	if _, err := a.clearNew.run(ctx); err != nil {
		return fmt.Errorf("move the new ids to the others: %w", err)
	}
	a.fresh = 0
	return nil
}

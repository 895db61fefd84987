package projections

import (
	"context"
	"errors"
	"fmt"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/optype"
)

// Entry is one valid event of the journal.
type Entry struct {
	Partition int32
	Place     operation.Place
	Event     operation.Event
}

// Position says how far the tables have come in one partition of the journal.
type Position struct {
	Partition int32
	Next      int64          // first offset that is not applied yet
	Chain     []byte         // the chain of the last valid record before Next, as package schemas writes it; the store does not look into it
	At        operation.Time // of the last event before Next, 0 if there is none
}

// Key is the identity of an operation in the tables: partition and place of the event that began it. Keys of one partition
// are in the order in which its operations were accepted.
type Key int64

// Bounds of what fits into a Key.
const (
	placeBits    = 44
	MaxPlace     = operation.Place(1)<<placeBits - 1
	MaxPartition = int32(1)<<(63-placeBits) - 1
)

// KeyOf makes the key of the operation that was requested at this place.
func KeyOf(partition int32, requested operation.Place) Key {
	return Key(int64(partition)<<placeBits | int64(requested))
}

// Partition returns the partition in k.
func (k Key) Partition() int32 { return int32(k >> placeBits) }

// Place returns the place in k.
func (k Key) Place() operation.Place { return operation.Place(k) & MaxPlace }

func (k Key) String() string { return fmt.Sprintf("%d/%d", k.Partition(), k.Place()) }

// Ref names an operation as the events of one partition do: the latest one with this id.
type Ref struct {
	Partition int32
	Org       string
	ID        operation.ID
}

// Row is an operation as the tables have it: its state after its last event. State.Request is never nil, but its Data always
// is, being a part of Raw; and Raw, the request as it was accepted, is there only after [Store.Get].
type Row struct {
	Partition int32
	operation.State
}

// Key returns the row's key.
func (r *Row) Key() Key { return KeyOf(r.Partition, r.RequestedPlace) }

// Sequence is the number shown to people: operations of one partition, and so those of one dependency token, ran in its order.
func (r *Row) Sequence() int64 { return int64(r.RequestedPlace) }

// TypeCode returns the original's number of the operation's type, 0 for a type that the original does not have.
func (r *Row) TypeCode() int {
	t, _ := optype.ByName(r.Request.Type)
	return t.Code
}

// Order is the order of a list.
type Order uint8

// The orders, by the time of creation and then by key.
const (
	NewestFirst Order = iota
	OldestFirst
)

// Filter says which operations are meant. Conditions that are empty do not count; the others all hold. Ranges of time include
// their beginning and not their end; an end of 0 is open.
type Filter struct {
	Organization             string
	Statuses                 []operation.Status
	Waits                    []operation.Wait
	Types                    []string
	DependencyToken          string
	CorrelationID            string
	CreatedFrom, CreatedTo   operation.Time
	ModifiedFrom, ModifiedTo operation.Time
}

// Page is a part of a list. With a Next there may be more, even if Rows is short or empty: a store looks at a bounded number
// of rows for one page.
type Page struct {
	Rows []Row
	Next string // the cursor of the next page, "" at the end of the list
}

// CountFilter says which operations to count.
type CountFilter struct {
	Organization    string // "" means all
	PerOrganization bool   // with no Organization: one count for each instead of totals
}

// Count is a number of operations. Organization is empty in totals over all of them.
type Count struct {
	Organization string
	Type         string
	Status       operation.Status
	Wait         operation.Wait
	N            int64
}

// Rejection is a refused command about an operation that the tables do not have.
type Rejection struct {
	Partition int32
	Place     operation.Place
	Org       string
	ID        operation.ID
	At        operation.Time
	Command   operation.CommandKind
	CommandID string
	Code      operation.RejectionCode
	Reason    string
	By        operation.By
	Cause     operation.Cause
}

// MaxLimit is the greatest number of rows or events that one call returns; a limit out of 1..MaxLimit is brought into it.
const MaxLimit = 1000

// ErrNotFound says that the tables do not have the operation: it was never accepted, not yet projected, or deleted.
var ErrNotFound = errors.New("expected an operation of this organization and id in the tables, but there is none; check both, or wait until the journal is projected")

// Reader is what the query API needs of a store. Its methods may be called from many goroutines.
type Reader interface {
	// Get returns the latest operation of this name with its request, or ErrNotFound.
	Get(ctx context.Context, org string, id operation.ID) (Row, error)
	// List returns the page of at most limit rows that follows cursor; the empty cursor stands before the first. A cursor that
	// this filter and order did not give is a *CursorError.
	List(ctx context.Context, filter Filter, order Order, cursor string, limit int) (Page, error)
	// History returns at most limit events of the latest operation of this name that stand after the given place (-1 to begin),
	// in order, or ErrNotFound.
	History(ctx context.Context, org string, id operation.ID, after operation.Place, limit int) ([]Entry, error)
	// Rejections returns the latest refused commands about an id that has no operation, newest first.
	Rejections(ctx context.Context, org string, id operation.ID, limit int) ([]Rejection, error)
	// Counts returns the counts that are not zero, in no particular order. It costs the same however many operations there are.
	Counts(ctx context.Context, filter CountFilter) ([]Count, error)
	// Positions returns the position of every partition that was begun, by partition.
	Positions(ctx context.Context) ([]Position, error)
}

// Store keeps the tables. Apply, States and Reset are for one goroutine at a time, the projector's.
type Store interface {
	Reader
	// Apply writes a batch in one transaction. If the store does not stand where the batch begins it changes nothing and returns
	// a *PositionError.
	Apply(ctx context.Context, batch *Batch) error
	// States returns the latest operations of these names, each in its own partition, without requests; names that the tables
	// do not have are left out.
	States(ctx context.Context, refs []Ref) ([]Row, error)
	// Dump shows everything, as it was at one moment, to v.
	Dump(ctx context.Context, v Visitor) error
	// Reset forgets everything, positions included, so that the projector begins again.
	Reset(ctx context.Context) error
	Close() error
}

// Visitor is shown the tables: first all positions by partition, then operations by key, rejections by partition and place,
// counts (those of every organization and the totals) by organization, type, status and wait. Any function may be nil. What
// it is given it must not keep.
type Visitor struct {
	Positions func([]Position) error
	// Operation is given the request in row.Request.Raw and the history as AppendHistory writes it.
	Operation func(row *Row, history []byte) error
	Rejection func(*Rejection) error
	Count     func(Count) error
	// Fault is told of what contradicts itself within the store: a column that searches go by and the state beside it.
	Fault func(Key, string) error
}

// Change is what a batch does to one operation.
type Change struct {
	Row     *Row
	New     bool             // the operation begins in this batch
	Was     operation.Status // before this batch; absent for one that is New
	Written bool             // the row changed; else only the history grew
	Request []byte           // the request, when it is new or was corrected; nil when the store has it already
	First   operation.Place  // of the first event of this batch
	History []byte           // the events of this batch, as AppendHistory writes them
}

// Step moves one partition's position.
type Step struct {
	From int64 // where the store must stand; 0 for a partition that it does not know
	To   Position
}

// Batch is what a store writes in one transaction.
type Batch struct {
	Changes    []Change // one for each operation, by no particular order
	Deleted    []Key    // operations to remove with their history; not among Changes
	Rejections []Rejection
	Counts     []Count // differences, per organization; the store adds them to the totals too
	Steps      []Step
}

// PositionError says that a batch does not begin where the store stands: it was applied before, somebody else writes to the same
// tables, or, if they stand before it, an older copy of them has taken their place. Read the positions again and go on from there.
type PositionError struct {
	Partition  int32
	Have, Want int64
}

func (e *PositionError) Error() string {
	return fmt.Sprintf("expected the tables to stand at offset %d of partition %d, but they stand at %d; read the positions and project from there", e.Want, e.Partition, e.Have)
}

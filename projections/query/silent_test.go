package query_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/query"
)

// silent is a store whose database has stopped to answer in the middle: every read waits until its time is up.
type silent struct{ projections.Store }

func wait(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func (silent) Get(ctx context.Context, _ string, _ operation.ID) (projections.Row, error) {
	return projections.Row{}, wait(ctx)
}

func (silent) List(ctx context.Context, _ projections.Filter, _ projections.Order, _ string, _ int) (projections.Page, error) {
	return projections.Page{}, wait(ctx)
}

func (silent) History(ctx context.Context, _ string, _ operation.ID, _ operation.Place, _ int) ([]projections.Entry, error) {
	return nil, wait(ctx)
}

func (silent) Counts(ctx context.Context, _ projections.CountFilter) ([]projections.Count, error) {
	return nil, wait(ctx)
}

// TestReadsOfASilentDatabase: the positions were known a moment ago, and then nothing comes any more. That is the database's fault and
// not the API's, and the caller may come again.
func TestReadsOfASilentDatabase(t *testing.T) {
	for _, path := range []string{
		"/v1/operations", "/v1/organizations/acme/operations/a", "/v1/organizations/acme/operations/a/history", "/v1/counts",
	} {
		synctest.Test(t, func(t *testing.T) {
			q := query.New(query.Config{Store: silent{}, Progress: newLevel(), Feed: query.NewFeed()})
			answer := httptest.NewRecorder()
			api.Handler(slog.New(slog.DiscardHandler), q.Routes()...).ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
			if answer.Code != http.StatusServiceUnavailable || answer.Header().Get("Retry-After") == "" || !strings.Contains(answer.Body.String(), string(api.ReadSideUnavailable)) {
				t.Errorf("%s: expected %d %s with Retry-After, but got %d %s", path, http.StatusServiceUnavailable, api.ReadSideUnavailable, answer.Code, answer.Body)
			}
		})
	}
}

package api_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/internal/api/apitest"
)

func TestProcessKeepsTheContract(t *testing.T) {
	contract := apitest.Load(t, "process")
	var serves bool
	var lacks error
	process := api.Process{
		Status: func(context.Context) api.Status {
			return api.Status{Version: "1.2.3", Roles: []string{"api"}, Ready: true, AsOf: "0-1", Details: map[string]any{"partitions": 4}}
		},
		Serves:   func(context.Context) (bool, error) { return serves || lacks == nil, lacks },
		AsyncAPI: []byte("asyncapi: 3.0.0\n"),
		Schemas: map[string][]byte{
			"parts.json": []byte(`{"type":"object"}`), "requests/opstream.operation.requested.v1.json": []byte(`{"type":"object"}`),
		},
	}
	contract.Routes(t, process.Routes())
	h := contract.Handler(t, process.Routes())
	bare := contract.Handler(t, api.Process{Status: process.Status, Serves: process.Serves}.Routes())

	for _, c := range []struct {
		handler http.Handler
		path    string
		status  int
	}{
		{h, "/v1/status", 200},
		{h, "/openapi.yaml", 200},
		{h, "/openapi.json", 200},
		{h, "/asyncapi.yaml", 200},
		{bare, "/asyncapi.yaml", 404},
		{h, "/schemas/parts.json", 200},
		{h, "/schemas/requests/opstream.operation.requested.v1.json", 200},
		{h, "/schemas/requests/..%2Fparts.json", 404},
		{h, "/schemas/..%2F..%2Fetc%2Fpasswd", 404},
		{h, "/problems", 200},
		{h, "/problems/key_reused", 200},
		{h, "/problems/nothing", 404},
		{h, "/healthz", 200},
		{h, "/readyz", 200},
	} {
		if got := apitest.Do(t, c.handler, http.MethodGet, c.path, ""); got.Status != c.status {
			t.Errorf("%s: expected %d, but got %d %s", c.path, c.status, got.Status, got.Body)
		}
	}
	lacks = errors.New("partition 3 is being recovered")
	got := apitest.Do(t, h, http.MethodGet, "/readyz", "")
	if p := got.Problem(t); got.Status != 503 || p.Code != api.NotServing || !strings.Contains(p.Detail, "partition 3") {
		t.Errorf("expected 503 with the reason, but got %d %s", got.Status, got.Body)
	}
	serves = true
	if got := apitest.Do(t, h, http.MethodGet, "/readyz", ""); got.Status != 200 || !strings.Contains(string(got.Body), "partition 3") {
		t.Errorf("expected 200 with what it lacks, but got %d %s", got.Status, got.Body)
	}
	contract.Covered(t)
}

// What a type URI of a problem names can be read, whatever the code.
func TestEveryProblemIsExplained(t *testing.T) {
	h := apitest.Load(t, "process").Handler(t, api.Process{}.Routes())
	for _, code := range api.Codes() {
		p := api.NewProblem(code, "")
		if got := apitest.Do(t, h, http.MethodGet, p.Type, ""); got.Status != 200 {
			t.Errorf("%s: expected 200, but got %d", p.Type, got.Status)
		}
	}
}

package api_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/internal/api/apitest"
	"github.com/opstream/opstream/schemas"
)

var update = flag.Bool("update", false, "write openapi.json from openapi.yaml")

// The JSON form is served as it is, so that the product needs no YAML.
func TestDocumentAsJSONIsCurrent(t *testing.T) {
	var value any
	if err := yaml.Unmarshal(api.OpenAPI, &value); err != nil {
		t.Fatalf("expected openapi.yaml to be YAML, but: %v", err)
	}
	want, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *update {
		if err := os.WriteFile("openapi.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(want, api.OpenAPIJSON) {
		t.Fatal("expected openapi.json to be openapi.yaml as JSON, but it differs; run go test ./internal/api -run JSONIsCurrent -update")
	}
}

func TestTheDocumentIsSound(t *testing.T) { apitest.Load(t, "process").Sound(t) }

// What the document says of a parameter's length is what the service takes, so that callers who keep to it are not refused.
func TestLengthsOfParameters(t *testing.T) {
	var document struct {
		Components struct {
			Parameters map[string]struct {
				Schema struct {
					MaxLength int `json:"maxLength"`
				} `json:"schema"`
			} `json:"parameters"`
		} `json:"components"`
	}
	if err := json.Unmarshal(api.OpenAPIJSON, &document); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{
		"PartitionKey": schemas.MaxText, "DependencyToken": schemas.MaxText, "By": schemas.MaxText, "Reason": schemas.MaxReason,
		"PathOrganization": schemas.MaxOrganization, "PathId": schemas.MaxID, "IdempotencyKey": schemas.MaxID,
		"Organization": 0, "Token": 0, "CorrelationId": 0, "EventId": 0, // of what nobody can have there is nothing
	} {
		if got := document.Components.Parameters[name].Schema.MaxLength; got != want {
			t.Errorf("%s: expected maxLength %d (0 for none), but got %d", name, want, got)
		}
	}
}

// Every operation has one tag, and there is somebody who serves it and proves that (see package apitest).
func TestEveryOperationHasAnOwner(t *testing.T) {
	var document struct {
		Paths map[string]map[string]struct {
			OperationID string   `json:"operationId"`
			Tags        []string `json:"tags"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(api.OpenAPIJSON, &document); err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for path, methods := range document.Paths {
		for method, op := range methods {
			if len(op.Tags) != 1 || op.Tags[0] != "command" && op.Tags[0] != "query" && op.Tags[0] != "process" {
				t.Errorf("%s %s: expected one of the tags command, query and process, but got %q", method, path, op.Tags)
			}
			if op.OperationID == "" || ids[op.OperationID] {
				t.Errorf("%s %s: expected an operationId of its own, but got %q", method, path, op.OperationID)
			}
			ids[op.OperationID] = true
		}
	}
}

package api

import _ "embed" // the document is compiled in

// OpenAPI is the contract, as it was written.
//
//go:embed openapi.yaml
var OpenAPI []byte

// OpenAPIJSON is the contract as JSON, made from openapi.yaml by the test of this package with -update.
//
//go:embed openapi.json
var OpenAPIJSON []byte

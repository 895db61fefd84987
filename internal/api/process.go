package api

import (
	"context"
	"net/http"
	"strings"
)

// Process is what a process tells of itself over HTTP.
type Process struct {
	// Status tells roles, lag and versions.
	Status func(ctx context.Context) Status
	// Serves says whether requests may be sent to the process, and why it can not do all of its work, or nil.
	Serves func(ctx context.Context) (bool, error)
	// AsyncAPI describes the topics; may be nil.
	AsyncAPI []byte
	// Schemas holds the JSON Schemas of the messages by name, <topic>/<type>.json; may be nil.
	Schemas map[string][]byte
}

// Routes returns the routes with the tag process.
func (p Process) Routes() []Route {
	get := func(path string, handle func(http.ResponseWriter, *http.Request) error) Route {
		return Route{Method: http.MethodGet, Path: path, Handle: handle}
	}
	return []Route{
		get("/v1/status", func(w http.ResponseWriter, r *http.Request) error {
			return WriteJSON(w, http.StatusOK, p.Status(r.Context()))
		}),
		get("/openapi.yaml", document("application/yaml", OpenAPI)),
		get("/openapi.json", document("application/json", OpenAPIJSON)),
		get("/asyncapi.yaml", document("application/yaml", p.AsyncAPI)),
		get("/schemas/{name}", func(w http.ResponseWriter, r *http.Request) error {
			return document("application/schema+json", p.Schemas[r.PathValue("name")])(w, r)
		}),
		get("/schemas/{topic}/{name}", func(w http.ResponseWriter, r *http.Request) error {
			return document("application/schema+json", p.Schemas[r.PathValue("topic")+"/"+r.PathValue("name")])(w, r)
		}),
		get("/problems", func(w http.ResponseWriter, _ *http.Request) error {
			list := make([]explanation, len(kinds))
			for i, k := range kinds {
				list[i] = explain(k)
			}
			return WriteJSON(w, http.StatusOK, list)
		}),
		get("/problems/{code}", func(w http.ResponseWriter, r *http.Request) error {
			k, ok := KindOf(Code(r.PathValue("code")))
			if !ok {
				return NewProblem(NoSuchProblem, "there is no problem of the name %q", clip(r.PathValue("code")))
			}
			return WriteJSON(w, http.StatusOK, explain(k))
		}),
		get("/healthz", document("text/plain; charset=utf-8", []byte("ok\n"))),
		get("/readyz", func(w http.ResponseWriter, r *http.Request) error {
			serves, err := p.Serves(r.Context())
			switch {
			case err == nil:
				return document("text/plain; charset=utf-8", []byte("ready\n"))(w, r)
			case serves:
				return document("text/plain; charset=utf-8", []byte("ready for what works without this: "+err.Error()+"\n"))(w, r)
			}
			return NewProblem(NotServing, "%s", err)
		}),
	}
}

func document(mediaType string, body []byte) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		if len(body) == 0 {
			return NewProblem(NoSuchPath, "this process has no document at %q", clip(strings.TrimSpace(r.URL.Path)))
		}
		w.Header().Set("Content-Type", mediaType)
		_, _ = w.Write(body) // a client that has gone needs no answer
		return nil
	}
}

type explanation struct {
	Type      string `json:"type"`
	Code      Code   `json:"code"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Fault     Fault  `json:"fault"`
	Retryable bool   `json:"retryable"`
	Next      string `json:"next"`
}

func explain(k Kind) explanation {
	return explanation{"/problems/" + string(k.Code), k.Code, k.Title, k.Status, k.Fault, k.Retryable, k.Next}
}

// Package dynamic has the types of a client that Helm's engine names, in the place of the package of Kubernetes.
package dynamic

import (
	"context"
	"errors"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
)

// ResourceInterface is what the engine's lookup reads with.
type ResourceInterface interface {
	Get(ctx context.Context, name string, options metav1.GetOptions, subresources ...string) (*unstructured.Unstructured, error)
	List(ctx context.Context, options metav1.ListOptions) (*unstructured.UnstructuredList, error)
}

// NamespaceableResourceInterface is the same, of one namespace or of all.
type NamespaceableResourceInterface interface {
	Namespace(string) ResourceInterface
	ResourceInterface
}

// Client is never made.
type Client struct{}

// NewForConfig always fails.
func NewForConfig(*rest.Config) (*Client, error) { return nil, errors.ErrUnsupported }

// Resource has no receiver to be called on.
func (*Client) Resource(schema.GroupVersionResource) NamespaceableResourceInterface { return nil }

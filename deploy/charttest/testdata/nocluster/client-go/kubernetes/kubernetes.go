// Package kubernetes is imported by Helm for its module's version alone.
package kubernetes

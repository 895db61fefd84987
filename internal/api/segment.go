package api

import (
	"net/url"
	"strings"
)

// Segment writes a name as one part of a path. Dots are encoded where they would mean this folder or the one above.
func Segment(name string) string {
	if name == "." || name == ".." {
		return strings.ReplaceAll(name, ".", "%2E")
	}
	return url.PathEscape(name)
}

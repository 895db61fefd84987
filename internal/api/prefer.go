package api

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// WaitMax bounds what Prefer: wait=N can ask for.
const WaitMax = 60 * time.Second

// PreferredWait returns what the request's Prefer header (RFC 7240) asks for as wait, at most WaitMax. A preference that
// cannot be understood does not count, as the RFC wants it.
func PreferredWait(h http.Header) (time.Duration, bool) {
	for _, line := range h.Values("Prefer") {
		for part := range strings.SplitSeq(line, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			seconds, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(value), `"`), 10, 31)
			if err != nil {
				continue
			}
			return min(time.Duration(seconds)*time.Second, WaitMax), true
		}
	}
	return 0, false
}

// ApplyWait tells the caller that its preference was honoured.
func ApplyWait(w http.ResponseWriter, wait time.Duration) {
	w.Header().Set("Preference-Applied", "wait="+strconv.Itoa(int(wait/time.Second)))
}

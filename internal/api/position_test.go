package api_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opstream/opstream/internal/api"
)

func TestPositions(t *testing.T) {
	for text, want := range map[string]string{
		"0-0": "0-0", "3-1042": "3-1042", "2-5,1-7": "1-7,2-5", "1-7,1-9,1-8": "1-9", "0-9223372036854775807": "0-9223372036854775807",
	} {
		if got, err := api.ParsePositions(text); err != nil || got.String() != want {
			t.Errorf("%s: expected %s, but got %s, %v", text, want, got, err)
		}
	}
	for _, text := range []string{
		"", "-", "1", "1-", "-1", "1-2-3", "1--2", "+1-2", "1-+2", "01-2", "1-02", " 1-2", "1-2 ", "a-b", "1-2,", "1,2", "２-３",
		"2147483648-1", "1-9223372036854775808", strings.Repeat("1-1,", 5000), strings.Repeat("9", 10<<10),
	} {
		if got, err := api.ParsePositions(text); err == nil {
			t.Errorf("%.40q: expected an error, but got %s", text, got)
		} else if len(err.Error()) > 400 {
			t.Errorf("%.40q: expected a short error, but got %d bytes", text, len(err.Error()))
		}
	}
}

func TestPreferredWait(t *testing.T) {
	for prefer, want := range map[string]time.Duration{
		"wait=3": 3 * time.Second, "respond-async, wait=10": 10 * time.Second, "WAIT = 4": 4 * time.Second, `wait="5"`: 5 * time.Second,
		"wait=0": 0, "wait=100000": api.WaitMax, "wait=1, wait=2": time.Second,
	} {
		if got, ok := api.PreferredWait(http.Header{"Prefer": {prefer}}); !ok || got != want {
			t.Errorf("%s: expected %s, but got %s, %v", prefer, want, got, ok)
		}
	}
	for _, prefer := range []string{"", "wait", "wait=", "wait=x", "wait=-1", "wait=1.5", "waiting=3", "wait=99999999999999999999"} {
		if got, ok := api.PreferredWait(http.Header{"Prefer": {prefer}}); ok {
			t.Errorf("%q: expected no preference, but got %s", prefer, got)
		}
	}
}

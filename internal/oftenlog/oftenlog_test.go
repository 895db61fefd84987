package oftenlog

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestWarnsOfHowOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		w := New(slog.New(slog.NewTextHandler(&out, nil)), "it failed", "topic")
		lines := func() []string {
			defer out.Reset()
			return strings.Split(strings.TrimSpace(out.String()), "\n")
		}
		for range 300 {
			w.Warn("inboxes", slog.String("err", "no"))
			time.Sleep(100 * time.Millisecond)
		}
		got := lines()
		if len(got) != 3 {
			t.Fatalf("expected a line every ten seconds of thirty, but got %q", got)
		}
		if strings.Contains(got[0], "times") || !strings.Contains(got[1], "times=100") || !strings.Contains(got[2], "topic=inboxes err=no times=100") {
			t.Errorf("expected how often it happened since the line before, but got %q", got)
		}
		w.Warn("reports")
		if got := lines(); len(got) != 1 || !strings.Contains(got[0], "topic=reports") {
			t.Errorf("expected a line about another topic, but got %q", got)
		}
		time.Sleep(time.Minute)
		w.Warn("inboxes")
		if got := lines(); len(got) != 1 || !strings.Contains(got[0], "times=100") {
			t.Errorf("expected what was not said before to be told, but got %q", got)
		}
		time.Sleep(time.Minute)
		w.Warn("inboxes")
		if got := lines(); len(got) != 1 || strings.Contains(got[0], "times") {
			t.Errorf("expected nothing to be told twice, but got %q", got)
		}
	})
}

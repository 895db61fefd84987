package query

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/projections"
)

//go:embed page/page.html page/page.css page/page.js
var pageFiles embed.FS

// assets are the page's files under names that change with their content, so that browsers may keep them for ever.
var assets, assetNames = func() (map[string][]byte, map[string]string) {
	byName, names := map[string][]byte{}, map[string]string{}
	for _, file := range []string{"page.css", "page.js"} {
		data := pageFile(file)
		sum := sha256.Sum256(data)
		ext := path.Ext(file)
		name := strings.TrimSuffix(file, ext) + "." + hex.EncodeToString(sum[:6]) + ext
		byName[name], names[file] = data, name
	}
	return byName, names
}()

func pageFile(name string) []byte {
	data, err := pageFiles.ReadFile("page/" + name)
	if err != nil {
		// invariant: the file is compiled in
		panic(err)
	}
	return data
}

var pageTemplate = template.Must(template.New("page.html").Funcs(template.FuncMap{
	"asset":  func(name string) string { return "/assets/" + assetNames[name] },
	"number": number,
	"clock":  func(t time.Time) string { return t.UTC().Format("15:04:05") },
	"full":   func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"link":   operationLink,
}).Parse(string(pageFile("page.html"))))

// asset serves a file of the page.
func asset(w http.ResponseWriter, r *http.Request) error {
	data, ok := assets[r.PathValue("name")]
	if !ok {
		return api.NewProblem(api.NoSuchPath, "the page has no file %q; load the page again", shorten(r.PathValue("name")))
	}
	h := w.Header()
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Content-Type", map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}[path.Ext(r.PathValue("name"))])
	_, _ = w.Write(data) // a client that has gone needs no answer
	return nil
}

// operationLink is the path of an operation in the API; any character of its name is kept.
func operationLink(org, id string) string {
	return "/v1/organizations/" + api.Segment(org) + "/operations/" + api.Segment(id)
}

// number groups digits by thousands, so that large numbers can be read.
func number(n int64) string {
	digits := strconv.FormatInt(n, 10)
	var b strings.Builder
	for i, c := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteString("\u202f") // narrow no-break space
		}
		b.WriteRune(c)
	}
	return b.String()
}

// span writes a duration for people.
func span(d time.Duration) string {
	if d < time.Second {
		return strconv.FormatInt(max(0, d.Milliseconds()), 10) + " ms"
	}
	return d.Round(time.Second).String()
}

// view is what the page shows.
type view struct {
	Status api.Status
	Error  string
	Lag    string
	Behind bool
	At     time.Time
	Total  int64
	Tiles  []tile
	States []bar
	Waits  []bar
	Types  []typeRow
	Hidden int // types that are not shown
	Newest []item
}

// tile is a number that matters by itself.
type tile struct {
	Label, Hint, Class, Link string
	N                        int64
}

// bar is a number and its share, drawn beside it.
type bar struct {
	Label, Hint, Class, Link string
	N                        int64
	Width                    int // of 1000
}

type typeRow struct {
	Name  string
	Code  int
	Link  string
	N     int64
	Open  int64
	Fail  int64
	Parts []part
}

// part is a piece of a stacked bar.
type part struct {
	X, Width int // of 1000
	Class    string
	Label    string
}

type item struct {
	api.Operation
	Class, Shown, Reason string
}

// The page shows at most so much.
const (
	typesShown  = 12
	newestShown = 20
	pageTime    = 3 * time.Second
	behindFrom  = 2 * time.Second // lag that is worth a warning
)

// page answers with the page. Without numbers it is still a page, with 503, so that people see what is wrong.
func (q *Query) page(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), pageTime)
	defer cancel()
	v := view{Status: q.Status(ctx), At: time.Now()}
	status := http.StatusOK
	if err := q.fill(ctx, &v); err != nil {
		if r.Context().Err() != nil {
			return r.Context().Err()
		}
		v.Error = "The tables cannot be read, so there are no numbers. Operations are accepted and run as ever."
		status = http.StatusServiceUnavailable
	}
	var body bytes.Buffer
	if err := pageTemplate.Execute(&body, &v); err != nil {
		return fmt.Errorf("render the page: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes()) // a client that has gone needs no answer
	return nil
}

func (q *Query) fill(ctx context.Context, v *view) error {
	_, lag, err := q.Progress.AsOf(ctx)
	if err != nil {
		return err
	}
	v.Lag, v.Behind = span(lag), lag >= behindFrom
	counts, err := q.sharedCounts(ctx, "", v.At.Add(-countsEvery/2))
	if err != nil {
		return err
	}
	newest, err := q.Store.List(ctx, projections.Filter{}, projections.NewestFirst, "", newestShown)
	if err != nil {
		return err
	}
	v.Total = counts.counts.Total
	v.count(counts.counts)
	for i := range newest.Rows {
		o := show(&newest.Rows[i], false)
		reason := o.Why
		if reason == "" && o.Failure != nil && o.Status != operation.StatusRunning.String() {
			reason = message(newest.Rows[i].Failure)
		}
		v.Newest = append(v.Newest, item{o, class(o.Status), label(o.Standing), reason})
	}
	return nil
}

// class is the style of a status.
func class(status string) string {
	s, _ := operation.ParseStatus(status)
	switch s {
	case operation.StatusReady:
		return "ready"
	case operation.StatusWaiting:
		return "waiting"
	case operation.StatusSucceeded:
		return "good"
	case operation.StatusFailed:
		return "bad"
	case operation.StatusCanceled:
		return "off"
	default:
		return "run"
	}
}

// label names a status as people know it. The original calls what was handed out and what runs by one name.
func label(s api.Standing) string {
	switch s.Status {
	case operation.StatusReady.String():
		return "Ready"
	case operation.StatusDispatched.String():
		return "Handed out"
	case operation.StatusRunning.String():
		return "In progress"
	default:
		return s.StatusReason
	}
}

func (v *view) count(c api.Counts) {
	by := map[string]int64{}
	for _, s := range c.ByStatus {
		by[s.Status] = s.Count
		v.States = append(v.States, bar{
			Label: label(s.Standing), Hint: fmt.Sprintf("%s %d / %d", s.State, s.StateCode, s.StatusCode), Class: class(s.Status),
			Link: "/v1/operations?status=" + s.Status, N: s.Count, Width: share(s.Count, c.Total),
		})
	}
	running := by["dispatched"] + by["running"] + by["pausing"] + by["canceling"]
	v.Tiles = []tile{
		{"Running", "handed to a worker", "run", "/v1/operations?status=dispatched,running,pausing,canceling", running},
		{"Ready", "for a worker with room", "ready", "/v1/operations?status=ready", by["ready"]},
		{"Waiting", "for a time, a turn or a person", "waiting", "/v1/operations?status=waiting", by["waiting"]},
		{"Succeeded", "ended well", "good", "/v1/operations?status=succeeded", by["succeeded"]},
		{"Failed", "can be retried", "bad", "/v1/operations?status=failed", by["failed"]},
	}
	var waiting int64
	for _, w := range c.ByWait {
		waiting += w.Count
	}
	for _, w := range c.ByWait {
		v.Waits = append(v.Waits, bar{
			Label: waitLabels[w.Wait], Hint: w.Wait, Class: "waiting", Link: "/v1/operations?wait=" + url.QueryEscape(w.Wait),
			N: w.Count, Width: share(w.Count, waiting),
		})
	}
	var largest int64
	for _, t := range c.ByType {
		largest = max(largest, t.Count)
	}
	for i, t := range c.ByType {
		if i == typesShown {
			v.Hidden = len(c.ByType) - typesShown
			break
		}
		row := typeRow{Name: t.Type, Code: t.TypeCode, Link: "/v1/operations?type=" + url.QueryEscape(t.Type), N: t.Count, Fail: t.ByStatus["failed"]}
		row.Open = t.Count - t.ByStatus["succeeded"] - t.ByStatus["failed"] - t.ByStatus["canceled"]
		var before int64
		for _, s := range c.ByStatus {
			n := t.ByStatus[s.Status]
			if n == 0 {
				continue
			}
			x := share(before, largest)
			before += n
			row.Parts = append(row.Parts, part{x, max(2, share(before, largest)-x), class(s.Status), label(s.Standing) + " " + number(n)})
		}
		v.Types = append(v.Types, row)
	}
}

var waitLabels = map[string]string{
	"paused": "Paused, or for a person to mend it", "dependency": "For an operation of the same token", "event": "For an event",
	"postponed": "Until a time", "retry": "For the next attempt", "resources": "For a worker with room",
	"recurrence": "For the next occurrence", "limit": "For room under a limit", "service-paused": "The service is paused",
}

// share returns n of total in thousandths, at least 2 for what is not nothing.
func share(n, total int64) int {
	if n <= 0 || total <= 0 {
		return 0
	}
	return max(2, int(float64(n)/float64(total)*1000))
}

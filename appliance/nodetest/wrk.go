package nodetest

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// Load is requests for a page, without pause.
type Load struct {
	URL         string
	Connections int // at a time
	// Closed has each request on a connection of its own, instead of all on those
	// that are there.
	Closed bool
	// Watched reports on each connection, which costs requests per second.
	Watched bool
}

// Wrk is wrk, Debian's load generator, while it runs.
type Wrk struct {
	cmd     *exec.Cmd
	out     bytes.Buffer
	ended   bool
	watched int // connections
}

//go:embed answers.lua
var answers []byte

// answersScript is a file of one load's own: another may just be read.
func (n *Node) answersScript(tb testing.TB) (path string) {
	tb.Helper()
	f, err := os.CreateTemp(n.Dir, "answers-*.lua")
	if err == nil {
		_, err = f.Write(answers)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		tb.Fatal(err)
	}
	return f.Name()
}

// StartWrk starts wrk. do runs a function on a thread that is where it is to run,
// like [Node.Do]. It ends with the test, if Stop did not end it.
func (n *Node) StartWrk(tb testing.TB, do func(func() error) error, load Load) *Wrk {
	tb.Helper()
	args := []string{"-d1h", "--timeout", "20s", "--latency", "-c" + strconv.Itoa(load.Connections)}
	if load.Closed {
		args = append(args, "-H", "Connection: close")
	}
	w, threads := new(Wrk), 1
	if load.Watched {
		threads, w.watched = load.Connections, load.Connections
		args = append(args, "-s", n.answersScript(tb))
	}
	args = append(args, "-t"+strconv.Itoa(threads), load.URL)
	w.cmd = n.Command("wrk", args...)
	w.cmd.Stdout, w.cmd.Stderr = &w.out, &w.out
	if err := do(w.cmd.Start); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if !w.ended {
			_ = w.cmd.Process.Kill()
			_ = w.cmd.Wait()
		}
	})
	return w
}

// Stop ends wrk and returns what it found.
func (w *Wrk) Stop(tb testing.TB) WrkReport {
	tb.Helper()
	_ = w.cmd.Process.Signal(os.Interrupt) // then it reports
	w.ended = true
	if err := w.cmd.Wait(); err != nil {
		tb.Fatalf("wrk: %v\n%s", err, w.out.String())
	}
	r, err := ParseWrk(w.out.String())
	if err != nil {
		tb.Fatal(err)
	}
	if len(r.Connections) != w.watched {
		tb.Fatalf("wrk does not tell of %d connections:\n%s", w.watched, w.out.String())
	}
	return r
}

// WrkReport is what wrk found.
type WrkReport struct {
	Requests int // that were answered
	// Rate is requests a second.
	Rate float64
	// Median and P99 are of the answers' times.
	Median, P99 time.Duration
	// What failed: connections that were not made, were cut while an answer or a
	// question was on its way, and answers that were not of 200 to 399.
	Connect, Read, Write, Status int
	// Connections are told of a watched load.
	Connections []Connection
}

// Connection is one of those of a load; with [Load.Closed], one after the other.
type Connection struct {
	Answers int
	// Gap is the longest time without an answer, Silent that until the end.
	Gap, Silent time.Duration
}

// Gap is the longest time that a connection was without an answer.
func (r WrkReport) Gap() (gap time.Duration) {
	for _, c := range r.Connections {
		gap = max(gap, c.Gap)
	}
	return gap
}

// Silent is how many connections had no answer for so long when the load ended.
func (r WrkReport) Silent(since time.Duration) (count int) {
	for _, c := range r.Connections {
		if c.Silent >= since {
			count++
		}
	}
	return count
}

// Failures is how much failed.
func (r WrkReport) Failures() int { return r.Connect + r.Read + r.Write + r.Status }

func (r WrkReport) String() string {
	return fmt.Sprintf("%d requests (%.0f/s, median %v, p99 %v, gap %v), failed: connect %d, read %d, write %d, status %d",
		r.Requests, r.Rate, r.Median, r.P99, r.Gap(), r.Connect, r.Read, r.Write, r.Status)
}

var (
	wrkRequests   = regexp.MustCompile(`(?m)^ +(\d+) requests in `)
	wrkErrors     = regexp.MustCompile(`Socket errors: connect (\d+), read (\d+), write (\d+), timeout \d+`)
	wrkStatus     = regexp.MustCompile(`Non-2xx or 3xx responses: (\d+)`)
	wrkRate       = regexp.MustCompile(`Requests/sec: +([0-9.]+)`)
	wrkMedian     = regexp.MustCompile(`(?m)^ +50% +([0-9.]+[a-z]+)$`)
	wrkP99        = regexp.MustCompile(`(?m)^ +99% +([0-9.]+[a-z]+)$`)
	wrkConnection = regexp.MustCompile(`(?m)^connection: (\d+) answers, gap ([0-9.]+s), silent ([0-9.]+s)$`)
)

// ParseWrk reads wrk's report. Lines about failures are there only if there are any.
func ParseWrk(text string) (r WrkReport, err error) {
	if m := wrkRequests.FindStringSubmatch(text); m == nil {
		return r, fmt.Errorf("read wrk's report: no number of requests in %q", text)
	}
	counts(wrkRequests, text, &r.Requests)
	counts(wrkErrors, text, &r.Connect, &r.Read, &r.Write)
	counts(wrkStatus, text, &r.Status)
	if m := wrkRate.FindStringSubmatch(text); m != nil {
		r.Rate, _ = strconv.ParseFloat(m[1], 64)
	}
	times(wrkMedian.FindStringSubmatch(text), &r.Median)
	times(wrkP99.FindStringSubmatch(text), &r.P99)
	for _, m := range wrkConnection.FindAllStringSubmatch(text, -1) {
		var c Connection
		c.Answers, _ = strconv.Atoi(m[1])
		times(m[1:], &c.Gap, &c.Silent)
		r.Connections = append(r.Connections, c)
	}
	return r, nil
}

// counts reads the numbers in the line that matches, if there is one.
func counts(line *regexp.Regexp, text string, into ...*int) {
	if m := line.FindStringSubmatch(text); m != nil {
		for i := range into {
			*into[i], _ = strconv.Atoi(m[i+1])
		}
	}
}

// times reads the times behind the first of what was found, if anything was.
func times(found []string, into ...*time.Duration) {
	if found == nil {
		return
	}
	for i := range into {
		*into[i], _ = time.ParseDuration(found[i+1])
	}
}

package nodetest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// Wrk is wrk, Debian's load generator, while it runs: connections that each ask
// for a page again and again.
type Wrk struct {
	cmd   *exec.Cmd
	out   bytes.Buffer
	ended bool
}

// StartWrk starts wrk with arguments and a URL at the end. do runs a function on
// a thread that is where wrk is to run, like [Node.Do]. It ends with the test, if
// Stop did not end it.
func (n *Node) StartWrk(tb testing.TB, do func(func() error) error, args ...string) *Wrk {
	tb.Helper()
	w := &Wrk{cmd: n.Command("wrk", append([]string{"-t1", "-d1h", "--timeout", "20s", "--latency"}, args...)...)}
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
	// question was on its way, answers that took too long, and those that were
	// not of 200 to 399.
	Connect, Read, Write, Timeout, Status int
}

// Failures is how much failed.
func (r WrkReport) Failures() int { return r.Connect + r.Read + r.Write + r.Timeout + r.Status }

func (r WrkReport) String() string {
	return fmt.Sprintf("%d requests (%.0f/s, median %v, p99 %v), failed: connect %d, read %d, write %d, timeout %d, status %d",
		r.Requests, r.Rate, r.Median, r.P99, r.Connect, r.Read, r.Write, r.Timeout, r.Status)
}

// ParseWrk reads wrk's report. Lines about failures are there only if there are any.
func ParseWrk(text string) (r WrkReport, err error) {
	find := func(pattern string, into ...*int) bool {
		m := regexp.MustCompile(pattern).FindStringSubmatch(text)
		for i := range m[min(1, len(m)):] {
			*into[i], _ = strconv.Atoi(m[i+1])
		}
		return m != nil
	}
	if !find(`(?m)^ +(\d+) requests in `, &r.Requests) {
		return r, fmt.Errorf("read wrk's report: no number of requests in %q", text)
	}
	find(`Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)`, &r.Connect, &r.Read, &r.Write, &r.Timeout)
	find(`Non-2xx or 3xx responses: (\d+)`, &r.Status)
	if m := regexp.MustCompile(`Requests/sec: +([0-9.]+)`).FindStringSubmatch(text); m != nil {
		r.Rate, _ = strconv.ParseFloat(m[1], 64)
	}
	for percentile, into := range map[string]*time.Duration{"50": &r.Median, "99": &r.P99} {
		if m := regexp.MustCompile(`(?m)^ +` + percentile + `% +([0-9.]+[a-z]+)$`).FindStringSubmatch(text); m != nil {
			*into, _ = time.ParseDuration(m[1])
		}
	}
	return r, nil
}

package nodetest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// answerTime is how long an answer may take before an [asker] gives it up.
const answerTime = 2 * time.Second

var clientLine = regexp.MustCompile(`(?m)^client: (\S+)$`)

// asks takes -in CONTAINER off the arguments, and is an HTTP client there.
func asks(ts *testscript.TestScript, args []string) (*http.Client, []string) {
	if len(args) > 2 && args[0] == "-in" {
		return node(ts).Container(args[1]), args[2:]
	}
	return node(ts).Client(), args
}

func get(ts *testscript.TestScript, args []string) (string, error) {
	client, args := asks(ts, args)
	if len(args) != 1 {
		ts.Fatalf("usage: get [-in CONTAINER] URL")
	}
	return fetch(context.Background(), client, args[0])
}

func cmdGet(ts *testscript.TestScript, neg bool, args []string) {
	out, err := get(ts, args)
	fmt.Fprint(ts.Stdout(), out)
	if err != nil {
		fmt.Fprintln(ts.Stderr(), err)
	}
	if (err != nil) != neg {
		ts.Fatalf("get %s: %v", strings.Join(args, " "), err)
	}
}

// udp is what answers a packet.
func udp(ts *testscript.TestScript, args []string) (string, error) {
	if len(args) != 2 {
		ts.Fatalf("usage: udp ADDRESS TEXT")
	}
	answer := make([]byte, 2048)
	var n int
	err := node(ts).Do(func() error {
		c, err := net.Dial("udp", args[0])
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err = c.Write([]byte(args[1])); err != nil {
			return err
		}
		if err = c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		n, err = c.Read(answer)
		return err
	})
	return string(answer[:n]) + "\n", err
}

func cmdUDP(ts *testscript.TestScript, _ bool, args []string) {
	answer, err := udp(ts, args)
	ts.Check(err)
	fmt.Fprint(ts.Stdout(), answer)
}

// sees is what those answer who are asked from the very address that they say
// they are asked from.
func sees(ts *testscript.TestScript, args []string) (string, error) {
	client, urls := asks(ts, args)
	var said strings.Builder
	for _, url := range urls {
		var own string
		trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { own = i.Conn.LocalAddr().String() }}
		answer, err := fetch(httptrace.WithClientTrace(context.Background(), trace), client, url)
		if err != nil {
			return said.String(), fmt.Errorf("%s: %w", url, err)
		}
		said.WriteString(answer)
		if m := clientLine.FindStringSubmatch(answer); m == nil || m[1] != own {
			return said.String(), fmt.Errorf("%s was asked from %s", url, own)
		}
	}
	return said.String(), nil
}

func cmdSees(ts *testscript.TestScript, neg bool, args []string) {
	said, err := sees(ts, args)
	fmt.Fprint(ts.Stdout(), said)
	if (err != nil) != neg {
		ts.Fatalf("sees %s: %v", strings.Join(args, " "), err)
	}
}

// fetch is the body of what answers a GET with 200.
func fetch(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s", resp.Status)
	}
	return string(body), err
}

// asker sends one request after the other, each by a connection of its own.
type asker struct {
	end  context.CancelFunc
	done sync.WaitGroup

	// Read when done.
	answers, lost int
	gap           time.Duration // the longest without an answer
	last          error
}

func (a *asker) run(ctx context.Context, client *http.Client, url string) {
	heard := time.Now()
	for ctx.Err() == nil {
		asking, cancel := context.WithTimeout(ctx, answerTime)
		_, err := fetch(asking, client, url)
		cancel()
		if ctx.Err() != nil {
			break // its end is no answer's fault
		}
		a.gap = max(a.gap, time.Since(heard))
		if err != nil {
			a.lost, a.last = a.lost+1, err
		} else {
			a.answers, heard = a.answers+1, time.Now()
		}
		time.Sleep(5 * time.Millisecond)
	}
	a.gap = max(a.gap, time.Since(heard))
}

func cmdAsking(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: asking NAME [-in CONTAINER] URL")
	}
	s := onStage(ts)
	client, urls := asks(ts, args[1:])
	ctx, cancel := context.WithCancel(context.Background())
	a := &asker{end: cancel}
	// A thread of the asker's in a machine is one that its end would wait for.
	ts.Defer(func() { cancel(); a.done.Wait() })
	a.done.Go(func() { a.run(ctx, client, urls[0]) })
	s.askers[args[0]] = a
}

func cmdAsked(ts *testscript.TestScript, _ bool, args []string) {
	a := onStage(ts).askers[args[0]]
	if a == nil {
		ts.Fatalf("nobody is asking as %s", args[0])
	}
	a.end()
	a.done.Wait()
	fmt.Fprintf(ts.Stdout(), "answers %d lost %d gap %v last %v\n", a.answers, a.lost, a.gap.Round(time.Millisecond), a.last)
	if a.answers == 0 {
		ts.Fatalf("%s had no answer: %v", args[0], a.last)
	}
	if len(args) > 1 {
		most, err := strconv.Atoi(args[1])
		ts.Check(err)
		if a.lost > most {
			ts.Fatalf("%s lost %d of %d answers: %v", args[0], a.lost, a.answers+a.lost, a.last)
		}
	}
	if len(args) > 2 {
		longest, err := time.ParseDuration(args[2])
		ts.Check(err)
		if a.gap > longest {
			ts.Fatalf("%s had no answer for %v: %v", args[0], a.gap, a.last)
		}
	}
}

package engine_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"

	"skep/store/object"
)

// start makes and starts a container.
func (n *node) start(tb testing.TB, name string, tty bool, cmd ...string) *proc {
	tb.Helper()
	req := container.CreateRequest{Config: &container.Config{Image: "base", Cmd: cmd, Tty: tty, OpenStdin: tty}, HostConfig: &container.HostConfig{}}
	if _, err := n.Create(tb.Context(), name, req); err != nil {
		tb.Fatal(err)
	}
	if err := n.Start(tb.Context(), name); err != nil {
		tb.Fatal(err)
	}
	p, err := n.find(name)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// hijack sends a request on a connection of its own and reads the reply's header.
func (n *node) hijack(tb testing.TB, head, body string) (*net.UnixConn, *bufio.Reader, answer) {
	tb.Helper()
	c, err := net.Dial("unix", n.socket)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	if err = c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n", head, len(body))
	if !strings.Contains(head, "plain=1") {
		fmt.Fprint(c, "Connection: Upgrade\r\nUpgrade: tcp\r\n")
	}
	fmt.Fprint(c, "\r\n"+body)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { resp.Body.Close() })
	return c.(*net.UnixConn), r, answer{resp.Status, resp.StatusCode, resp.Header, resp.Body}
}

// answer is what tests read of a reply.
type answer struct {
	Status     string
	StatusCode int
	Header     http.Header
	Body       io.Reader
}

func (n *node) newExec(tb testing.TB, tty bool, cmd ...string) string {
	tb.Helper()
	if _, err := n.find("web"); err != nil {
		n.start(tb, "web", false, "sleep")
	}
	id, err := n.CreateExec(tb.Context(), "web", container.ExecCreateRequest{
		Cmd: cmd, Tty: tty, AttachStdin: true, AttachStdout: true, AttachStderr: true,
	})
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

func TestExecStart_RepliesInTheFormThatTheClientKnows(t *testing.T) {
	tests := []struct {
		name, version, plain string
		tty                  bool
		status, contentType  string
		want                 string
	}{
		{"frames", "/v1.51", "", false, "101 UPGRADED", "application/vnd.docker.multiplexed-stream", "\x01\x00\x00\x00\x00\x00\x00\x03hi\n"},
		{"terminal", "/v1.51", "", true, "101 UPGRADED", "application/vnd.docker.raw-stream", "hi\n"},
		{"old version", "/v1.41", "", false, "101 UPGRADED", "application/vnd.docker.raw-stream", "\x01\x00\x00\x00\x00\x00\x00\x03hi\n"},
		{"no upgrade", "", "?plain=1", false, "200 OK", "application/vnd.docker.raw-stream", "\x01\x00\x00\x00\x00\x00\x00\x03hi\n"},
	}
	n := newNode(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id := n.newExec(t, tt.tty, "echo", "hi")
			_, r, resp := n.hijack(t, "POST "+tt.version+"/exec/"+id+"/start"+tt.plain, `{"Detach":false,"Tty":true}`)
			if resp.Status != tt.status || resp.Header.Get("Content-Type") != tt.contentType {
				t.Errorf("got %s %s, want %s %s", resp.Status, resp.Header.Get("Content-Type"), tt.status, tt.contentType)
			}
			if got, err := io.ReadAll(r); string(got) != tt.want || err != nil {
				t.Errorf("got %q %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestExecStart_EndsInputAtTheClientsHalfClose(t *testing.T) {
	n := newNode(t)
	c, r, _ := n.hijack(t, "POST /exec/"+n.newExec(t, true, "cat")+"/start", "{}")
	if _, err := io.WriteString(c, "all of it"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); string(got) != "all of it" || err != nil {
		t.Errorf("got %q %v", got, err)
	}
}

// What a process did not read must not reset the connection before the client
// has the process's output.
func TestExecStart_DeliversOutputToAClientThatStillSends(t *testing.T) {
	n := newNode(t)
	c, r, _ := n.hijack(t, "POST /exec/"+n.newExec(t, true, "flood")+"/start", "{}")
	go func() {
		for junk := make([]byte, 1<<16); ; {
			if _, err := c.Write(junk); err != nil {
				return
			}
		}
	}()
	if got, err := io.Copy(io.Discard, r); got != 1<<20 || err != nil {
		t.Errorf("got %d bytes and %v, want %d", got, err, 1<<20)
	}
}

func TestExecStart_SurvivesAClientThatHangsUp(t *testing.T) {
	n := newNode(t)
	id := n.newExec(t, false, "flood")
	c, _, _ := n.hijack(t, "POST /exec/"+id+"/start", "{}")
	c.Close()
	p, err := n.exec(id)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.ended:
	case <-time.After(10 * time.Second):
		t.Fatal("process is held up by a client that is gone")
	}
	if e, err := n.InspectExec(t.Context(), id); err != nil || e.ExitCode == nil || *e.ExitCode != 0 {
		t.Errorf("got %+v %v", e, err)
	}
}

func TestStreams_RefuseWithAStatusWhatIsWrongBefore(t *testing.T) {
	n := newNode(t)
	n.start(t, "paused", false, "sleep").state = container.StatePaused
	ran := n.newExec(t, false, "echo")
	_, r, _ := n.hijack(t, "POST /exec/"+ran+"/start", "{}")
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		head, body string
		status     int
		message    string
	}{
		{"POST /exec/nope/start", "{}", 404, "No such exec instance: nope"},
		{"POST /exec/" + ran + "/start", "{}", 409, "Error: Exec command " + ran + " has already run"},
		{"POST /exec/" + n.newExec(t, false, "echo") + "/start", `{"ConsoleSize":[1,2]}`, 400, "console size is only supported when TTY is enabled"},
		{"POST /containers/nope/attach?stream=1", "", 404, "No such container: nope"},
		{"POST /containers/web/attach?stream=1&detachKeys=ctrl-!", "", 400, "Invalid detach keys (ctrl-!) provided: Unknown character: 'ctrl-!'"},
	}
	for _, tt := range tests {
		_, _, resp := n.hijack(t, tt.head, tt.body)
		var e struct{ Message string }
		if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || resp.StatusCode != tt.status || e.Message != tt.message {
			t.Errorf("%s: got %d %q %v, want %d %q", tt.head, resp.StatusCode, e.Message, err, tt.status, tt.message)
		}
	}
}

func TestAttach_ReplaysTheLogFirst(t *testing.T) {
	n := newNode(t)
	<-n.start(t, "done", false, "both").ended
	_, r, _ := n.hijack(t, "POST /containers/done/attach?logs=1&stdout=1&stderr=1", "")
	var stdout, stderr bytes.Buffer
	if _, err := stdcopy.StdCopy(&stdout, &stderr, r); err != nil || stdout.String() != "out\n" || stderr.String() != "err\n" {
		t.Errorf("got %q %q %v", stdout.String(), stderr.String(), err)
	}
}

func TestWait_SendsTheHeaderBeforeTheContainerEnds(t *testing.T) {
	n := newNode(t)
	p := n.start(t, "web", false, "sleep")
	_, _, resp := n.hijack(t, "POST /containers/web/wait?condition=next-exit&plain=1", "")
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	p.cancel()
	var got container.WaitResponse
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || got.StatusCode != 137 {
		t.Errorf("got %+v %v", got, err)
	}
	_, _, resp = n.hijack(t, "POST /containers/web/wait?condition=later&plain=1", "")
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("got %s for an unknown condition", resp.Status)
	}
}

func TestLogs_PutTimeAndDetailsBeforeALineOnce(t *testing.T) {
	n := newNode(t)
	p := n.start(t, "web", false, "sleep")
	at := time.Date(2026, 11, 20, 21, 2, 47, 5, time.FixedZone("", 3600))
	n.mu.Lock()
	p.logs = []object.LogLine{
		{Time: at, Text: []byte("one, ")},
		{Time: at, Text: []byte("error, "), Stderr: true},
		{Time: at.Add(1), Text: []byte("two\n")},
		{Time: at.Add(2), Text: []byte("three\n")},
	}
	n.mu.Unlock()
	get := func(query string) (stdout, stderr string) {
		t.Helper()
		_, _, resp := n.hijack(t, "GET /containers/web/logs?plain=1&"+query, "")
		var out, errs bytes.Buffer
		if _, err := stdcopy.StdCopy(&out, &errs, resp.Body); err != nil {
			t.Error(err)
		}
		return out.String(), errs.String()
	}
	out, errs := get("stdout=1&stderr=true&timestamps=1")
	want := "2026-11-20T20:02:47.000000005Z one, two\n2026-11-20T20:02:47.000000007Z three\n"
	if out != want || errs != "2026-11-20T20:02:47.000000005Z error, " {
		t.Errorf("got %q %q", out, errs)
	}
	if out, errs = get("stdout=1&tail=2"); out != "two\nthree\n" || errs != "" {
		t.Errorf("tail: got %q %q", out, errs)
	}
	if out, _ = get("stdout=1&tail=all&since=0&until=1795208275.5"); !strings.HasPrefix(out, "one") {
		t.Errorf("all: got %q", out)
	}
	for _, query := range []string{"follow=1", "stdout=1&since=yesterday", "stdout=1&until=1.x"} {
		if _, _, resp := n.hijack(t, "GET /containers/web/logs?plain=1&"+query, ""); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: got %s", query, resp.Status)
		}
	}
}

func TestLogs_FollowUntilTheContainerEnds(t *testing.T) {
	n := newNode(t)
	p := n.start(t, "web", true, "sleep")
	_, _, resp := n.hijack(t, "GET /containers/web/logs?plain=1&stdout=1&follow=1", "")
	if got := resp.Header.Get("Content-Type"); got != "application/vnd.docker.raw-stream" {
		t.Errorf("got %s", got)
	}
	fmt.Fprintln(fanOut{n.runtime, p, false}, "live")
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	if line != "live\n" || err != nil {
		t.Errorf("got %q %v while the container runs", line, err)
	}
	p.cancel()
	if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err != nil {
		t.Errorf("got %q %v at the end", rest, err)
	}
}

func TestStats_TellTheSampleBefore(t *testing.T) {
	n := newNode(t)
	p := n.start(t, "web", false, "sleep")
	read := func(query string, count int) (all []container.StatsResponse) {
		t.Helper()
		_, _, resp := n.hijack(t, "GET /containers/web/stats?plain=1&"+query, "")
		for d := json.NewDecoder(resp.Body); len(all) < count; {
			var s container.StatsResponse
			if err := d.Decode(&s); err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
		return all
	}
	if s := read("stream=false&one-shot=true", 1)[0]; !s.PreRead.IsZero() || s.Read.IsZero() || s.Name != "/web" || s.ID != p.id {
		t.Errorf("one shot: got %+v", s)
	}
	if s := read("stream=0", 1)[0]; s.PreRead.IsZero() || !s.PreRead.Before(s.Read) || s.PreCPUStats.SystemUsage == 0 {
		t.Errorf("no stream: got %+v", s)
	}
	if s := read("", 2); !s[0].PreRead.IsZero() || !s[1].PreRead.Equal(s[0].Read) {
		t.Errorf("stream: got %+v", s)
	}
	p.cancel()
	<-p.ended
	if s := read("stream=0", 1)[0]; !s.Read.IsZero() || s.Name != "/web" {
		t.Errorf("stopped: got %+v", s)
	}
}

func TestImageLoad_TellsProgressWhileTheArchiveIsSent(t *testing.T) {
	n := newNode(t)
	body, archive := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://x/images/load", body)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan struct{})
	go func() {
		w := tar.NewWriter(archive)
		_ = w.WriteHeader(&tar.Header{Name: "first", Mode: 0o600})
		<-told // hangs unless the reply begins before the body ends
		_ = w.WriteHeader(&tar.Header{Name: "second", Mode: 0o600})
		w.Close()
		archive.Close()
	}()
	resp, err := n.http.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	first, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	close(told)
	rest, err := io.ReadAll(r)
	want := `{"stream":"Loaded image: first\n"}` + "\r\n" + `{"stream":"Loaded image: second\n"}` + "\r\n"
	if diff := cmp.Diff(want, first+string(rest)); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

package engine_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

func line(at int64, text string) object.LogLine {
	return object.LogLine{Time: time.Unix(at, 0), Text: []byte(text)}
}

// unframe splits a multiplexed stream into its frames, each "1:" or "2:" and its payload.
func unframe(t *testing.T, stream []byte) (got []string) {
	t.Helper()
	for len(stream) > 0 {
		if len(stream) < 8 {
			t.Fatalf("cut frame %q", stream)
		}
		n := binary.BigEndian.Uint32(stream[4:])
		got = append(got, fmt.Sprintf("%d:%s", stream[0], stream[8:8+n]))
		stream = stream[8+n:]
	}
	return got
}

func details(task *object.Task) string {
	return "com.docker.swarm.node.id=" + task.NodeID + ",com.docker.swarm.service.id=" + task.ServiceID + ",com.docker.swarm.task.id=" + task.ID + " "
}

func TestServiceLogs_MergeTasksInOrderOfTime(t *testing.T) {
	m := initialised(t)
	m.ok(t, "POST", "/services/create", `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"busybox"}}}`, nil)
	web := m.service(t, "web")
	one := m.addTask(t, web, 1, swarm.TaskStateRunning, swarm.TaskStateRunning)
	two := m.addTask(t, web, 2, swarm.TaskStateRunning, swarm.TaskStateRunning)
	lost := m.addTask(t, web, 3, swarm.TaskStateShutdown, swarm.TaskStateFailed)
	oops := line(2, "oops\n")
	oops.Stderr = true
	m.logs.add(one.ID, line(1, "a\n"), line(4, "half of "), line(6, "a line\n"))
	m.logs.add(two.ID, oops, line(5, "b\n"))
	status, header, body := m.call(t, "GET", "/v1.51/services/web/logs?stdout=1&stderr=1&details=1&tail=all", "")
	if got := header.Get("Content-Type"); status != 200 || got != "application/vnd.docker.multiplexed-stream" {
		t.Errorf("status %d, content type %s", status, got)
	}
	// The harness cuts the last newline, which is the error's.
	want := []string{
		"1:" + details(one) + "a\n", "2:" + details(two) + "oops\n", "1:" + details(one) + "half of ",
		"1:" + details(one) + "a line\n", "1:" + details(two) + "b\n",
		"2:" + details(lost) + "warning: incomplete log stream: node is down\n",
	}
	got := unframe(t, []byte(body+"\n"))
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	_, header, body = m.call(t, "GET", "/v1.41/tasks/"+one.ID+"/logs?stdout=1&timestamps=1", "")
	if got := header.Get("Content-Type"); got != "application/vnd.docker.raw-stream" {
		t.Errorf("1.41 gets %s", got)
	}
	got = unframe(t, []byte(body+"\n"))
	want = []string{"1:1970-01-01T00:00:01.000000000Z a\n", "1:1970-01-01T00:00:04.000000000Z half of ", "1:a line\n"}
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if status, _, body := m.call(t, "GET", "/tasks/"+lost.ID+"/logs?stdout=1", ""); status != 500 || message(t, body) != "node is down" {
		t.Errorf("log of a task that cannot be read: %d %s", status, body)
	}
}

func TestServiceLogs_ReadFewLogsOfOtherNodesAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name       string
		nodes      []string
		tasks, max int
	}{
		{"of one node", []string{"w1"}, 60, 24},
		{"of ten nodes", strings.Split("0123456789", ""), 200, 96},
		{"of this node", []string{""}, 60, 60},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := initialised(t)
			m.ok(t, "POST", "/services/create", `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"busybox"}}}`, nil)
			web, here := m.service(t, "web"), m.nodeID
			for i := range tt.tasks {
				if m.nodeID = tt.nodes[i%len(tt.nodes)]; m.nodeID == "" {
					m.nodeID = here
				}
				task := m.addTask(t, web, i+1, swarm.TaskStateRunning, swarm.TaskStateRunning)
				m.logs.add(task.ID, line(int64(i), "one\n"), line(int64(tt.tasks+i), "two\n"))
			}
			m.nodeID = here
			_, _, body := m.call(t, "GET", "/v1.51/services/web/logs?stdout=1", "")
			if got := len(unframe(t, []byte(body+"\n"))); got != 2*tt.tasks {
				t.Errorf("got %d lines of %d", got, 2*tt.tasks)
			}
			if m.logs.most != tt.max || m.logs.open != 0 {
				t.Errorf("%d logs were read at once, want %d; %d are still", m.logs.most, tt.max, m.logs.open)
			}
		})
	}
}

func TestServiceLogs_FollowTasksThatAreYetToCome(t *testing.T) {
	m := initialised(t)
	m.ok(t, "POST", "/services/create", `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"busybox"}}}`, nil)
	web := m.service(t, "web")
	one := m.addTask(t, web, 1, swarm.TaskStateRunning, swarm.TaskStateRunning)
	m.logs.add(one.ID, line(1, "skipped\n"), line(2, "first\n"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://skep/services/web/logs?stdout=1&follow=1&tail=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := m.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	expect := func(want string) {
		t.Helper()
		frame := make([]byte, 8+len(want))
		if _, err := io.ReadFull(res.Body, frame); err != nil {
			t.Fatal(err)
		}
		if got := frame[8:]; !bytes.Equal(got, []byte(want)) {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	expect("first\n")
	m.logs.add(one.ID, line(3, "second\n"))
	expect("second\n")
	two := m.addTask(t, web, 2, swarm.TaskStateRunning, swarm.TaskStateRunning)
	m.logs.add(two.ID, line(4, "from another\n"))
	// The second task's log came after the task itself, so reading it may have
	// failed first, which is a line on stderr: not asked for here.
	frame := make([]byte, 8)
	if _, err := io.ReadFull(res.Body, frame); err != nil {
		t.Fatal(err)
	}
	rest := make([]byte, binary.BigEndian.Uint32(frame[4:]))
	if _, err := io.ReadFull(res.Body, rest); err != nil {
		t.Fatal(err)
	}
	if got := string(rest); got != "from another\n" && !strings.Contains(got, "node is down") {
		t.Errorf("got %q", got)
	}
	cancel()
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("the stream ended by itself")
	}
}

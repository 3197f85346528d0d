package appliance_test

import (
	"bytes"
	"io"
	"strconv"
	"strings"
	"testing"

	"skep/appliance/nodetest"
)

// TestRemote is what a person does from one manager with a task on another
// node: a terminal, input, attaching, and following its log over its node's
// death. The manager that leads reaches the node itself, the other one by it.
func TestRemote(t *testing.T) {
	s := nodetest.NewSwarm(t, nodetest.Binary(t), dockerCLI(t))
	s.Form(t, "m1", "m2", "m3", "w1")
	lead := leader(t, s, s.Node(t, "m1"))
	other, worker := another(s, lead), s.Node(t, "w1")
	docker := other.CLI(t, dockerCLI(t))
	docker.LoadBusybox()
	docker.Run("service", "create", "-d", "--name", "count", "--constraint", "node.hostname==w1", "busybox",
		"sh", "-c", "n=0; while true; do n=$((n+1)); echo count $n; sleep 0.2; done")
	docker.Run("service", "create", "-d", "--name", "shell", "-t", "--constraint", "node.hostname==w1", "busybox", "sh", "-c", "while true; do sleep 1; echo tick; done")
	for _, name := range []string{"count", "shell"} {
		eventually(t, name+" runs", func() bool {
			return strings.Contains(docker.Run("service", "ls", "--filter", "name="+name), "1/1")
		})
	}
	box := func(service string) string {
		return service + ".1." + strings.TrimSpace(docker.Run("service", "ps", "-q", "--no-trunc", service))
	}

	for _, n := range []*nodetest.Node{lead, other} {
		t.Run("terminal by "+n.Name, func(t *testing.T) { execTerminal(t, n.CLI(t, dockerCLI(t)), box("count")) })
		t.Run("input by "+n.Name, func(t *testing.T) {
			big := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
			if got := n.CLI(t, dockerCLI(t)).Pipe(bytes.NewReader(big), "exec", "-i", box("count"), "cat"); !bytes.Equal(got, big) {
				t.Errorf("cat returned %d bytes of %d", len(got), len(big))
			}
		})
		t.Run("attach by "+n.Name, func(t *testing.T) {
			x := startTerminal(t, n.CLI(t, dockerCLI(t)), "attach", "--no-stdin", box("shell"))
			x.expect(`tick\s+tick`)
			if err := x.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			<-x.done
			_ = x.cmd.Wait() // killed
		})
	}
	t.Run("logs over a restart", func(t *testing.T) { followRestart(t, docker, worker) })
	t.Run("nothing stays open", func(t *testing.T) {
		// More than a node serves at once.
		path := "/containers/" + box("count") + "/logs?follow=1&stdout=1&tail=1"
		for range 140 {
			leaveEarly(t, other, "/services/count/logs?follow=1&stdout=1&tail=1")
			leaveEarly(t, other, path)
		}
		docker.Run("exec", box("count"), "true")
	})
}

// followRestart follows a log while the node that it is on is killed and comes
// back: each line comes once, and the gap is told.
func followRestart(t *testing.T, docker *nodetest.CLI, worker *nodetest.Node) {
	t.Helper()
	x := startTerminal(t, docker, "service", "logs", "-f", "count")
	x.expect(`\| count 1\r\n(?s:.*)\| count 5\r\n`)
	worker.Kill(t)
	x.expect(`@w1 +\| warning: incomplete log stream: node w1 `)
	worker.Start(t)
	last := 0
	for line := range strings.Lines(docker.Run("logs", "--tail", "1", "count.1."+strings.TrimSpace(docker.Run("service", "ps", "-q", "--no-trunc", "count")))) {
		_, n, _ := strings.Cut(strings.TrimSpace(line), " ")
		last, _ = strconv.Atoi(n)
	}
	x.expect(`\| count ` + strconv.Itoa(last+5) + `\r\n`)
	if err := x.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-x.done
	_ = x.cmd.Wait() // killed
	next := 1
	for line := range strings.Lines(x.printed()) {
		_, n, ok := strings.Cut(strings.TrimSpace(line), "| count ")
		if !ok {
			continue
		}
		if n != strconv.Itoa(next) {
			t.Fatalf("got count %s, want %d:\n%s", n, next, x.printed())
		}
		next++
	}
	if strings.Count(x.printed(), "warning:") != 1 {
		t.Errorf("the gap is told %d times", strings.Count(x.printed(), "warning:"))
	}
}

// leaveEarly takes the beginning of a reply and goes.
func leaveEarly(t *testing.T, n *nodetest.Node, path string) {
	t.Helper()
	client := n.API()
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://skep" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
}

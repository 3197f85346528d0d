// SPDX-License-Identifier: Apache-2.0

package attach_test

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"skep/net/attach"
	"skep/net/link"
	"skep/store/object"
)

const crashDir = "SKEP_ATTACH_CRASH_DIR"

// A process is killed at any moment while it connects and disconnects. What it
// said was connected is whole for the next one, and nothing else is left.
func TestCrash(t *testing.T) {
	if dir := os.Getenv(crashDir); dir != "" {
		untilKilled(t, dir)
		return
	}
	n := newNode(t, "eeeeee")
	dir := n.config.RunDir
	r := rand.New(rand.NewPCG(1, 2))
	kept := map[string]bool{}
	for round := range 25 {
		n.shut(t)
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestCrash$", "-test.v")
		cmd.Env = append(os.Environ(), crashDir+"="+n.config.Dir+":"+dir, fmt.Sprintf("ROUND=%d", round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		connected := map[string]bool{}
		for lines.Scan() && lines.Text() != "ready" {
			continue
		}
		time.AfterFunc(time.Duration(r.IntN(120))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		for lines.Scan() {
			verb, id, _ := strings.Cut(lines.Text(), " ")
			connected[id] = verb == "connected"
		}
		_ = cmd.Wait() // killed
		n.open(t)
		for id, there := range connected {
			at, ok := n.Attachment(id)
			if there && !ok {
				t.Errorf("round %d: %s was connected and is gone", round, id)
			}
			if ok && !link.Pinned(at.Namespace) {
				t.Errorf("round %d: %s has no namespace", round, id)
			}
			if ok && there {
				serve(t, box{at}, id, 80)
				mustGet(t, here{}, "tcp", fmt.Sprintf("127.0.0.1:%d", at.Ports[0].Host), id)
				kept[id] = true
			}
		}
		if table, _ := n.table(t); strings.Count(table.String(), "dnat to") != len(devices(t, "veeeeee")) {
			t.Errorf("round %d: devices %s do not fit the table\n%s", round, devices(t, "veeeeee"), table)
		}
	}
	if len(kept) == 0 {
		t.Error("no endpoint survived any round: the test sees nothing")
	}
}

// untilKilled connects endpoints and disconnects each second one, and says so.
func untilKilled(t *testing.T, dirs string) {
	t.Helper()
	dir, run, _ := strings.Cut(dirs, ":")
	a, err := attach.Open(t.Context(), attach.Config{Dir: dir, RunDir: run, Scope: "eeeeee", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Fprintln(os.Stdout, "ready")
	for i := 0; ; i++ {
		id := fmt.Sprintf("r%s-%d", os.Getenv("ROUND"), i)
		_, err := a.Connect(t.Context(), object.Endpoint{ID: id, Ports: []object.Port{port("tcp", 0, 80)}})
		_, _ = fmt.Fprintln(os.Stdout, "connected", id)
		if i%2 == 1 {
			_, _ = fmt.Fprintln(os.Stdout, "disconnecting", id)
			err = errors.Join(err, a.Disconnect(t.Context(), id))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

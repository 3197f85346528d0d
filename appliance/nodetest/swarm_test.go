package nodetest_test

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep/appliance/nodetest"
)

// reaches says whether a packet from one machine is answered by another.
func reaches(from, to *nodetest.Node) bool {
	err := from.Do(func() error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(to.Addr.String(), "1"), 300*time.Millisecond)
		if err == nil {
			c.Close()
		}
		return err
	})
	// Nothing listens there: an answer is a refusal.
	return err == nil || errors.Is(err, unix.ECONNREFUSED)
}

func TestSwarm_MachinesAreApart(t *testing.T) {
	s := nodetest.NewSwarm(t, "/bin/false", "/bin/false")
	began := time.Now()
	for _, name := range []string{"m1", "m2", "w1"} {
		s.Add(t, name, "")
	}
	t.Logf("three machines in %v", time.Since(began))
	m1, m2 := s.Node(t, "m1"), s.Node(t, "m2")
	const look = `hostname; ls /proc | grep -c '^[0-9]'; ls /run /sys/class/net; cat /proc/self/cgroup; mount -t tmpfs x /mnt; ls -d /sys/fs/cgroup/*`
	var out []byte
	if err := m1.Do(func() (err error) {
		out, err = exec.Command("sh", "-c", look).CombinedOutput()
		return err
	}); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if text := string(out); !strings.HasPrefix(text, "m1\n") || !strings.Contains(text, "netns\n") || !strings.Contains(text, "eth0") {
		t.Errorf("in the machine it looks like\n%s", out)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || bytes.Contains(mounts, []byte("x /mnt ")) {
		t.Errorf("a mount of the machine is seen outside: %v", err)
	}
	if !reaches(m1, m2) {
		t.Error("m1 does not reach m2")
	}
}

func TestSwarm_PartitionsAndHeals(t *testing.T) {
	s := nodetest.NewSwarm(t, "/bin/false", "/bin/false")
	for _, name := range []string{"m1", "m2", "w1"} {
		s.Add(t, name, "")
	}
	// open are the pairs that can talk: an answer needs both ways.
	open := func() string {
		var pairs []string
		for _, a := range s.Nodes() {
			for _, b := range s.Nodes() {
				if a.Name < b.Name && reaches(a, b) {
					pairs = append(pairs, a.Name+b.Name)
				}
			}
		}
		return strings.Join(pairs, " ")
	}
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"nothing is cut", func() {}, "m1m2 m1w1 m2w1"},
		{"two groups", func() { s.Partition(t, []string{"m1"}, []string{"m2"}) }, "m1w1 m2w1"},
		{"healed", func() { s.Heal(t) }, "m1m2 m1w1 m2w1"},
		{"one from all others", func() { s.Partition(t, []string{"m2"}) }, "m1w1"},
		{"healed again", func() { s.Heal(t) }, "m1m2 m1w1 m2w1"},
		{"one way", func() { s.Cut(t, "w1", "m1") }, "m1m2 m2w1"},
		{"after loss of power", func() { s.Node(t, "m1").PowerOff(t); s.Node(t, "m1").PowerOn(t) }, "m1m2 m2w1"},
	} {
		step.do()
		if got := open(); got != step.want {
			t.Errorf("%s: %q talk, want %q", step.name, got, step.want)
		}
	}
}

func TestSwarm_LeavesNothing(t *testing.T) {
	var id string
	t.Run("swarm", func(t *testing.T) {
		s := nodetest.NewSwarm(t, "/bin/false", "/bin/false")
		n := s.Add(t, "m1", "")
		id = n.Scope()
		if err := n.Do(func() error {
			return exec.Command("sh", "-c", "(trap '' TERM HUP; sleep 3456789) & mkdir -p /sys/fs/cgroup/*/skep-x").Run()
		}); err != nil {
			t.Fatal(err)
		}
		n.Freeze(t)
	})
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/skeptest-" + id); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if out, _ := exec.Command("pgrep", "-f", "sleep 345678[9]").Output(); len(out) > 0 {
		t.Errorf("left running: %s", out)
	}
}

func TestSwarm_FrozenMachineStandsStill(t *testing.T) {
	s := nodetest.NewSwarm(t, "/bin/false", "/bin/false")
	n := s.Add(t, "m1", "")
	file := filepath.Join(t.TempDir(), "count")
	cmd := n.Command("sh", "-c", "while :; do echo x >>"+file+"; sleep 0.01; done")
	if err := n.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- cmd.Wait() }()
	size := func() int64 {
		fi, err := os.Stat(file)
		if err != nil {
			return 0
		}
		return fi.Size()
	}
	grows := func() bool {
		before := size()
		time.Sleep(200 * time.Millisecond)
		return size() > before
	}
	if !nodetest.Eventually(grows) {
		t.Fatal("nothing runs on the machine")
	}
	n.Freeze(t)
	if grows() {
		t.Error("the machine goes on when frozen")
	}
	n.Thaw(t)
	if !grows() {
		t.Error("the machine does not go on")
	}
	n.PowerOff(t)
	if err := <-ended; err == nil {
		t.Error("the program ended by itself")
	}
}

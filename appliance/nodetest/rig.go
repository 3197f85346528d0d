package nodetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ready bounds how long a node may take to answer /skep/health.
const ready = 30 * time.Second

// Binary is the path of the binary under test: $SKEP_BINARY, or one that is
// built for this run.
func Binary(tb testing.TB) string {
	tb.Helper()
	if path := os.Getenv("SKEP_BINARY"); path != "" {
		return path
	}
	path := filepath.Join(tb.TempDir(), "skep")
	cmd := exec.CommandContext(tb.Context(), "go", "build", "-trimpath", "-tags", "seccomp netgo osusergo",
		"-ldflags", "-s -w -linkmode external -extldflags -static", "-o", path, "skep")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// Node is one node of a test.
type Node struct {
	Name string
	// Dir holds the node file, the data directory and the socket.
	Dir string
	// Addr is where other nodes of its swarm reach it.
	Addr   netip.Addr
	binary string
	file   string         // the node file, before its words are replaced
	ns     netns.NsHandle // not open while its machine has no power
	cmd    *exec.Cmd
	ended  chan error
	log    *os.File
	// Only in a Swarm; machine is nil while it has no power.
	swarm   *Swarm
	number  int
	machine *machine
}

// New makes a node with a network namespace of its own. file is the text of
// its node file; {{dir}} in it stands for Dir. It is not started.
func New(tb testing.TB, binary, name, file string) *Node {
	tb.Helper()
	ns, err := newNamespace()
	if err != nil {
		tb.Fatal(err)
	}
	return newNode(tb, ns, binary, name, file)
}

// Beside makes another node in n's network namespace.
func (n *Node) Beside(tb testing.TB, name, file string) *Node {
	tb.Helper()
	fd, err := unix.Dup(int(n.ns))
	if err != nil {
		tb.Fatal(err)
	}
	return newNode(tb, netns.NsHandle(fd), n.binary, name, file)
}

func newNode(tb testing.TB, ns netns.NsHandle, binary, name, file string) *Node {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Fatal("nodes need root")
	}
	n := &Node{Name: name, binary: binary, ns: ns}
	n.prepare(tb, file)
	return n
}

// prepare makes the node's directory, which goes when tb ends.
func (n *Node) prepare(tb testing.TB, file string) {
	tb.Helper()
	// Not TempDir: what cannot be unmounted must not be removed.
	dir, err := os.MkdirTemp("", "skep-"+n.Name+"-") //nolint:usetesting // as above
	if err != nil {
		tb.Fatal(err)
	}
	n.Dir = dir
	tb.Cleanup(func() { n.destroy(tb) })
	n.WriteFile(tb, file)
	if n.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		tb.Fatal(err)
	}
}

// WriteFile replaces the node file. {{dir}} in it stands for Dir; in a [Swarm]
// {{name}} and {{addr}} stand for the node's own and {{managers}} for the
// addresses of the other nodes that are named like managers, with an m.
func (n *Node) WriteFile(tb testing.TB, text string) {
	tb.Helper()
	n.file = text
	words := []string{"{{dir}}", n.Dir}
	if n.swarm != nil {
		words = append(words, "{{name}}", n.Name, "{{addr}}", n.Addr.String(), "{{managers}}", n.swarm.managers(n))
	}
	text = strings.NewReplacer(words...).Replace(text)
	if err := os.WriteFile(n.Path("swarm.yaml"), []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// Path is a path below Dir.
func (n *Node) Path(elem ...string) string {
	return filepath.Join(append([]string{n.Dir}, elem...)...)
}

// Host is what DOCKER_HOST is set to.
func (n *Node) Host() string { return "unix://" + n.Path("skep.sock") }

// Start starts the node and waits until it is ready.
func (n *Node) Start(tb testing.TB) {
	tb.Helper()
	n.Launch(tb)
	n.AwaitReady(tb)
}

// Launch starts the node's process.
func (n *Node) Launch(tb testing.TB) {
	tb.Helper()
	if n.swarm != nil {
		n.PowerOn(tb)
	}
	cmd := n.Command(n.binary, "boot", "--config", n.Path("swarm.yaml"))
	cmd.Stdout, cmd.Stderr = n.log, n.log
	cmd.Env = append(os.Environ(), "GOTRACEBACK=all")
	if err := n.Do(cmd.Start); err != nil {
		tb.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	n.cmd, n.ended = cmd, ended
}

// Command is a program that [Node.Do] can start as one of the node's. It must be
// waited for: a machine does not end before the last of its processes is reaped.
func (n *Node) Command(program string, args ...string) *exec.Cmd {
	if n.machine != nil {
		return n.machine.command(program, args...)
	}
	return exec.Command(program, args...)
}

// AwaitReady waits until the node answers that it is healthy.
func (n *Node) AwaitReady(tb testing.TB) {
	tb.Helper()
	client := n.API()
	defer client.CloseIdleConnections()
	for end := time.Now().Add(ready); ; time.Sleep(10 * time.Millisecond) {
		if resp, err := client.Get("http://skep/skep/health"); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case err := <-n.ended:
			n.ended <- err
			tb.Fatalf("node %s ended: %v\n%s", n.Name, err, n.Log())
		default:
		}
		if time.Now().After(end) {
			tb.Fatalf("node %s is not ready\n%s", n.Name, n.Log())
		}
	}
}

// API is an HTTP client of the node's socket, whatever the host in the URL.
func (n *Node) API() *http.Client {
	return &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", n.Path("skep.sock"))
		},
	}}
}

// Client is an HTTP client inside the node's network namespace.
func (n *Node) Client() *http.Client {
	return &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
				err = n.Do(func() (err error) {
					c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
					return err
				})
				return c, err
			},
		},
	}
}

// PID is the node's process.
func (n *Node) PID() int { return n.cmd.Process.Pid }

// Running says whether the node was started and not ended by the test.
func (n *Node) Running() bool { return n.cmd != nil }

// Kill ends the node as a crash would and waits for its end. Its containers go on.
func (n *Node) Kill(tb testing.TB) {
	tb.Helper()
	if err := n.cmd.Process.Kill(); err != nil {
		tb.Fatal(err)
	}
	tb.Logf("node %s: %v", n.Name, <-n.ended)
	n.cmd = nil
}

// Stop ends the node by SIGTERM and waits for its end. Its containers go on.
func (n *Node) Stop(tb testing.TB) {
	tb.Helper()
	if err := n.cmd.Process.Signal(unix.SIGTERM); err != nil {
		tb.Fatal(err)
	}
	select {
	case err := <-n.ended:
		n.cmd = nil
		if err != nil {
			tb.Fatalf("node %s: %v\n%s", n.Name, err, n.Log())
		}
	case <-time.After(ready):
		tb.Fatalf("node %s does not stop\n%s", n.Name, n.Log())
	}
}

// Log is what the node logged so far.
func (n *Node) Log() string {
	text, _ := os.ReadFile(n.Path("log"))
	return string(text)
}

// Do runs f on a thread that is in the node's network namespace or, in a
// [Swarm], in all of its machine's.
func (n *Node) Do(f func() error) error {
	if n.machine == nil {
		return inside(n.ns, f)
	}
	return locked(func() error {
		if err := n.machine.enter(); err != nil {
			return err
		}
		return f()
	})
}

// Processes are the processes that the node started and that go on: those
// whose executable lies in its data directory.
func (n *Node) Processes() []int {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err == nil && strings.HasPrefix(exe, n.Path("data")+"/") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Mounts are the mount points below the node's directory, innermost last.
func (n *Node) Mounts() []string {
	mounts := mountinfo.GetMounts
	if n.machine != nil {
		mounts = n.machine.mounts
	}
	infos, err := mounts(mountinfo.PrefixFilter(n.Dir))
	if err != nil {
		return []string{err.Error()}
	}
	var points []string
	for _, m := range infos {
		points = append(points, m.Mountpoint)
	}
	return points
}

func (n *Node) destroy(tb testing.TB) {
	tb.Helper()
	if n.swarm != nil {
		if err := n.cutPower(); err != nil {
			tb.Errorf("node %s: %v", n.Name, err)
		}
	}
	if n.cmd != nil {
		_ = n.cmd.Process.Kill()
		tb.Logf("node %s: %v", n.Name, <-n.ended)
	}
	if tb.Failed() {
		tb.Logf("log of node %s:\n%s", n.Name, n.Log())
	}
	if n.ns > 0 && isDir(n.Path("data")) {
		reset := n.Command(n.binary, "reset", "--force", "--config", n.Path("swarm.yaml"))
		var out []byte
		if err := n.Do(func() (err error) {
			out, err = reset.CombinedOutput()
			return err
		}); err != nil {
			tb.Errorf("reset node %s: %v\n%s", n.Name, err, out)
			n.sweep()
		}
	}
	if n.ns > 0 {
		_ = n.ns.Close()
	}
	if n.log != nil {
		n.log.Close()
	}
	if err := os.RemoveAll(n.Dir); err != nil {
		tb.Errorf("remove %s: %v", n.Dir, err)
	}
}

// sweep ends what a reset that failed has left.
func (n *Node) sweep() {
	files, _ := filepath.Glob(n.Path("data", "run", "containers", "*", "pid"))
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && pid > 1 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	for _, pid := range n.Processes() {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	for _, point := range slices.Backward(n.Mounts()) {
		_ = unix.Unmount(point, unix.MNT_DETACH)
	}
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

// newNamespace makes a network namespace with its loopback up.
func newNamespace() (ns netns.NsHandle, err error) {
	err = locked(func() (err error) {
		if ns, err = netns.New(); err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return ns, err
}

// inside runs f on a thread that is in a network namespace, or not at all: what
// a test does to links and addresses must never reach the machine's own.
func inside(ns netns.NsHandle, f func() error) error {
	return locked(func() error {
		own, err := netns.Get()
		if err != nil {
			return err
		}
		defer own.Close()
		if own.Equal(ns) {
			return errors.New("that is the test's own network namespace")
		}
		if err := netns.Set(ns); err != nil {
			return err
		}
		return f()
	})
}

// locked runs f on a thread of its own, which is dropped afterwards.
func locked(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// Eventually says whether f became true in time.
func Eventually(f func() bool) bool {
	for end := time.Now().Add(Patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if f() {
			return true
		}
	}
	return false
}

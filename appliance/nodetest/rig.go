package nodetest

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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
func Binary(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("SKEP_BINARY"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "skep")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-tags", "seccomp netgo osusergo",
		"-ldflags", "-s -w -linkmode external -extldflags -static", "-o", path, "skep")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// Node is one node of a test.
type Node struct {
	Name string
	// Dir holds the node file, the data directory and the socket.
	Dir    string
	binary string
	ns     netns.NsHandle
	cmd    *exec.Cmd
	ended  chan error
	log    *os.File
}

// New makes a node with a network namespace of its own. file is the text of
// its node file; {{dir}} in it stands for Dir. It is not started.
func New(t testing.TB, binary, name, file string) *Node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("nodes need root")
	}
	dir, err := os.MkdirTemp("", "skep-"+name+"-")
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{Name: name, Dir: dir, binary: binary}
	t.Cleanup(func() { n.destroy(t) })
	n.WriteFile(t, file)
	if n.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	if n.ns, err = newNamespace(); err != nil {
		t.Fatal(err)
	}
	return n
}

// WriteFile replaces the node file.
func (n *Node) WriteFile(t testing.TB, text string) {
	t.Helper()
	text = strings.ReplaceAll(text, "{{dir}}", n.Dir)
	if err := os.WriteFile(n.Path("swarm.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Path is a path below Dir.
func (n *Node) Path(elem ...string) string {
	return filepath.Join(append([]string{n.Dir}, elem...)...)
}

// Host is what DOCKER_HOST is set to.
func (n *Node) Host() string { return "unix://" + n.Path("skep.sock") }

// Start starts the node and waits until it is ready.
func (n *Node) Start(t testing.TB) {
	t.Helper()
	n.Launch(t)
	n.AwaitReady(t)
}

// Launch starts the node's process.
func (n *Node) Launch(t testing.TB) {
	t.Helper()
	cmd := exec.Command(n.binary, "boot", "--config", n.Path("swarm.yaml"))
	cmd.Stdout, cmd.Stderr = n.log, n.log
	cmd.Env = append(os.Environ(), "GOTRACEBACK=all")
	if err := n.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	n.cmd, n.ended = cmd, ended
}

// AwaitReady waits until the node answers that it is healthy.
func (n *Node) AwaitReady(t testing.TB) {
	t.Helper()
	client := n.API()
	defer client.CloseIdleConnections()
	for end := time.Now().Add(ready); ; time.Sleep(10 * time.Millisecond) {
		if resp, err := client.Get("http://skep/skep/health"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case err := <-n.ended:
			n.ended <- err
			t.Fatalf("node %s ended: %v\n%s", n.Name, err, n.Log())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("node %s is not ready\n%s", n.Name, n.Log())
		}
	}
}

// API is an HTTP client of the node's socket, whatever the host in the URL.
func (n *Node) API() *http.Client {
	return &http.Client{Transport: &http.Transport{
		Dial: func(string, string) (net.Conn, error) { return net.Dial("unix", n.Path("skep.sock")) },
	}}
}

// Client is an HTTP client inside the node's network namespace.
func (n *Node) Client() *http.Client {
	return &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			Dial: func(network, addr string) (c net.Conn, err error) {
				derr := n.Do(func() error {
					c, err = net.DialTimeout(network, addr, 5*time.Second)
					return err
				})
				return c, derr
			},
		},
	}
}

// PID is the node's process.
func (n *Node) PID() int { return n.cmd.Process.Pid }

// Running reports whether the node's process was started and has not ended.
func (n *Node) Running() bool { return n.cmd != nil }

// Kill ends the node as a crash would and waits for its end. Its containers go on.
func (n *Node) Kill(t testing.TB) {
	t.Helper()
	if err := n.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-n.ended
	n.cmd = nil
}

// Stop ends the node by SIGTERM and waits for its end. Its containers go on.
func (n *Node) Stop(t testing.TB) {
	t.Helper()
	if err := n.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-n.ended:
		n.cmd = nil
		if err != nil {
			t.Fatalf("node %s: %v\n%s", n.Name, err, n.Log())
		}
	case <-time.After(ready):
		t.Fatalf("node %s does not stop\n%s", n.Name, n.Log())
	}
}

// Log is what the node logged so far.
func (n *Node) Log() string {
	text, _ := os.ReadFile(n.Path("log"))
	return string(text)
}

// Do runs f on a thread that is in the node's network namespace.
func (n *Node) Do(f func() error) error {
	done := make(chan error)
	go func() {
		// The thread stays locked and is dropped with the goroutine.
		runtime.LockOSThread()
		if err := netns.Set(n.ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
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
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(n.Dir))
	if err != nil {
		return []string{err.Error()}
	}
	var points []string
	for _, m := range infos {
		points = append(points, m.Mountpoint)
	}
	return points
}

func (n *Node) destroy(t testing.TB) {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill()
		<-n.ended
	}
	if t.Failed() {
		t.Logf("log of node %s:\n%s", n.Name, n.Log())
	}
	reset := exec.Command(n.binary, "reset", "--force", "--config", n.Path("swarm.yaml"))
	if n.ns > 0 && isDir(n.Path("data")) {
		var out []byte
		if err := n.Do(func() (err error) {
			out, err = reset.CombinedOutput()
			return err
		}); err != nil {
			t.Errorf("reset node %s: %v\n%s", n.Name, err, out)
			n.sweep()
		}
	}
	if n.ns > 0 {
		n.ns.Close()
	}
	if n.log != nil {
		n.log.Close()
	}
	if err := os.RemoveAll(n.Dir); err != nil {
		t.Errorf("remove %s: %v", n.Dir, err)
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
	points := n.Mounts()
	for i := len(points) - 1; i >= 0; i-- {
		_ = unix.Unmount(points[i], unix.MNT_DETACH)
	}
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

// newNamespace makes a network namespace with its loopback up.
func newNamespace() (ns netns.NsHandle, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if ns, err = netns.New(); err != nil {
			err = fmt.Errorf("network namespace: %w", err)
			return
		}
		lo, e := netlink.LinkByName("lo")
		if e == nil {
			e = netlink.LinkSetUp(lo)
		}
		err = e
	}()
	<-done
	return ns, err
}

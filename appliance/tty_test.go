package appliance_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"

	"skep/appliance/nodetest"
)

// terminal is a command that runs in a terminal, and all that it printed.
type terminal struct {
	t    *testing.T
	cmd  *exec.Cmd
	tty  *os.File
	mu   sync.Mutex
	text bytes.Buffer
	done chan struct{}
}

func startTerminal(t *testing.T, docker *nodetest.CLI, args ...string) *terminal {
	t.Helper()
	cmd := docker.Command(args...)
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 43, Cols: 132})
	if err != nil {
		t.Fatal(err)
	}
	x := &terminal{t: t, cmd: cmd, tty: f, done: make(chan struct{})}
	go func() {
		defer close(x.done)
		buf := make([]byte, 4096)
		for {
			k, err := f.Read(buf)
			x.mu.Lock()
			x.text.Write(buf[:k])
			x.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { f.Close() })
	return x
}

func (x *terminal) printed() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.text.String()
}

// expect waits until the output matches.
func (x *terminal) expect(pattern string) {
	x.t.Helper()
	re := regexp.MustCompile(pattern)
	for end := time.Now().Add(nodetest.Patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if re.MatchString(x.printed()) {
			return
		}
	}
	x.t.Fatalf("no %s in %q", pattern, x.printed())
}

func (x *terminal) write(text string) {
	x.t.Helper()
	if _, err := io.WriteString(x.tty, text); err != nil {
		x.t.Fatal(err)
	}
}

// code waits for the command's end and returns its exit code.
func (x *terminal) code() int {
	x.t.Helper()
	<-x.done
	err := x.cmd.Wait()
	if err != nil && x.cmd.ProcessState == nil {
		x.t.Fatal(err)
	}
	return x.cmd.ProcessState.ExitCode()
}

// TestTerminal is what a person does in a terminal: exec, run and attach with
// a tty, input, another size, detaching and coming back, also over a crash.
func TestTerminal(t *testing.T) {
	n := nodetest.New(t, nodetest.Binary(t), "tty", nodetest.File)
	n.Start(t)
	docker := n.CLI(t, dockerCLI(t))
	docker.LoadBusybox()
	docker.Run("run", "-d", "--name", "box", "busybox", "sleep", "1000")

	execTerminal(t, docker, "box")

	x := startTerminal(t, docker, "run", "-it", "--name", "shell", "busybox", "sh")
	x.expect(`# `)
	x.write("tty; echo he''re\n")
	x.expect(`/dev/(pts/0|console)`)
	x.expect(`here`)
	x.write("\x10\x11") // ctrl-p ctrl-q
	if code := x.code(); code != 0 {
		t.Errorf("detaching ended with %d: %q", code, x.printed())
	}

	// The terminal belongs to the container's shim, not to the node's process.
	n.Kill(t)
	n.Start(t)
	x = startTerminal(t, docker, "attach", "shell")
	time.Sleep(200 * time.Millisecond)
	x.write("\necho ba''ck\n")
	x.expect(`back`)
	x.write("exit 12\n")
	if code := x.code(); code != 12 {
		t.Errorf("attach ended with %d, want 12: %q", code, x.printed())
	}
	docker.Run("rm", "-f", "box", "shell")
	n.Stop(t)
}

// execTerminal is a shell in a container: input, another size, an exit code.
func execTerminal(t *testing.T, docker *nodetest.CLI, box string) {
	t.Helper()
	x := startTerminal(t, docker, "exec", "-it", box, "sh")
	x.expect(`# `)
	x.write("echo si''ze $(stty size)\n")
	x.expect(`size 43 132`)
	if err := pty.Setsize(x.tty, &pty.Winsize{Rows: 20, Cols: 77}); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		x.write("echo si''ze $(stty size)\n")
		time.Sleep(50 * time.Millisecond)
		if strings.Contains(x.printed(), "size 20 77") {
			break
		}
	}
	x.expect(`size 20 77`)
	x.write("exit 11\n")
	if code := x.code(); code != 11 {
		t.Errorf("exec ended with %d, want 11: %q", code, x.printed())
	}
}

// TestStdin pipes through exec -i and run -i.
func TestStdin(t *testing.T) {
	n := nodetest.New(t, nodetest.Binary(t), "stdin", nodetest.File)
	n.Start(t)
	docker := n.CLI(t, dockerCLI(t))
	docker.LoadBusybox()
	docker.Run("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	big := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
	for _, args := range [][]string{{"exec", "-i", "box", "cat"}, {"run", "-i", "--rm", "busybox", "cat"}} {
		if got := docker.Pipe(bytes.NewReader(big), args...); !bytes.Equal(got, big) {
			t.Errorf("docker %s returned %d bytes of %d", strings.Join(args, " "), len(got), len(big))
		}
	}
	docker.Run("rm", "-f", "box")
	n.Stop(t)
}

package engine_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

// terminal runs docker on a terminal: typed is what the user types once
// prompt was printed. It returns all output.
func (n *node) terminal(t *testing.T, prompt, typed string, args ...string) (output string, code int) {
	t.Helper()
	path, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("no docker command line on this machine")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"DOCKER_HOST=unix://" + n.socket, "HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), "TERM=xterm"}
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 111})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out bytes.Buffer
	for buf := make([]byte, 4096); ; {
		k, err := f.Read(buf)
		out.Write(buf[:k])
		if typed != "" && strings.Contains(out.String(), prompt) {
			_, _ = io.WriteString(f, typed)
			typed = ""
		}
		if err != nil {
			break // the terminal's other end is closed
		}
	}
	_ = cmd.Wait() // the code is what counts
	if ctx.Err() != nil {
		t.Fatalf("docker %s hung; output %q", strings.Join(args, " "), out.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

func TestDocker_TerminalsAreRawAndSized(t *testing.T) {
	n := newNode(t)
	tests := []struct {
		name  string
		args  string
		typed string
		want  string
		code  int
	}{
		{"run", "run -it --rm --name tty base ask", "Bob\r", "name? hello Bob\r", 0},
		{"exec", "exec -it web ask", "Eve\r", "name? hello Eve\r", 0},
		{"detach keys", "attach web", "\x10\x11", "read escape sequence", 1},
	}
	n.start(t, "web", true, "prompt")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			output, code := n.terminal(t, "?", tt.typed, strings.Fields(tt.args)...)
			if !strings.Contains(output, tt.want) || code != tt.code {
				t.Errorf("got %d %q, want %d %q", code, output, tt.code, tt.want)
			}
		})
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.execs {
		if p.height != 33 || p.width != 111 {
			t.Errorf("terminal is %d x %d", p.height, p.width)
		}
	}
}

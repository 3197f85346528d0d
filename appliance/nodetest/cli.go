package nodetest

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// CLI is the docker command line, aimed at a node.
type CLI struct {
	tb   testing.TB
	path string
	env  []string
}

// CLI makes one; path is the docker program. It has a configuration, and so
// registry logins, of its own.
func (n *Node) CLI(tb testing.TB, path string) *CLI {
	tb.Helper()
	return &CLI{tb: tb, path: path, env: append(os.Environ(), "DOCKER_HOST="+n.Host(), "DOCKER_CONFIG="+tb.TempDir(), "TERM=xterm")}
}

// Command is a docker command that was not started.
func (c *CLI) Command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(c.tb.Context(), c.path, args...)
	cmd.Env = c.env
	return cmd
}

// Try runs a command and returns what it printed on both streams.
func (c *CLI) Try(args ...string) (string, error) {
	out, err := c.Command(args...).CombinedOutput()
	return string(out), err
}

// Run is Try for a command that must succeed.
func (c *CLI) Run(args ...string) string {
	c.tb.Helper()
	out, err := c.Try(args...)
	if err != nil {
		c.tb.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Pipe runs a command with input and returns its standard output.
func (c *CLI) Pipe(in io.Reader, args ...string) []byte {
	c.tb.Helper()
	cmd := c.Command(args...)
	var errs bytes.Buffer
	cmd.Stdin, cmd.Stderr = in, &errs
	out, err := cmd.Output()
	if err != nil {
		c.tb.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return out
}

// LoadBusybox loads the image busybox:latest.
func (c *CLI) LoadBusybox() {
	c.tb.Helper()
	archive := c.tb.TempDir() + "/busybox.tar"
	BusyboxArchive(c.tb, archive)
	c.Run("load", "-q", "-i", archive)
}

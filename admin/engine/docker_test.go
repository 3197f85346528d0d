package engine_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// docker runs the real command line against the node.
func (n *node) docker(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	path, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("no docker command line on this machine")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"DOCKER_HOST=unix://" + n.socket, "HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("docker %s hung; stdout %q, stderr %q", strings.Join(args, " "), out.String(), errs.String())
	}
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestDocker_CommandsWorkAgainstTheRoutes(t *testing.T) {
	archive := filepath.Join(t.TempDir(), "saved.tar")
	tests := []struct {
		args           string
		stdin          string
		stdout, stderr string // parts of what is printed
		code           int
	}{
		{args: "run --rm base echo hi", stdout: "hi\n"},
		{args: "run --rm -i base cat", stdin: "from stdin", stdout: "from stdin"},
		{args: "run --rm base both", stdout: "out\n", stderr: "err\n"},
		{args: "run base exit", code: 7},
		{args: "run -d --name web base sleep"},
		{args: "run --rm pulled echo hi", stdout: "hi\n", stderr: "Downloaded newer image"},
		{args: "run --name web base sleep", stderr: "is already in use", code: 125},
		{args: "run --rm --network nosuch base echo", stderr: "network nosuch not found", code: 125},
		{args: "ps --format {{.Names}}", stdout: "web\n"},
		{args: "ps -q --no-trunc --filter name=nope", stdout: ""},
		{args: "ps -a --filter exited=7 --format {{.Image}}", stdout: "base\n"},
		{args: "exec web echo one two", stdout: "one two\n"},
		{args: "exec -i web cat", stdin: "piped", stdout: "piped"},
		{args: "exec -i web echo early", stdin: strings.Repeat("unread", 1<<18), stdout: "early\n"},
		{args: "exec web exit", code: 7},
		{args: "exec -d web echo x"},
		{args: "exec web missing", stdout: "executable file not found", code: 127},
		{args: "exec nope echo", stderr: "No such container: nope", code: 1},
		{args: "run --name loud -d base both"},
		{args: "logs loud", stdout: "out\n", stderr: "err\n"},
		{args: "logs -f --tail 1 -t loud", stderr: "Z err\n"},
		{args: "inspect -f {{.NetworkSettings.IPAddress}} web", stdout: "172.17.0.2\n"},
		{args: "top web", stdout: "root"},
		{args: "stats --no-stream --format {{.MemPerc}} web", stdout: "12.50%"},
		{args: "rename web site"},
		{args: "port site"},
		{args: "kill site", stdout: "site\n"},
		{args: "wait site", stdout: "137\n"},
		{args: "start nope", stderr: "No such container: nope", code: 1},
		{args: "rm site loud", stdout: "site\nloud\n"},
		{args: "container prune -f", stdout: "Total reclaimed space: 12B"},
		{args: "cp x:/etc .", stderr: "not supported yet", code: 1},
		{args: "pull nginx", stdout: "Status: Downloaded newer image for nginx:latest"},
		{args: "pull denied", stderr: "pull access denied", code: 1},
		{args: "pull broken", stderr: "connection reset", code: 1},
		{args: "images --format {{.Repository}}:{{.Tag}} --filter reference=ba*", stdout: "base:latest\n"},
		{args: "image inspect -f {{.GraphDriver.Name}} base", stdout: "overlay2\n"},
		{args: "image inspect nope", stderr: "No such image: nope", code: 1},
		{args: "history --format {{.CreatedBy}} base", stdout: "ADD rootfs\n"},
		{args: "tag base reg.example:5000/a/b:1"},
		{args: "push base", stdout: "Pushed"},
		{args: "save -o " + archive + " base"},
		{args: "load -i " + archive, stdout: "Loaded image: base\n"},
		{args: "save -o " + archive + "2 half", stderr: "EOF", code: 1},
		{args: "rmi base", stdout: "Untagged: base\n"},
		{args: "image prune -f", stdout: "1kB"},
		{args: "volume create v1", stdout: "v1\n"},
		{args: "volume ls -q --filter dangling=true", stdout: "v1\n"},
		{args: "volume inspect -f {{.Mountpoint}} v1", stdout: "/x/v1\n"},
		{args: "volume rm v1", stdout: "v1\n"},
		{args: "volume prune -af", stdout: "Total reclaimed space: 0B"},
		{args: "network ls --format {{.Name}}", stdout: "bridge\nhost\nnone\n"},
		{args: "network inspect -f {{.Driver}} none", stdout: "null\n"},
		{args: "network inspect nope", stderr: "network nope not found", code: 1},
		{args: "network rm bridge", stderr: "pre-defined network", code: 1},
		{args: "network create -d overlay n", stderr: "This node is not a swarm manager.", code: 1},
		{args: "system df -v", stdout: "Images space usage"},
		{args: "system prune -f", stdout: "Total reclaimed space"},
		{args: "commit x y", stderr: "not supported yet", code: 1},
	}
	n := newNode(t)
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			stdout, stderr, code := n.docker(t, tt.stdin, strings.Fields(tt.args)...)
			if code != tt.code || !strings.Contains(stdout, tt.stdout) || !strings.Contains(stderr, tt.stderr) {
				t.Errorf("got %d %q %q, want %d %q %q", code, stdout, stderr, tt.code, tt.stdout, tt.stderr)
			}
		})
	}
}

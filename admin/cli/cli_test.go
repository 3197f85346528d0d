package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"

	"skep/admin/cli"
	"skep/appliance/config"
)

// result is what a command left behind.
type result struct {
	code        int
	out, stderr string
}

// run runs a command without the user's own settings.
func run(t *testing.T, c cli.Config, args ...string) result {
	t.Helper()
	t.Setenv("HOME", t.TempDir())
	var out, stderr bytes.Buffer
	c.Version, c.Commit = "1.2.3", "abc"
	c.Stdin, c.Stdout, c.Stderr = io.NopCloser(strings.NewReader("")), &out, &stderr
	code := cli.Run(t.Context(), c, args)
	return result{code, out.String(), stderr.String()}
}

// serveAPI answers on a unix socket and makes it the one that is used.
func serveAPI(t *testing.T, replies map[string]any) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.51")
		w.Header().Set("Ostype", "linux")
		path := strings.TrimPrefix(r.URL.Path, "/v1.51")
		if path == "/_ping" {
			return
		}
		reply, ok := replies[path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			reply = map[string]string{"message": "page not found"}
		}
		_ = json.NewEncoder(w).Encode(reply)
	}))
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	t.Setenv("DOCKER_HOST", "unix://"+l.Addr().String())
}

func TestRun_UsageIsAsUsualUnderOurName(t *testing.T) {
	t.Setenv("DOCKER_HOST", "unix:///nonexistent/skep.sock")
	for _, tt := range []struct {
		args   []string
		code   int
		stderr string
	}{
		{[]string{"service", "create"}, 1, "skep: 'skep service create' requires at least 1 argument\n\nUsage:  skep service create [OPTIONS] IMAGE [COMMAND] [ARG...]\n\nSee 'skep service create --help' for more information\n"},
		{[]string{"service", "create", "--replicas", "x", "img"}, 125, "invalid argument \"x\" for \"--replicas\" flag: strconv.ParseUint: parsing \"x\": invalid syntax\n\nUsage:  skep service create [OPTIONS] IMAGE [COMMAND] [ARG...]\n\nRun 'skep service create --help' for more information\n"},
		{[]string{"--nope"}, 125, "unknown flag: --nope\n\nUsage:  skep [OPTIONS] COMMAND [ARG...]\n\nRun 'skep --help' for more information\n"},
		{[]string{"nope"}, 1, "skep: unknown command: skep nope\n\nRun 'skep --help' for more information\n"},
		{[]string{"build", "."}, 1, "skep: unknown command: skep build\n\nRun 'skep --help' for more information\n"},
		{[]string{"boot", "--nope"}, 125, "unknown flag: --nope\n\nUsage:  skep boot [OPTIONS]\n\nRun 'skep boot --help' for more information\n"},
		{[]string{"boot", "x"}, 1, "skep: 'skep boot' accepts no arguments\n\nUsage:  skep boot [OPTIONS]\n\nRun 'skep boot --help' for more information\n"},
		{[]string{"ps"}, 1, "failed to connect to the docker API at unix:///nonexistent/skep.sock; check if the path is correct and if the daemon is running: dial unix /nonexistent/skep.sock: connect: no such file or directory\n"},
	} {
		got := run(t, cli.Config{}, tt.args...)
		if got.code != tt.code || got.out != "" {
			t.Errorf("%v: got %d, %q", tt.args, got.code, got.out)
		}
		if diff := cmp.Diff(tt.stderr, got.stderr); diff != "" {
			t.Errorf("%v: %s", tt.args, diff)
		}
	}
}

func TestRun_HelpNamesSkepAndNeverPanics(t *testing.T) {
	t.Setenv("DOCKER_HOST", "unix:///nonexistent/skep.sock")
	var visit func(path []string)
	visit = func(path []string) {
		got := run(t, cli.Config{}, append(path, "--help")...)
		if got.code != 0 || !strings.Contains(got.out, "skep") {
			t.Errorf("%v: got %d, %q", path, got.code, got.stderr)
		}
		for line := range strings.Lines(got.out) {
			if strings.Contains(line, "docker ") || strings.Contains(line, "Docker") && !strings.Contains(line, "Docker Hub") {
				// Words that end the sentence before a flag's type cannot be told.
				if !strings.Contains(line, "--docker ") {
					t.Errorf("%v: %q", path, line)
				}
			}
		}
		for _, sub := range subcommands(got.out) {
			if len(path) < 2 {
				visit(append(append([]string{}, path...), sub))
			}
		}
	}
	visit(nil)
}

// subcommands are the commands that a help text lists.
func subcommands(help string) (names []string) {
	listing := false
	for line := range strings.Lines(help) {
		switch {
		case strings.HasSuffix(strings.TrimSpace(line), "ommands:"):
			listing = true
		case listing && strings.HasPrefix(line, "  "):
			names = append(names, strings.Fields(line)[0])
		case strings.TrimSpace(line) != "":
			listing = false
		}
	}
	return names
}

func TestRun_RefusesWhatTheServerDoesNotHave(t *testing.T) {
	serveAPI(t, nil)
	got := run(t, cli.Config{}, "service", "create", "--memory-swap", "1g", "img")
	if want := "\"--memory-swap\" requires API version 1.52, but the Docker daemon API version is 1.51\n"; got.code != 1 || got.stderr != want {
		t.Errorf("got %+v", got)
	}
	if got := run(t, cli.Config{}, "service", "create", "--help"); strings.Contains(got.out, "--memory-swap") || !strings.Contains(got.out, "--replicas") {
		t.Errorf("got %s", got.out)
	}
}

// sickDiskError says with what code to end.
type sickDiskError struct{}

func (sickDiskError) Error() string   { return "sick" }
func (sickDiskError) ExitStatus() int { return 74 }

func TestRun_BootGetsTheNodeFileAndItsProblemsAreCode2(t *testing.T) {
	var path string
	c := cli.Config{Boot: func(_ context.Context, p string) error {
		path = p
		_, err := config.Parse([]byte("x: 1\ny: 2"), "f")
		return err
	}}
	got := run(t, c, "boot", "--config", "/some/file")
	if path != "/some/file" || got.code != 2 || strings.Count(got.stderr, "\n") != 2 {
		t.Errorf("got %q, %+v", path, got)
	}
	if got := run(t, c, "boot"); path != "/etc/swarm.yaml" || got.code != 2 {
		t.Errorf("got %q, %+v", path, got)
	}
	c.Boot = func(context.Context, string) error { return errors.New("open store: no") }
	if got := run(t, c, "boot"); got.code != 1 || got.stderr != "open store: no\n" {
		t.Errorf("got %+v", got)
	}
	c.Boot = func(context.Context, string) error { return fmt.Errorf("run replica: %w", sickDiskError{}) }
	if got := run(t, c, "boot"); got.code != 74 || got.stderr != "run replica: sick\n" {
		t.Errorf("got %+v", got)
	}
	c.Boot = func(ctx context.Context, _ string) error {
		p, _ := os.FindProcess(os.Getpid())
		_ = p.Signal(os.Interrupt)
		<-ctx.Done()
		return ctx.Err()
	}
	if got := run(t, c, "boot"); got.code != 0 || got.stderr != "" {
		t.Errorf("after a signal: got %+v", got)
	}
}

func TestRun_ConfigCheckAsksNoServer(t *testing.T) {
	t.Setenv("DOCKER_HOST", "unix:///nonexistent/skep.sock")
	file := filepath.Join(t.TempDir(), "swarm.yaml")
	for _, tt := range []struct {
		text string
		want result
	}{
		{"swarm: {init: }\n", result{0, file + ": no problems\n", ""}},
		{"swarm: {x: 1}\nlog: 5\n", result{2, "", file + ":1:9: swarm.x: unknown key; want one of listen, advertise, data_path, availability, labels, init, join\n" + file + ":2:6: log: is a number; want a mapping (key: value)\n"}},
	} {
		if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := run(t, cli.Config{}, "config", "check", file); got != tt.want {
			t.Errorf("%q: got %+v", tt.text, got)
		}
	}
	if got := run(t, cli.Config{}, "config", "check", "/nowhere"); got.code != 2 {
		t.Errorf("got %+v", got)
	}
}

func TestRun_VersionAndCompletion(t *testing.T) {
	t.Setenv("DOCKER_HOST", "unix:///nonexistent/skep.sock")
	if got := run(t, cli.Config{}, "--version"); got.out != "skep version 1.2.3, build abc\n" {
		t.Errorf("got %+v", got)
	}
	if got := run(t, cli.Config{}, "completion", "bash"); got.code != 0 || !strings.Contains(got.out, "complete -o default") {
		t.Errorf("got %d, %.80q", got.code, got.out)
	}
	if got := run(t, cli.Config{}, "__complete", "service", "cr"); !strings.HasPrefix(got.out, "create\t") {
		t.Errorf("got %+v", got)
	}
}

func TestRun_HelloEndsWithTheCodeItWasAskedFor(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	done := make(chan result, 1)
	go func() { done <- run(t, cli.Config{}, "hello", "--listen", addr) }()
	for {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/exit?code=42", nil)
		if res, err := http.DefaultClient.Do(req); err == nil {
			_ = res.Body.Close()
			break
		}
		time.Sleep(time.Millisecond)
	}
	if got := <-done; got.code != 42 || got.stderr != "" {
		t.Errorf("got %+v", got)
	}
}

func TestRun_JoinTokenNamesSkep(t *testing.T) {
	serveAPI(t, map[string]any{
		"/swarm":    swarm.Swarm{JoinTokens: swarm.JoinTokens{Worker: "SWMTKN-1-x"}},
		"/info":     system.Info{Swarm: swarm.Info{NodeID: "n1", NodeAddr: "10.0.0.1"}},
		"/nodes/n1": swarm.Node{ManagerStatus: &swarm.ManagerStatus{Addr: "10.0.0.1:2377"}},
	})
	got := run(t, cli.Config{}, "swarm", "join-token", "worker")
	if want := "To add a worker to this swarm, run the following command:\n\n    skep swarm join --token SWMTKN-1-x 10.0.0.1:2377\n\n"; got.out != want {
		t.Errorf("got %+v", got)
	}
}

func task(service string, state, desired swarm.TaskState, message, err string) swarm.Task {
	return swarm.Task{
		ServiceID: service, DesiredState: desired,
		Status: swarm.TaskStatus{State: state, Message: message, Err: err},
	}
}

func TestRun_StatusIsOneScreen(t *testing.T) {
	service := func(id, name string, running, desired uint64) swarm.Service {
		return swarm.Service{
			ID: id,
			Spec: swarm.ServiceSpec{
				Annotations:  swarm.Annotations{Name: name},
				TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "skep/hello:latest@sha256:0123"}},
			},
			Endpoint:      swarm.Endpoint{Ports: []swarm.PortConfig{{Protocol: "tcp", PublishedPort: 8080, TargetPort: 80}}},
			ServiceStatus: &swarm.ServiceStatus{RunningTasks: running, DesiredTasks: desired},
		}
	}
	serveAPI(t, map[string]any{
		"/info": system.Info{
			Name: "mgr1", ServerVersion: "1.2.3", KernelVersion: "6.1", Architecture: "x86_64", ContainersRunning: 3, Images: 1,
			Swarm: swarm.Info{
				NodeID: "n1", LocalNodeState: swarm.LocalNodeStateActive, ControlAvailable: true, Managers: 1, Nodes: 2,
				Cluster: &swarm.ClusterInfo{ID: "c1"},
			},
		},
		"/nodes": []swarm.Node{
			{Description: swarm.NodeDescription{Hostname: "wrk1"}, Spec: swarm.NodeSpec{Role: "worker", Availability: "active"}, Status: swarm.NodeStatus{State: "down", Message: "heartbeat failure"}},
			{Description: swarm.NodeDescription{Hostname: "mgr1"}, Spec: swarm.NodeSpec{Role: "manager", Availability: "active"}, Status: swarm.NodeStatus{State: "ready"}, ManagerStatus: &swarm.ManagerStatus{Leader: true, Reachability: swarm.ReachabilityReachable}},
		},
		"/services": []swarm.Service{service("s1", "web", 3, 3), service("s2", "api", 1, 3)},
		"/tasks": []swarm.Task{
			task("s1", swarm.TaskStateFailed, swarm.TaskStateShutdown, "", "old"),
			task("s2", swarm.TaskStateRunning, swarm.TaskStateRunning, "started", ""),
			task("s2", swarm.TaskStatePending, swarm.TaskStateRunning, "pending task scheduling", "no suitable node"),
			task("s2", swarm.TaskStatePending, swarm.TaskStateRunning, "pending task scheduling", "no suitable node"),
			task("s2", swarm.TaskStateFailed, swarm.TaskStateShutdown, "started", "task: non-zero exit (1)"),
		},
	})
	got := run(t, cli.Config{}, "status")
	want := `NODE        mgr1  n1
VERSION     1.2.3, API 1.51, 6.1, x86_64
SWARM       c1, 1 of 2 nodes is a manager
CONTAINERS  3 running, 0 stopped; 1 images

NODE  STATUS  AVAILABILITY  ROLE
mgr1  ready   active        leader
wrk1  down    active        worker

SERVICE  MODE        RUNNING  IMAGE              PORTS
api      replicated  1/3      skep/hello:latest  8080->80/tcp
web      replicated  3/3      skep/hello:latest  8080->80/tcp

PROBLEMS
  node wrk1 is down: heartbeat failure
  service api: 1 of 3 tasks run
    pending: no suitable node
    failed: task: non-zero exit (1)
`
	if diff := cmp.Diff(want, got.out); diff != "" || got.code != 0 {
		t.Errorf("got %d, %s: %s", got.code, got.stderr, diff)
	}
}

func TestRun_StatusOfANodeInNoSwarm(t *testing.T) {
	serveAPI(t, map[string]any{"/info": system.Info{Name: "mgr1", Swarm: swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}}})
	got := run(t, cli.Config{}, "status")
	if got.code != 0 || !strings.Contains(got.out, "SWARM       inactive\n") || !strings.Contains(got.out, "skep swarm init") {
		t.Errorf("got %+v", got)
	}
}

// TestRun_MisuseEndsAsWithTheRealClient compares with the docker client of the
// machine, in its exit code and, but for the name, in its words.
func TestRun_MisuseEndsAsWithTheRealClient(t *testing.T) {
	docker, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("no docker client on this machine")
	}
	is, err := exec.CommandContext(t.Context(), docker, "--version").Output()
	if err != nil || !strings.Contains(string(is), "version 28.") && !strings.Contains(string(is), "version 29.") {
		t.Skipf("older clients say other things: %s %v", is, err)
	}
	t.Setenv("DOCKER_HOST", "unix:///nonexistent/skep.sock")
	name := strings.NewReplacer("docker", "X", "Docker", "X", "skep", "X", "Skep", "X")
	for _, line := range []string{
		"service create", "service create --replicas x img", "service create --nope img", "service", "nope", "service nope", "run",
		"run --memory xx img", "swarm join", "node ls x", "stack deploy", "exec", "--nope", "secret create a /nonexistent",
		"container rm", "logs", "network create", "service update --replicas -1 x", "config rm", "swarm update x", "stack ps",
	} {
		args := strings.Fields(line)
		cmd := exec.CommandContext(t.Context(), docker, args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		_ = cmd.Run()
		got := run(t, cli.Config{}, args...)
		if got.code != cmd.ProcessState.ExitCode() {
			t.Errorf("%s: got %d, docker %d", line, got.code, cmd.ProcessState.ExitCode())
		}
		if diff := cmp.Diff(name.Replace(stderr.String()), name.Replace(got.stderr)); diff != "" {
			t.Errorf("%s: %s", line, diff)
		}
	}
}

func TestRun_SpeaksWithTheNodeOfThisMachineUnlessToldOtherwise(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"currentContext": "docker-desktop"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	inspect := []string{"context", "inspect", "--format", "{{.Name}} {{.Endpoints.docker.Host}}"}
	for _, tt := range []struct {
		env, flag []string
		want      string
	}{
		{nil, nil, "default " + cli.DefaultHost},
		{nil, []string{"--context", "default"}, "default " + cli.DefaultHost},
		{nil, []string{"-H", "tcp://10.0.0.1:2376"}, "default tcp://10.0.0.1:2376"},
		{[]string{"DOCKER_HOST", "unix:///x"}, nil, "default unix:///x"},
		{[]string{"DOCKER_CONTEXT", "default"}, nil, "default " + cli.DefaultHost},
	} {
		t.Setenv("DOCKER_HOST", "")
		t.Setenv("DOCKER_CONTEXT", "")
		if tt.env != nil {
			t.Setenv(tt.env[0], tt.env[1])
		}
		args := append(append([]string{"--config", dir}, tt.flag...), inspect...)
		if got := run(t, cli.Config{}, args...); strings.TrimSpace(got.out) != tt.want || got.code != 0 {
			t.Errorf("%v %v: got %+v", tt.env, tt.flag, got)
		}
	}
}

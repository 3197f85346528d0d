package nodetest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"skep/net/esp"
)

// Patience bounds how long a test waits for something to become true.
const Patience = 60 * time.Second

// Scripts drives one real node per script of a directory by the docker command
// line at the given path. A file swarm.yaml of a script is its node file. The
// words of the scripts are in [commands].
func Scripts(t *testing.T, dir, binary, docker string) {
	t.Helper()
	runScripts(t, dir, binary, docker, func(e *testscript.Env, s *stage) error {
		text, err := os.ReadFile(filepath.Join(e.WorkDir, "swarm.yaml"))
		if os.IsNotExist(err) {
			text, err = []byte(File), nil
		}
		if err != nil {
			return err
		}
		s.node = New(s.tb, binary, "n1", string(text))
		e.Setenv("NODE", s.node.Dir)
		return nil
	})
}

// SwarmScripts is Scripts for scripts that make a [Swarm] each, by the words in
// [swarmCommands].
func SwarmScripts(t *testing.T, dir, binary, docker string) {
	t.Helper()
	runScripts(t, dir, binary, docker, func(_ *testscript.Env, s *stage) error {
		s.swarm = NewSwarm(s.tb, binary, docker)
		return nil
	})
}

func runScripts(t *testing.T, dir, binary, docker string, setup func(*testscript.Env, *stage) error) {
	t.Helper()
	cmds := commands()
	maps.Copy(cmds, swarmCommands(cmds))
	testscript.Run(t, testscript.Params{
		Dir: dir,
		Setup: func(e *testscript.Env) error {
			e.Setenv("DOCKER_CONFIG", filepath.Join(e.WorkDir, ".docker"))
			e.Setenv("PATH", strings.Join([]string{filepath.Dir(binary), filepath.Dir(docker), os.Getenv("PATH")}, ":"))
			s := &stage{tb: e.T().(testing.TB), askers: map[string]*asker{}, taps: map[string]*tap{}}
			e.Values[stageKey{}] = s
			return setup(e, s)
		},
		Cmds: cmds,
		// [encrypts]: the kernel can encrypt what passes between nodes.
		Condition: func(cond string) (bool, error) {
			if cond != "encrypts" {
				return false, fmt.Errorf("unknown condition %s", cond)
			}
			return esp.Probe() == nil, nil
		},
	})
}

// stage is what a script plays on.
type stage struct {
	tb     testing.TB
	swarm  *Swarm // in a script of several nodes
	node   *Node  // what commands are about
	askers map[string]*asker
	taps   map[string]*tap // by machine
}

type stageKey struct{}

func onStage(ts *testscript.TestScript) *stage {
	return ts.Value(stageKey{}).(*stage)
}

func node(ts *testscript.TestScript) *Node {
	n := onStage(ts).node
	if n == nil {
		ts.Fatalf("on which node? on NAME COMMAND...")
	}
	return n
}

type command = func(ts *testscript.TestScript, neg bool, args []string)

// commands are the words that scripts know beside testscript's own.
//
//	node start | stop | kill      the node's process; its containers go on
//	node launch                   start it, and do not wait until it is ready
//	docker ARGS…, skep ARGS…      the command lines
//	until [-count=N] REGEXP COMMAND…   run it until it succeeds and prints REGEXP (N times)
//	until -fails REGEXP COMMAND…       run it until it fails and its complaint is REGEXP
//	within COMMAND…               run it in the node's network namespace
//	get URL                       print what a GET from the node's namespace answers
//	get -in CONTAINER URL         from that container's
//	sees [-in CONTAINER] URL…     skep/hello answers each, and is asked from the very
//	                              address and port that the asker has
//	asking NAME [-in CONTAINER] URL   begin to GET, again and again, until
//	asked NAME [LOST [GAP]]       prints how it went; no more than LOST answers were
//	                              missing, and none for longer than GAP
//	udp ADDRESS TEXT              print what answers a packet from the node's namespace
//	nameserver NAME=ADDRESS…      a name server that knows these, on the node's port 53
//	setid NAME COMMAND…           set an environment variable to what it prints
//	busybox                       load the image busybox:latest
//	busyboxarchive FILE           write the same image as an archive below the node's directory
//	unlock FILE                   docker swarm unlock with the key that is in a file
//	resealed N                    wait until the node has changed its keys N times
//	[!] logged REGEXP             wait until the node's log has it; it has it not
//	inorder                       stdout is "line 0", "line 1" and so on without a gap
//	restarts N                    kill and start the node N times
//	pause DURATION                let time pass
//	traces KIND…                  what clean looks for is there, of each kind
//	clean                         nothing of any container is left on the machine
//	gone                          nothing of the node is left on the machine
func commands() map[string]command {
	return map[string]command{
		"node": cmdNode,
		"docker": func(ts *testscript.TestScript, neg bool, args []string) {
			run(ts, neg, append([]string{"docker"}, args...))
		},
		"skep": func(ts *testscript.TestScript, neg bool, args []string) {
			run(ts, neg, append([]string{"skep"}, args...))
		},
		"within":     cmdWithin,
		"until":      cmdUntil,
		"get":        cmdGet,
		"sees":       cmdSees,
		"asking":     cmdAsking,
		"asked":      cmdAsked,
		"udp":        cmdUDP,
		"setid":      cmdSet,
		"nameserver": cmdNameserver,
		"busybox": func(ts *testscript.TestScript, _ bool, _ []string) {
			archive := ts.MkAbs("busybox.tar")
			BusyboxArchive(failing(ts), archive)
			run(ts, false, []string{"docker", "load", "-q", "-i", archive})
		},
		"busyboxarchive": func(ts *testscript.TestScript, _ bool, args []string) {
			path := node(ts).Path(args[0])
			ts.Check(os.MkdirAll(filepath.Dir(path), 0o755))
			BusyboxArchive(failing(ts), path)
		},
		"unlock":   cmdUnlock,
		"resealed": cmdResealed,
		"logged":   cmdLogged,
		"inorder":  cmdInOrder,
		"restarts": cmdRestarts,
		"pause": func(ts *testscript.TestScript, _ bool, args []string) {
			d, err := time.ParseDuration(args[0])
			ts.Check(err)
			time.Sleep(d)
		},
		"clean": cmdClean,
		"traces": func(ts *testscript.TestScript, _ bool, args []string) {
			left := node(ts).Leftovers()
			for _, kind := range args {
				if !slices.ContainsFunc(left, func(s string) bool { return strings.Contains(s, kind) }) {
					ts.Fatalf("no %s among\n%s", kind, strings.Join(left, "\n"))
				}
			}
		},
		"gone": func(ts *testscript.TestScript, _ bool, _ []string) {
			if left := node(ts).Traces(); len(left) > 0 {
				ts.Fatalf("left behind:\n%s", strings.Join(left, "\n"))
			}
		},
	}
}

// tb lets rig functions end a script.
type tb struct {
	testing.TB
	ts *testscript.TestScript
}

func failing(ts *testscript.TestScript) tb { return tb{onStage(ts).tb, ts} }

func (t tb) Helper()                   {}
func (t tb) Fatal(args ...any)         { t.ts.Fatalf("%s", fmt.Sprint(args...)) }
func (t tb) Fatalf(f string, a ...any) { t.ts.Fatalf(f, a...) }
func (t tb) Logf(f string, a ...any)   { t.ts.Logf(f, a...) }

func cmdNode(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: node start|launch|stop|kill")
	}
	n, t := node(ts), failing(ts)
	switch args[0] {
	case "start":
		ts.Setenv("DOCKER_HOST", n.Host()) // for what is run by exec
		n.Start(t)
	case "launch":
		n.Launch(t)
	case "stop":
		n.Stop(t)
	case "kill":
		n.Kill(t)
	default:
		ts.Fatalf("node %s: want start, launch, stop or kill", args[0])
	}
}

func cmdLogged(ts *testscript.TestScript, neg bool, args []string) {
	want, err := regexp.Compile(args[0])
	ts.Check(err)
	logged := func() bool { return want.MatchString(node(ts).Log()) }
	if neg && logged() {
		ts.Fatalf("the log of %s has %s: %s", node(ts).Name, args[0], want.FindString(node(ts).Log()))
	}
	if !neg && !Eventually(logged) {
		ts.Fatalf("the log of %s does not have %s", node(ts).Name, args[0])
	}
}

// output runs a command with the script's environment.
func output(ts *testscript.TestScript, args []string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := program(ctx, ts, args)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// program is a command with the script's environment.
func program(ctx context.Context, ts *testscript.TestScript, args []string) *exec.Cmd {
	path := args[0]
	for dir := range strings.SplitSeq(ts.Getenv("PATH"), ":") {
		if !strings.Contains(path, "/") {
			if full := filepath.Join(dir, path); isFile(full) {
				path = full
			}
		}
	}
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+node(ts).Host(), "DOCKER_CONFIG="+ts.Getenv("DOCKER_CONFIG"), "PATH="+ts.Getenv("PATH"))
	return cmd
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}

func run(ts *testscript.TestScript, neg bool, args []string) {
	out, errs, err := output(ts, args)
	judge(ts, neg, args, out, errs, err)
}

// judge prints what a command printed and ends the script if the command did
// not end as expected.
func judge(ts *testscript.TestScript, neg bool, args []string, out, errs string, err error) {
	fmt.Fprint(ts.Stdout(), out)
	fmt.Fprint(ts.Stderr(), errs)
	switch {
	case err != nil && !neg:
		ts.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, out, errs)
	case err == nil && neg:
		ts.Fatalf("%s: unexpected success\n%s", strings.Join(args, " "), out)
	}
}

func cmdWithin(ts *testscript.TestScript, neg bool, args []string) {
	var out, errs string
	err := node(ts).Do(func() (err error) {
		out, errs, err = output(ts, args)
		return err
	})
	judge(ts, neg, args, out, errs, err)
}

func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	count, fails := 1, false
	if len(args) > 0 && strings.HasPrefix(args[0], "-count=") {
		var err error
		count, err = strconv.Atoi(strings.TrimPrefix(args[0], "-count="))
		ts.Check(err)
		args = args[1:]
	} else if len(args) > 0 && args[0] == "-fails" {
		fails, args = true, args[1:]
	}
	if len(args) < 2 {
		ts.Fatalf("usage: until [-count=N|-fails] REGEXP COMMAND...")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	pattern, args := args[0], args[1:]
	if args[0] == "on" {
		defer on(ts, args[1])()
		args = args[2:]
	}
	var out, errs string
	for end := time.Now().Add(Patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		switch args[0] {
		case "get":
			out, err = get(ts, args[1:])
		case "udp":
			out, err = udp(ts, args[1:])
		case "sees":
			out, err = sees(ts, args[1:])
		default:
			out, errs, err = output(ts, args)
		}
		if fails && errs == "" && err != nil {
			out = err.Error()
		} else if fails {
			out = errs
		}
		if (err != nil) == fails && (len(want.FindAllString(out, -1)) >= count) != neg {
			fmt.Fprint(ts.Stdout(), out)
			return
		}
	}
	ts.Fatalf("%s does not print %s: %v\n%s%s", strings.Join(args, " "), pattern, err, out, errs)
}

func cmdSet(ts *testscript.TestScript, _ bool, args []string) {
	if args[1] == "on" {
		defer on(ts, args[2])()
		args = append(args[:1:1], args[3:]...)
	}
	out, errs, err := output(ts, args[1:])
	if err != nil {
		ts.Fatalf("%s: %v\n%s", strings.Join(args[1:], " "), err, errs)
	}
	ts.Setenv(args[0], strings.TrimSpace(out))
}

func cmdInOrder(ts *testscript.TestScript, _ bool, _ []string) {
	next := 0
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		if want := fmt.Sprintf("line %d\n", next); line != want {
			ts.Fatalf("got %q, want %q", line, want)
		}
		next++
	}
	if next == 0 {
		ts.Fatalf("no line")
	}
}

func cmdRestarts(ts *testscript.TestScript, _ bool, args []string) {
	n, t := node(ts), failing(ts)
	count, err := strconv.Atoi(args[0])
	ts.Check(err)
	for range count {
		n.Kill(t)
		n.Start(t)
	}
}

// cmdClean waits until no container of the node left anything behind.
func cmdClean(ts *testscript.TestScript, _ bool, _ []string) {
	n := node(ts)
	var left []string
	for end := time.Now().Add(Patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if left = n.Leftovers(); len(left) == 0 {
			return
		}
	}
	ts.Fatalf("%s left behind:\n%s", strconv.Itoa(len(left)), strings.Join(left, "\n"))
}

package manager_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// update rewrites the transcripts in testdata.
var update = flag.Bool("update", false, "rewrite the scripts' files with what they compare to")

// bubble runs each script in its own synctest bubble.
type bubble struct{ *testing.T }

func (b bubble) Run(name string, f func(testscript.T)) {
	b.T.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { f(bubble{t}) })
	})
}
func (b bubble) Parallel()     {}
func (b bubble) Verbose() bool { return testing.Verbose() }

// TestScenarios runs whole swarms in scripts: the real loops, dispatcher and
// agents over a store without Raft, and executors that do as they are told.
func TestScenarios(t *testing.T) {
	commands := map[string]func(*world, *testscript.TestScript, []string){
		"node":         (*world).cmdNode,
		"describe":     (*world).cmdDescribe,
		"availability": (*world).cmdAvailability,
		"label":        (*world).cmdLabel,
		"role":         (*world).cmdRole,
		"managers":     (*world).cmdManagers,
		"hint":         (*world).cmdHint,
		"forget":       (*world).cmdForget,
		"crash":        (*world).cmdCrash,
		"boot":         (*world).cmdBoot,
		"restart":      (*world).cmdRestart,
		"leader":       (*world).cmdLeader,
		"history":      (*world).cmdHistory,
		"networks":     (*world).cmdNetworks,
		"addresses":    (*world).cmdAddresses,
		"guest":        (*world).cmdGuest,
		"secret":       (*world).cmdSecret,
		"service":      (*world).cmdService,
		"update":       (*world).cmdUpdate,
		"delete":       (*world).cmdRemove,
		"pass":         (*world).cmdPass,
		"fail":         (*world).cmdFail,
		"slow":         (*world).cmdSlow,
		"exit":         (*world).cmdExit,
		"tasks":        (*world).cmdTasks,
		"nodes":        (*world).cmdNodes,
		"inspect":      (*world).cmdInspect,
		"containers":   (*world).cmdContainers,
		"left":         (*world).cmdLeft,
		"network":      (*world).cmdNetwork,
		"program":      (*world).cmdProgram,
		"plane":        (*world).cmdPlane,
		"notes":        (*world).cmdNotes,
	}
	cmds := map[string]func(ts *testscript.TestScript, neg bool, args []string){}
	for name, f := range commands {
		cmds[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			if neg {
				ts.Fatalf("%s cannot be negated", name)
			}
			f(ts.Value(worldKey{}).(*world), ts, args)
		}
	}
	testscript.RunT(bubble{t}, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: *update,
		Cmds:          cmds,
		Setup: func(e *testscript.Env) error {
			inner := e.T().(bubble).T
			w := newWorld(inner, inner.TempDir())
			e.Values[worldKey{}] = w
			e.Defer(w.end)
			return nil
		},
	})
}

type worldKey struct{}

// process is something with a Run that can be stopped and waited for.
type process struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (w *world) spawn(name string, run func(context.Context) error) *process {
	ctx, cancel := context.WithCancel(w.t.Context())
	p := &process{cancel: cancel, done: make(chan struct{})}
	go func() { // waited for by stop
		defer close(p.done)
		if err := run(ctx); err != nil && ctx.Err() == nil {
			w.t.Errorf("%s ended: %v", name, err)
		}
	}()
	return p
}

func (p *process) stop() {
	if p != nil {
		p.cancel()
		<-p.done
	}
}

func (w *world) end() {
	for _, name := range slices.Sorted(maps.Keys(w.machines)) {
		w.machines[name].process.stop()
	}
	w.leader.stop()
}

func (w *world) cmdPass(ts *testscript.TestScript, args []string) {
	d, err := time.ParseDuration(one(ts, args))
	ts.Check(err)
	time.Sleep(d)
	synctest.Wait()
}

func one(ts *testscript.TestScript, args []string) string {
	if len(args) != 1 {
		ts.Fatalf("want one argument, got %q", args)
	}
	return args[0]
}

func check(ts *testscript.TestScript, ok bool, format string, args ...any) {
	if !ok {
		ts.Fatalf("%s", fmt.Sprintf(format, args...))
	}
}

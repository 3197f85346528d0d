package manager_test

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/swarm"
	"github.com/rogpeppe/go-internal/testscript"

	"skep/appliance/agent"
	"skep/appliance/manager"
	"skep/store"
	"skep/store/object"
	"skep/store/replica"
	"skep/store/storetest"
)

// world is a swarm with one manager, which is the node "m" and runs nothing.
type world struct {
	t        testing.TB
	dir      string
	store    *storetest.Local
	group    *group
	manager  *manager.Manager
	leader   *process
	machines map[string]*machine
	rules    rules
	log      *slog.Logger
}

func newWorld(tb testing.TB, dir string) *world {
	tb.Helper()
	w := &world{
		t: tb, dir: dir, store: storetest.New(tb), machines: map[string]*machine{},
		rules: rules{fail: map[string]string{}, slow: map[string]time.Duration{}},
		log:   slog.New(slog.DiscardHandler),
	}
	w.store.Write(tb, func(tx *store.Tx) {
		tx.Create(&object.Cluster{ID: object.NewID()})
		tx.Create(storetest.Ingress())
		n := &object.Node{}
		n.ID, n.Description.Hostname, n.Spec.Role = "m", "m", swarm.NodeRoleManager
		n.Spec.Availability, n.Status.State = swarm.NodeAvailabilityDrain, swarm.NodeStateDown
		n.CertRole, n.RaftID = swarm.NodeRoleManager, "m-1"
		n.ManagerStatus = &swarm.ManagerStatus{Leader: true, Reachability: swarm.ReachabilityReachable, Addr: "m:2377"}
		tx.Create(n)
	})
	w.group = &group{world: w, members: []replica.Server{{ID: "m-1", NodeID: "m", Voter: true}}}
	w.manager = manager.New(manager.Config{Store: w.store, NodeID: "m", Logger: w.log, Replica: w.group})
	w.leader = w.spawn("manager", w.manager.Run)
	return w
}

func (w *world) cmdLeader(ts *testscript.TestScript, args []string) {
	switch one(ts, args) {
	case "stop":
		w.leader.stop()
	case "start":
		w.leader = w.spawn("manager", w.manager.Run)
	}
	synctest.Wait()
}

// cmdNode makes a node and boots it: node NAME [cpu=N] [memory=SIZE] [label.KEY=VALUE].
func (w *world) cmdNode(ts *testscript.TestScript, args []string) {
	m := &machine{name: args[0], world: w, containers: map[string]*box{}}
	n := &object.Node{}
	n.ID, n.Spec.Role, n.Spec.Availability = m.name, swarm.NodeRoleWorker, swarm.NodeAvailabilityActive
	n.Spec.Labels = map[string]string{}
	m.description.Hostname = m.name
	m.description.Platform = swarm.Platform{OS: "linux", Architecture: "x86_64"}
	for _, a := range args[1:] {
		k, v, _ := strings.Cut(a, "=")
		if label, ok := strings.CutPrefix(k, "label."); ok {
			n.Spec.Labels[label] = v
			continue
		}
		w.resource(ts, m, k, v)
	}
	w.store.Write(w.t, func(tx *store.Tx) { tx.Create(n) })
	w.machines[m.name] = m
	w.boot(m)
	synctest.Wait()
}

func (w *world) resource(ts *testscript.TestScript, m *machine, k, v string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	switch k {
	case "cpu":
		m.description.Resources.NanoCPUs, err = strconv.ParseInt(v+"000000000", 10, 64)
	case "memory":
		m.description.Resources.MemoryBytes, err = units.RAMInBytes(v)
	default:
		ts.Fatalf("unknown resource %q", k)
	}
	ts.Check(err)
}

func (w *world) boot(m *machine) {
	m.mu.Lock()
	m.off = time.Time{}
	m.mu.Unlock()
	a := agent.New(agent.Config{
		NodeID: m.name, File: filepath.Join(w.dir, m.name), Sealer: open{}, Executor: m, Logger: w.log,
		Dial: m.dial, Swarm: m.told, Member: m.asMember,
		NetworksFile: filepath.Join(w.dir, m.name+"-networks"), Networks: m.toldNetworks,
	})
	m.agent = a
	m.process = w.spawn("agent "+m.name, a.Run)
}

func (w *world) machine(ts *testscript.TestScript, args []string) *machine {
	m := w.machines[args[0]]
	check(ts, m != nil, "no node %q", args[0])
	return m
}

func (w *world) cmdDescribe(ts *testscript.TestScript, args []string) {
	m := w.machine(ts, args)
	for _, a := range args[1:] {
		k, v, _ := strings.Cut(a, "=")
		w.resource(ts, m, k, v)
	}
}

// cmdCrash switches the machine off: its containers end.
func (w *world) cmdCrash(ts *testscript.TestScript, args []string) {
	m := w.machine(ts, args)
	m.process.stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.off = time.Now()
	for _, b := range m.containers {
		b.stop(137)
	}
}

func (w *world) cmdBoot(ts *testscript.TestScript, args []string) {
	w.boot(w.machine(ts, args))
	synctest.Wait()
}

// cmdRestart restarts the agent; its containers go on.
func (w *world) cmdRestart(ts *testscript.TestScript, args []string) {
	m := w.machine(ts, args)
	m.process.stop()
	w.boot(m)
	synctest.Wait()
}

func (w *world) edit(ts *testscript.TestScript, node string, do func(*object.Node)) {
	n, ok := w.store.Snapshot().Nodes.Get(node)
	check(ts, ok, "no node %q", node)
	n = n.Clone().(*object.Node)
	do(n)
	w.store.Write(w.t, func(tx *store.Tx) { tx.Update(n) })
	synctest.Wait()
}

func (w *world) cmdAvailability(ts *testscript.TestScript, args []string) {
	w.edit(ts, args[0], func(n *object.Node) { n.Spec.Availability = swarm.NodeAvailability(args[1]) })
}

func (w *world) cmdLabel(ts *testscript.TestScript, args []string) {
	k, v, _ := strings.Cut(args[1], "=")
	w.edit(ts, args[0], func(n *object.Node) { n.Spec.Labels = map[string]string{k: v} })
}

// cmdForget removes a node from the swarm.
func (w *world) cmdForget(ts *testscript.TestScript, args []string) {
	n, ok := w.store.Snapshot().Nodes.Get(one(ts, args))
	check(ts, ok, "no node %q", args)
	w.store.Write(w.t, func(tx *store.Tx) { tx.Delete(n) })
	synctest.Wait()
}

func (w *world) cmdHistory(ts *testscript.TestScript, args []string) {
	n, err := strconv.ParseInt(one(ts, args), 10, 64)
	ts.Check(err)
	c := w.store.Snapshot().Cluster().Clone().(*object.Cluster)
	c.Spec.Orchestration.TaskHistoryRetentionLimit = &n
	w.store.Write(w.t, func(tx *store.Tx) { tx.Update(c) })
}

func (w *world) cmdFail(_ *testscript.TestScript, args []string) {
	w.rules.mu.Lock()
	defer w.rules.mu.Unlock()
	w.rules.fail[args[0]+" "+args[1]] = strings.Join(args[2:], " ")
}

func (w *world) cmdSlow(ts *testscript.TestScript, args []string) {
	d, err := time.ParseDuration(args[1])
	ts.Check(err)
	w.rules.mu.Lock()
	defer w.rules.mu.Unlock()
	w.rules.slow[args[0]] = d
}

// cmdExit ends the running container NAME ("web.1", or "web.0@n1" for a global
// one) with a code.
func (w *world) cmdExit(ts *testscript.TestScript, args []string) {
	code, err := strconv.Atoi(args[1])
	ts.Check(err)
	name, node, _ := strings.Cut(args[0], "@")
	ended := 0
	for _, m := range w.machines {
		m.mu.Lock()
		for _, b := range m.containers {
			if b.name == name && b.running && (node == "" || node == m.name) {
				b.stop(code)
				ended++
			}
		}
		m.mu.Unlock()
	}
	check(ts, ended == 1, "%d containers %s run", ended, args[0])
	synctest.Wait()
}

func (w *world) service(ts *testscript.TestScript, name string) *object.Service {
	s, err := w.store.Snapshot().Services.Find(name)
	ts.Check(err)
	return s
}

// cmdTasks prints a service's tasks by slot, the newest first.
func (w *world) cmdTasks(ts *testscript.TestScript, args []string) {
	s := w.service(ts, one(ts, args))
	tasks := slices.Collect(w.store.Snapshot().Tasks.By(store.ByService, s.ID))
	replaces := map[string]string{}
	for _, t := range tasks {
		replaces[t.ID] = t.Replaces
	}
	depth := func(id string) (n int) {
		for ; replaces[id] != ""; n++ {
			id = replaces[id]
		}
		return n
	}
	slices.SortFunc(tasks, func(a, b *object.Task) int {
		place := 0
		if a.Slot == 0 {
			place = cmp.Compare(a.NodeID, b.NodeID)
		}
		return cmp.Or(cmp.Compare(a.Slot, b.Slot), place, -a.CreatedAt.Compare(b.CreatedAt), -cmp.Compare(depth(a.ID), depth(b.ID)))
	})
	if len(tasks) == 0 {
		fmt.Fprintln(ts.Stdout(), "no tasks")
	}
	for _, t := range tasks {
		where := cmp.Or(t.NodeID, "-")
		if t.Replaces != "" {
			where += " again"
		}
		line := fmt.Sprintf("%s.%d %s %s %s", s.Spec.Name, t.Slot, where, t.DesiredState, t.Status.State)
		if rev := w.store.Snapshot().Revision(t.ServiceID, t.SpecVersion); rev != nil && rev.Spec.ContainerSpec.Image != "img" {
			line += " " + rev.Spec.ContainerSpec.Image
		}
		if t.Status.Err != "" {
			line += fmt.Sprintf(" %q", strings.ReplaceAll(t.Status.Err, s.ID, "ID"))
		}
		fmt.Fprintln(ts.Stdout(), line)
	}
}

func (w *world) cmdNodes(ts *testscript.TestScript, _ []string) {
	for n := range w.store.Snapshot().Nodes.All() {
		if n.ID != "m" {
			fmt.Fprintln(ts.Stdout(), strings.TrimSpace(fmt.Sprintf("%s %s %s %s", n.ID, n.Status.State, n.Spec.Availability, n.Status.Message)))
		}
	}
}

func (w *world) cmdInspect(ts *testscript.TestScript, args []string) {
	s := w.service(ts, one(ts, args))
	if len(s.Endpoint.Ports) == 0 && s.UpdateStatus == nil {
		fmt.Fprintln(ts.Stdout(), "nothing")
	}
	for _, p := range s.Endpoint.Ports {
		fmt.Fprintf(ts.Stdout(), "port %d:%d/%s %s\n", p.PublishedPort, p.TargetPort, p.Protocol, p.PublishMode)
	}
	if u := s.UpdateStatus; u != nil {
		text, _, failed := strings.Cut(u.Message, " of task ")
		if failed {
			text += " of task ID"
		}
		fmt.Fprintf(ts.Stdout(), "%s: %s\n", u.State, text)
	}
}

func (w *world) cmdContainers(ts *testscript.TestScript, args []string) {
	m := w.machine(ts, args)
	m.mu.Lock()
	defer m.mu.Unlock()
	var lines []string
	for _, b := range m.containers {
		line := b.name + " created"
		if b.running {
			line = fmt.Sprintf("%s running, started %d times", b.name, b.starts)
		} else if b.starts > 0 {
			line = b.name + " ended"
		}
		for _, s := range b.task.Secrets {
			line += " secret=" + string(s.Spec.Data)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	for _, l := range lines {
		fmt.Fprintln(ts.Stdout(), l)
	}
}

// cmdLeft counts what is in the store and on the machines.
func (w *world) cmdLeft(ts *testscript.TestScript, _ []string) {
	s := w.store.Snapshot()
	boxes := 0
	for _, name := range slices.Sorted(maps.Keys(w.machines)) {
		w.machines[name].mu.Lock()
		boxes += len(w.machines[name].containers)
		w.machines[name].mu.Unlock()
	}
	fmt.Fprintf(ts.Stdout(), "services %d, revisions %d, tasks %d, containers %d\n",
		s.Services.Len(), s.Revisions.Len(), s.Tasks.Len(), boxes)
}

package appliance_test

import (
	"context"
	"flag"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"skep/appliance/nodetest"
)

var loadRounds = flag.Int("load-rounds", 1, "how often TestSwarmLoad goes through what is planned")

// page is answered while a little time goes by, so that there is always
// something on its way; each connection asks 50 times a second at most.
const page = "/slow?ms=20"

// connections is how many each client has at a time.
const connections = 3

// siege is clients of a service, one of each kind: by the routing mesh, at nodes
// with and without tasks of it, and on its network, by address and by name; with
// connections that are kept alive and with such that are not.
type siege struct {
	client  *nodetest.Node    // a machine that is no node
	targets map[string]string // addresses of nodes, by name
	box     *nodetest.Node    // runs the container that asks on the network
	inside  string            // its ID
	vip     string            // the service's address on the network

	// Since begin:
	wrk   map[string]*nodetest.Wrk // by what they ask
	stop  context.CancelFunc       // has named end
	ended sync.WaitGroup           // named
	named map[string]*named
}

// named is a client that looks the name up before each request. It has one
// connection at a time.
type named struct {
	nodetest.WrkReport
	err error // the last
}

func (s *siege) begin(t *testing.T) {
	t.Helper()
	s.wrk, s.named = map[string]*nodetest.Wrk{}, map[string]*named{}
	ctx, cancel := context.WithCancel(t.Context())
	s.stop = cancel
	inside := func(f func() error) error { return s.box.DoInside(s.inside, f) }
	for _, closed := range []bool{false, true} {
		kind := map[bool]string{false: " kept", true: " closed"}[closed]
		load := nodetest.Load{Connections: connections, Closed: closed, Watched: true}
		for name, addr := range s.targets {
			load.URL = "http://" + addr + ":8080" + page
			s.wrk[name+kind] = s.client.StartWrk(t, s.client.Do, load)
		}
		load.URL = "http://" + s.vip + page
		s.wrk["vip"+kind] = s.box.StartWrk(t, inside, load)
	}
	for _, name := range []string{"web", "tasks.web"} {
		n := new(named)
		s.named[name] = n
		s.ended.Go(func() { n.run(ctx, s.box.Container(s.inside), "http://"+name+page) })
	}
}

func (n *named) run(ctx context.Context, client *http.Client, url string) {
	client.Timeout = 0
	var c nodetest.Connection
	last := time.Now()
	for ctx.Err() == nil {
		switch err := fetch(ctx, client, url); {
		case ctx.Err() != nil: // it ended meanwhile
		case err != nil:
			n.Read++
			n.err = err
		default:
			c.Answers++
			c.Gap, last = max(c.Gap, time.Since(last)), time.Now()
		}
	}
	c.Silent = time.Since(last)
	c.Gap = max(c.Gap, c.Silent)
	n.Requests, n.Connections = c.Answers, []nodetest.Connection{c}
}

// tail is how long the clients go on after what happened. A request without an
// answer for so long will have none, if others have theirs.
const tail = 2 * time.Second

// end stops the clients. Each may have had at most so many requests that failed
// or were not answered.
func (s *siege) end(t *testing.T, what string, most int) {
	t.Helper()
	time.Sleep(tail)
	s.stop()
	s.ended.Wait()
	reports := map[string]nodetest.WrkReport{}
	for name, w := range s.wrk {
		reports[name] = w.Stop(t)
	}
	for name, n := range s.named {
		reports[name] = n.WrkReport
		if n.err != nil {
			t.Logf("%s: %s: %v", what, name, n.err)
		}
	}
	all, silent := 0, 0
	for _, r := range reports {
		all += len(r.Connections)
		silent += r.Silent(tail / 2)
	}
	for _, name := range slices.Sorted(maps.Keys(reports)) {
		r := reports[name]
		unanswered := r.Silent(tail)
		if silent > all/2 {
			unanswered = 0 // this machine has stood still
		}
		t.Logf("%s: %s: %v, without an answer %d", what, name, r, unanswered)
		if r.Failures()+unanswered > most {
			t.Errorf("%s: %s: more than %d requests failed: %v, without an answer %d", what, name, most, r, unanswered)
		}
		if r.Requests < 10 {
			t.Errorf("%s: %s: the test shows nothing: %v", what, name, r)
		}
	}
}

// phase is what happens while clients ask, and how many requests of each client
// may fail.
type phase struct {
	name string
	do   func()
	most int
}

// TestSwarmLoad_NoRequestFailsWhileTasksComeAndGo scales, updates and moves a
// service, and takes nodes away, while clients ask for its page without pause.
func TestSwarmLoad_NoRequestFailsWhileTasksComeAndGo(t *testing.T) {
	s := nodetest.NewSwarm(t, nodetest.Binary(t), dockerCLI(t))
	s.Form(t, "m1", "m2", "m3", "w1", "w2", "w3")
	m1, m2, w1, w2, w3 := s.Node(t, "m1"), s.Node(t, "m2"), s.Node(t, "w1"), s.Node(t, "w2"), s.Node(t, "w3")
	docker := m1.CLI(t, s.Docker)
	docker.Run("network", "create", "-d", "overlay", "--attachable", "front")
	docker.Run("service", "create", "--detach=false", "-q", "--name", "web", "--network", "front", "-p", "8080:80", "--replicas", "6", "--restart-delay", "100ms",
		"--constraint", "node.hostname!=m1", "--update-monitor", "1s", "--update-delay", "0s", "--update-parallelism", "2", "skep/hello")
	box := m2.CLI(t, s.Docker)
	box.LoadBusybox()
	l := &siege{
		client: s.Add(t, "client", ""), targets: map[string]string{"m1": m1.Addr.String(), "w1": w1.Addr.String()},
		box: m2, inside: strings.TrimSpace(box.Run("run", "-d", "--network", "front", "busybox", "sleep", "100000")),
		vip: virtualAddress(t, m1),
	}
	for name, n := range map[string]*nodetest.Node{"m1": m1, "w1": w1} {
		eventually(t, "the mesh of "+name+" serves", func() bool { return fetch(t.Context(), n.Client(), "http://127.0.0.1:8080/") == nil })
	}
	update := func(args ...string) {
		docker.Run(append([]string{"service", "update", "--detach=false", "-q"}, append(args, "web")...)...)
		settled(t, m1)
	}
	scale := func(n string) { docker.Run("service", "scale", "web="+n); settled(t, m1) }
	availability := func(n *nodetest.Node, a string) { docker.Run("node", "update", "--availability", a, n.Name) }
	all := func() bool { return strings.Contains(docker.Run("service", "ls"), " 6/6 ") }
	lost := func(n *nodetest.Node) {
		eventually(t, n.Name+" is down", func() bool { return nodesSeen(m1)[n.Name].Status.State == "down" })
		eventually(t, "all run", all)
	}
	planned := []phase{
		{"scale", func() { scale("3"); scale("6") }, 0},
		{"update, stop first", func() { update("--update-order", "stop-first", "--force") }, 0},
		{"update, start first", func() { update("--update-order", "start-first", "--force") }, 0},
		{"drain", func() {
			availability(w1, "drain")
			eventually(t, "w1 is empty", func() bool { return tasksOn(m1, w1) == 0 })
			settled(t, m1)
			availability(w1, "active")
			update("--force")
		}, 0},
		{"container stopped by hand", func() {
			task := stopOne(t, w1.CLI(t, s.Docker))
			eventually(t, "another runs", func() bool {
				var seen taskSeen
				return ask(m1, "/tasks/"+task, &seen) == nil && seen.Status.State != "running" && all()
			})
		}, 0},
		{"process killed", func() {
			w2.Kill(t)
			w2.Start(t)
			eventually(t, "w2 is ready", func() bool { return nodesSeen(m1)["w2"].Status.State == "ready" })
		}, 0},
	}
	for _, p := range slices.Concat(slices.Repeat(planned, *loadRounds), []phase{
		{"process killed for good", func() { w2.Kill(t); lost(w2) }, connections},
		{"process is back", func() {
			w2.Start(t)
			eventually(t, "w2 is ready", func() bool { return nodesSeen(m1)["w2"].Status.State == "ready" })
			settled(t, m1)
			update("--force")
		}, 0},
		// One connection fails once: where it is led then is alive.
		{"power off", func() { w3.PowerOff(t); lost(w3) }, connections},
		{"after the loss", func() { update("--force") }, 0},
	}) {
		l.begin(t)
		time.Sleep(500 * time.Millisecond)
		p.do()
		l.end(t, p.name, p.most)
	}
}

// stopOne stops the container of a task of a node, and is the task's ID.
func stopOne(t *testing.T, docker *nodetest.CLI) (task string) {
	t.Helper()
	id := strings.Fields(docker.Run("ps", "-q", "--filter", "label=com.docker.swarm.task.id"))[0]
	task = docker.Run("inspect", "-f", `{{index .Config.Labels "com.docker.swarm.task.id"}}`, id)
	docker.Run("stop", id)
	return strings.TrimSpace(task)
}

// virtualAddress is the service's on its network, as the API tells it.
func virtualAddress(tb testing.TB, m *nodetest.Node) string {
	tb.Helper()
	var service struct {
		Spec struct {
			TaskTemplate struct{ Networks []struct{ Target string } }
		}
		Endpoint struct {
			VirtualIPs []struct{ NetworkID, Addr string }
		}
	}
	if err := ask(m, "/services/web", &service); err != nil {
		tb.Fatal(err)
	}
	for _, v := range service.Endpoint.VirtualIPs {
		if v.NetworkID == service.Spec.TaskTemplate.Networks[0].Target {
			addr, _, _ := strings.Cut(v.Addr, "/")
			return addr
		}
	}
	tb.Fatalf("no address among %+v", service.Endpoint.VirtualIPs)
	return ""
}

type taskSeen struct {
	NodeID, DesiredState string
	Status               struct{ State string }
}

// settled waits until every task that is to end has ended, but for those of
// nodes that cannot say so.
func settled(t *testing.T, m *nodetest.Node) {
	t.Helper()
	eventually(t, "what is to end has ended", func() bool {
		var tasks []taskSeen
		if ask(m, "/tasks", &tasks) != nil {
			return false
		}
		down := map[string]bool{}
		for _, n := range nodesSeen(m) {
			down[n.ID] = n.Status.State == "down"
		}
		return !slices.ContainsFunc(tasks, func(task taskSeen) bool {
			return task.Status.State == "running" && task.DesiredState != "running" && !down[task.NodeID]
		})
	})
}

// tasksOn is how many tasks run on a node.
func tasksOn(m, n *nodetest.Node) (count int) {
	var tasks []taskSeen
	if ask(m, "/tasks", &tasks) != nil {
		return -1
	}
	id := nodesSeen(m)[n.Name].ID
	for _, task := range tasks {
		if task.NodeID == id && task.Status.State == "running" {
			count++
		}
	}
	return count
}

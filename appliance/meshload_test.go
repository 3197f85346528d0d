package appliance_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"skep/appliance/nodetest"
)

// page is answered while a little time goes by, so that there is always
// something on its way; each connection asks 50 times a second at most.
const page = "/slow?ms=20"

// siege is clients of a service, one of each kind: by the routing mesh, at a node
// with and one without tasks of it, and on its network, by address and by name;
// all of them with connections that are kept alive and with such that are not.
type siege struct {
	client  *nodetest.Node                 // a machine that is no node
	targets map[string]string              // by name; addresses of nodes
	box     *nodetest.Node                 // runs the container that asks on the network
	inside  string                         // its ID
	vip     string                         // the service's address on the network
	wrk     map[string]*nodetest.Wrk       // by what they ask
	stop    chan struct{}                  // closed when byName is to end
	running sync.WaitGroup                 // byName
	named   map[string]*nodetest.WrkReport // by name; its Requests, and failures as Read
	errs    []string
}

// connections is how many each wrk has.
const connections = 3

func (s *siege) begin(t *testing.T) {
	t.Helper()
	s.wrk, s.named, s.stop, s.errs = map[string]*nodetest.Wrk{}, map[string]*nodetest.WrkReport{}, make(chan struct{}), nil
	count := fmt.Sprintf("-c%d", connections)
	for _, kind := range []struct{ name, header string }{{"kept", "X: y"}, {"closed", "Connection: close"}} {
		for name, addr := range s.targets {
			s.wrk[name+" "+kind.name] = s.client.StartWrk(t, s.client.Do, count, "-H", kind.header, "http://"+addr+":8080"+page)
		}
		inside := func(f func() error) error { return s.box.DoInside(s.inside, f) }
		s.wrk["vip "+kind.name] = s.box.StartWrk(t, inside, count, "-H", kind.header, "http://"+s.vip+page)
	}
	for _, name := range []string{"web", "tasks.web"} {
		report := new(nodetest.WrkReport)
		s.named[name] = report
		s.running.Go(func() { s.byName(name, report) })
	}
}

// byName looks the name up before each request.
func (s *siege) byName(name string, r *nodetest.WrkReport) {
	client := s.box.Container(s.inside)
	client.Timeout = 20 * time.Second
	for {
		select {
		case <-s.stop:
			return
		default:
		}
		r.Requests++
		if err := fetch(client, "http://"+name+page); err != nil {
			r.Read++
			s.errs = append(s.errs, err.Error())
		}
	}
}

// end stops the clients; each kind may have had at most so many failures.
func (s *siege) end(t *testing.T, what string, most int) {
	t.Helper()
	close(s.stop)
	s.running.Wait()
	reports := map[string]nodetest.WrkReport{}
	for name, w := range s.wrk {
		reports[name] = w.Stop(t)
	}
	for name, r := range s.named {
		reports[name] = *r
	}
	for name, r := range reports {
		t.Logf("%s: %s: %v", what, name, r)
		if r.Failures() > most {
			t.Errorf("%s: %s: %v, at most %d may fail", what, name, r, most)
		}
		if r.Requests < 10 {
			t.Errorf("%s: %s: the test shows nothing: %v", what, name, r)
		}
	}
	if len(s.errs) > most {
		t.Error(s.errs[0])
	}
}

// TestSwarmLoad_NoRequestFailsWhileTasksComeAndGo scales, updates and moves a
// service, and takes nodes away, while clients ask for its page without pause.
func TestSwarmLoad_NoRequestFailsWhileTasksComeAndGo(t *testing.T) {
	s := nodetest.NewSwarm(t, nodetest.Binary(t), dockerCLI(t))
	s.Form(t, "m1", "m2", "m3", "w1", "w2")
	m1, m2, w1, w2 := s.Node(t, "m1"), s.Node(t, "m2"), s.Node(t, "w1"), s.Node(t, "w2")
	docker := m1.CLI(t, s.Docker)
	docker.Run("network", "create", "-d", "overlay", "--attachable", "front")
	docker.Run("service", "create", "--detach=false", "-q", "--name", "web", "--network", "front", "-p", "8080:80", "--replicas", "6",
		"--constraint", "node.hostname!=m1", "--update-monitor", "1s", "--update-delay", "0s", "--update-parallelism", "2", "skep/hello")
	box := m2.CLI(t, s.Docker)
	box.LoadBusybox()
	l := &siege{
		client: s.Add(t, "client", ""), targets: map[string]string{"m1": m1.Addr.String(), "w1": w1.Addr.String()},
		box: m2, inside: strings.TrimSpace(box.Run("run", "-d", "--network", "front", "busybox", "sleep", "100000")),
		vip: virtualAddress(t, m1),
	}
	for name, n := range map[string]*nodetest.Node{"m1": m1, "w1": w1} {
		eventually(t, "the mesh of "+name+" serves", func() bool { return fetch(n.Client(), "http://127.0.0.1:8080/") == nil })
	}
	update := func(args ...string) func() {
		return func() {
			docker.Run(append([]string{"service", "update", "--detach=false", "-q"}, append(args, "web")...)...)
			settled(t, m1)
		}
	}
	scale := func(n string) { docker.Run("service", "scale", "web="+n); settled(t, m1) }
	for _, phase := range []struct {
		name string
		do   func()
		most int // failures of each kind of client
	}{
		{"scale", func() { scale("3"); scale("6") }, 0},
		{"update, stop first", update("--force"), 0},
		{"update, start first", update("--update-order", "start-first", "--force"), 0},
		{"drain", func() {
			docker.Run("node", "update", "--availability", "drain", "w1")
			eventually(t, "w1 is empty", func() bool { return tasksOn(m1, w1) == 0 })
			settled(t, m1)
			docker.Run("node", "update", "--availability", "active", "w1")
			update("--force")()
		}, 0},
		{"process killed", func() {
			w2.Kill(t)
			w2.Start(t)
			eventually(t, "w2 is ready", func() bool { return nodesSeen(m1)["w2"].Status.State == "ready" })
		}, 0},
		// One connection fails once: where it is led then is alive.
		{"power off", func() {
			w2.PowerOff(t)
			eventually(t, "w2 is down", func() bool { return nodesSeen(m1)["w2"].Status.State == "down" })
			eventually(t, "all run", func() bool { return strings.Contains(docker.Run("service", "ls"), " 6/6 ") })
		}, connections},
	} {
		l.begin(t)
		time.Sleep(500 * time.Millisecond)
		phase.do()
		time.Sleep(500 * time.Millisecond)
		l.end(t, phase.name, phase.most)
	}
}

// virtualAddress is the service's on its network, as the API tells it.
func virtualAddress(t *testing.T, m *nodetest.Node) string {
	t.Helper()
	var service struct {
		Spec struct {
			TaskTemplate struct{ Networks []struct{ Target string } }
		}
		Endpoint struct {
			VirtualIPs []struct{ NetworkID, Addr string }
		}
	}
	if err := ask(m, "/services/web", &service); err != nil {
		t.Fatal(err)
	}
	for _, v := range service.Endpoint.VirtualIPs {
		if v.NetworkID == service.Spec.TaskTemplate.Networks[0].Target {
			addr, _, _ := strings.Cut(v.Addr, "/")
			return addr
		}
	}
	t.Fatalf("no address among %+v", service.Endpoint.VirtualIPs)
	return ""
}

type taskSeen struct {
	NodeID, DesiredState string
	Status               struct{ State string }
}

// settled waits until every task that is to end has ended.
func settled(t *testing.T, m *nodetest.Node) {
	t.Helper()
	eventually(t, "what is to end has ended", func() bool {
		var tasks []taskSeen
		if ask(m, "/tasks", &tasks) != nil {
			return false
		}
		for _, task := range tasks {
			if task.Status.State == "running" && task.DesiredState != "running" {
				return false
			}
		}
		return true
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

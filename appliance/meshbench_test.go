package appliance_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"skep/appliance/nodetest"
)

// way is how a client reaches a task.
type way struct {
	name   string
	client *nodetest.Node
	do     func(func() error) error
	url    string
	// than is the way that this one is compared with.
	than string
}

// BenchmarkMesh is requests per second to one task on another machine: by a port
// of its own there (direct), by the routing mesh at the task's node (local) and at
// another one (remote); and to the same program without a network of its own (bare). And
// from a container beside it and one on another node: to the task's own address,
// and to its service's. All take turns, and the best turn of each counts: whatever
// else goes on only takes away.
func BenchmarkMesh(b *testing.B) {
	s := nodetest.NewSwarm(b, nodetest.Binary(b), dockerCLI(b))
	s.Form(b, "m1", "w1")
	ways := openWays(b, s)
	for _, closed := range []bool{false, true} {
		b.Run(map[bool]string{false: "kept", true: "new"}[closed], func(b *testing.B) {
			best, p99 := map[string]float64{}, map[string]time.Duration{}
			for b.Loop() {
				for range 8 {
					for _, w := range ways {
						load := w.client.StartWrk(b, w.do, nodetest.Load{URL: w.url, Connections: 16, Closed: closed})
						time.Sleep(time.Second)
						r := load.Stop(b)
						if r.Failures() > 0 {
							b.Fatalf("%s: %v", w.name, r)
						}
						if r.Rate > best[w.name] {
							best[w.name], p99[w.name] = r.Rate, r.P99
						}
					}
				}
			}
			for _, w := range ways {
				b.ReportMetric(best[w.name], w.name+"-req/s")
				b.ReportMetric(p99[w.name].Seconds()*1000, w.name+"-p99-ms")
				if w.than != "" {
					b.ReportMetric(best[w.name]/best[w.than], w.name+"/"+w.than)
				}
			}
		})
	}
}

func middle(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}

// openWays starts the task and the clients, and waits until all of them serve.
func openWays(b *testing.B, s *nodetest.Swarm) []way {
	b.Helper()
	m1, w1, client := s.Node(b, "m1"), s.Node(b, "w1"), s.Add(b, "client", "")
	docker := m1.CLI(b, s.Docker)
	docker.Run("network", "create", "-d", "overlay", "--attachable", "front")
	docker.Run("service", "create", "--detach=false", "-q", "--name", "web", "--network", "front", "-p", "8080:80",
		"--publish", "mode=host,published=8081,target=80", "--constraint", "node.hostname==w1", "skep/hello")
	w1.CLI(b, s.Docker).Run("run", "-d", "--network", "host", "skep/hello")
	vip, task := virtualAddress(b, m1), taskAddress(b, m1)
	ways := []way{
		{"bare", client, client.Do, "http://" + w1.Addr.String() + "/", ""},
		{"direct", client, client.Do, "http://" + w1.Addr.String() + ":8081/", "bare"},
		{"local", client, client.Do, "http://" + w1.Addr.String() + ":8080/", "direct"},
		{"remote", client, client.Do, "http://" + m1.Addr.String() + ":8080/", "direct"},
	}
	for _, n := range []*nodetest.Node{w1, m1} {
		name := map[*nodetest.Node]string{w1: "beside", m1: "across"}[n]
		ways = append(ways,
			inside(b, n, s.Docker, way{name: name, url: "http://" + task + "/"}),
			inside(b, n, s.Docker, way{name: name + "-vip", url: "http://" + vip + "/", than: name}))
	}
	for _, w := range ways[:4] {
		every(b, func() bool { return fetch(b.Context(), client.Client(), w.url) == nil })
	}
	return ways
}

// inside makes a client of its own for a way: connections to a task's own address
// and by its service's are in each other's way in one.
func inside(b *testing.B, n *nodetest.Node, docker string, w way) way {
	b.Helper()
	box := guest(b, n.CLI(b, docker), "front")
	w.client, w.do = n, func(f func() error) error { return n.DoInside(box, f) }
	every(b, func() bool { return fetch(b.Context(), n.Container(box), w.url) == nil })
	return w
}

// guest is a container that does nothing on a network.
func guest(b *testing.B, docker *nodetest.CLI, network string) (id string) {
	b.Helper()
	docker.LoadBusybox()
	return strings.TrimSpace(docker.Run("run", "-d", "--network", network, "busybox", "sleep", "100000"))
}

// taskAddress is that of the only task on its first network.
func taskAddress(b *testing.B, m *nodetest.Node) string {
	b.Helper()
	var tasks []struct {
		NetworksAttachments []struct {
			Network   struct{ Spec struct{ Name string } }
			Addresses []string
		}
	}
	if err := ask(m, "/tasks", &tasks); err != nil {
		b.Fatal(err)
	}
	for _, n := range tasks[0].NetworksAttachments {
		if n.Network.Spec.Name == "front" {
			addr, _, _ := strings.Cut(n.Addresses[0], "/")
			return addr
		}
	}
	b.Fatalf("no address among %+v", tasks)
	return ""
}

// BenchmarkRunOnNetwork is `docker run` of a program that ends at once, on no
// network, on the node's bridge, and on a network of the swarm. What is more
// than with none is the network's.
func BenchmarkRunOnNetwork(b *testing.B) {
	s := nodetest.NewSwarm(b, nodetest.Binary(b), dockerCLI(b))
	s.Form(b, "m1", "w1")
	docker := s.Node(b, "m1").CLI(b, s.Docker)
	docker.Run("network", "create", "-d", "overlay", "--attachable", "overlay")
	// The first makes the network on the node.
	guest(b, docker, "overlay")
	took := map[string][]time.Duration{}
	networks := []string{"none", "bridge", "overlay"}
	for b.Loop() {
		for range 10 {
			for _, n := range networks {
				began := time.Now()
				docker.Run("run", "--rm", "--network", n, "busybox", "true")
				took[n] = append(took[n], time.Since(began))
			}
		}
	}
	for _, n := range networks {
		b.ReportMetric(middle(took[n]).Seconds()*1000, n+"-ms")
	}
}

package appliance_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"skep/appliance/nodetest"
)

var swarmKills = flag.Int("swarm-kills", 200, "how often TestSwarmCrash_LosesNoAcknowledgedWrite kills a manager")

// TestSwarmScripts drives real nodes, each on a machine of its own, by the real
// docker command line.
func TestSwarmScripts(t *testing.T) {
	nodetest.SwarmScripts(t, "testdata/swarm", nodetest.Binary(t), dockerCLI(t))
}

// TestSwarmCrash_LosesNoAcknowledgedWrite kills managers of three, one or two
// at a time, whatever they do, while clients write through all of them.
func TestSwarmCrash_LosesNoAcknowledgedWrite(t *testing.T) {
	s := nodetest.NewSwarm(t, nodetest.Binary(t), dockerCLI(t))
	s.Form(t, "m1", "m2", "m3")
	var writers []*writer
	var running sync.WaitGroup
	stop := make(chan struct{})
	for i, n := range s.Nodes() {
		client := n.API()
		client.Timeout = 10 * time.Second
		w := &writer{url: "http://skep", client: client, acked: map[string]bool{}}
		writers = append(writers, w)
		for k := range 2 {
			running.Go(func() { w.run(i, k, stop) })
		}
	}
	began := time.Now()
	for range *swarmKills {
		victims := rand.Perm(3)[:1]
		if rand.IntN(10) == 0 {
			victims = rand.Perm(3)[:2]
		}
		for _, v := range victims {
			s.Nodes()[v].Kill(t)
		}
		time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
		for _, v := range victims {
			s.Nodes()[v].Launch(t)
		}
		// Some are killed again while they boot, or before there is a leader.
		time.Sleep(time.Duration(rand.IntN(800)) * time.Millisecond)
	}
	took := time.Since(began)
	for _, n := range s.Nodes() {
		n.AwaitReady(t)
	}
	close(stop)
	running.Wait()
	acked := map[string]bool{}
	for _, w := range writers {
		maps.Copy(acked, w.acked)
	}
	var first map[string]bool
	for i, w := range writers {
		w.client.Timeout = time.Minute
		have := w.list(t)
		if first == nil {
			first = have
		}
		if !maps.Equal(have, first) {
			t.Errorf("manager %d has %d objects, manager 1 has %d, or others", i+1, len(have), len(first))
		}
		for name := range acked {
			if !have[name] {
				t.Errorf("manager %d lost %s", i+1, name)
			}
		}
	}
	t.Logf("%d kills in %v, %d acknowledged writes", *swarmKills, took, len(acked))
	if len(acked) < 5**swarmKills {
		t.Errorf("only %d writes were acknowledged: the test shows nothing", len(acked))
	}
}

// seen is a node as another one sees it.
type seen struct {
	ID            string
	Description   struct{ Hostname string }
	Status        struct{ State string }
	ManagerStatus struct {
		Leader       bool
		Reachability string
	}
}

// ask decodes what a node answers to a GET.
func ask(n *nodetest.Node, path string, into any) error {
	client := n.API()
	defer client.CloseIdleConnections()
	client.Timeout = 5 * time.Second
	resp, err := client.Get("http://skep" + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// nodesSeen are the nodes as n sees them, by host name; none if it does not answer.
func nodesSeen(n *nodetest.Node) map[string]seen {
	var list []seen
	if ask(n, "/nodes", &list) != nil {
		return nil
	}
	nodes := map[string]seen{}
	for _, s := range list {
		nodes[s.Description.Hostname] = s
	}
	return nodes
}

// leader is the node that leads, as from sees it, once there is one.
func leader(tb testing.TB, s *nodetest.Swarm, from *nodetest.Node) (lead *nodetest.Node) {
	tb.Helper()
	if !nodetest.Eventually(func() bool {
		for name, n := range nodesSeen(from) {
			if n.ManagerStatus.Leader {
				lead = s.Node(tb, name)
			}
		}
		return lead != nil
	}) {
		tb.Fatalf("%s sees no leader", from.Name)
	}
	return lead
}

// another is a manager that is none of these.
func another(s *nodetest.Swarm, not ...*nodetest.Node) *nodetest.Node {
next:
	for _, n := range s.Nodes() {
		for _, o := range not {
			if n == o {
				continue next
			}
		}
		if strings.HasPrefix(n.Name, "m") {
			return n
		}
	}
	return nil
}

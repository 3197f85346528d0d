package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"skep/admin/engine"
	"skep/store"
	"skep/store/object"
)

// checkedNetworks are a node's, of which check tells.
type checkedNetworks struct {
	networkStore
	check func(ctx context.Context, id string) (object.NodeCheck, error)
}

func (c checkedNetworks) Check(ctx context.Context, id string) (object.NodeCheck, error) {
	return c.check(ctx, id)
}

// sees is a node that knows these tasks, and how they are.
func sees(results map[string]object.CheckResult, faults ...string) func(context.Context, string) (object.NodeCheck, error) {
	return func(_ context.Context, id string) (object.NodeCheck, error) {
		c := object.NodeCheck{Node: "whoever", Version: 7, Asker: "net " + id, Faults: faults}
		for task, r := range results {
			c.Endpoints = append(c.Endpoints, object.EndpointCheck{ID: task, Name: "web.1." + task, Result: r})
		}
		return c, nil
	}
}

// checkPair is a pair with a network on which the pair's task and a task of the
// manager's are.
func checkPair(t *testing.T, far func(context.Context, string) (object.NodeCheck, error)) (p *pair, net *object.Network, own *object.Task) {
	t.Helper()
	p = newPairWith(t, func(c *engine.Config) { c.Networks = checkedNetworks{check: far} })
	net = &object.Network{Network: swarm.Network{ID: object.NewID()}}
	net.Spec.Name = "front"
	at := object.TaskNetwork{ID: net.ID, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.9.3/24")}}
	task := p.task.Clone().(*object.Task)
	task.Networks = []object.TaskNetwork{at}
	own = &object.Task{
		ID: object.NewID(), ServiceID: p.task.ServiceID, Slot: 2, NodeID: p.members.Info(t.Context()).NodeID,
		DesiredState: swarm.TaskStateRunning, Status: swarm.TaskStatus{State: swarm.TaskStateRunning},
		Networks: []object.TaskNetwork{{ID: net.ID, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.9.4/24")}}},
	}
	s := p.members.store.Snapshot()
	now, _ := s.Tasks.Get(task.ID)
	task.Meta = now.Meta
	p.members.store.Write(t, func(tx *store.Tx) {
		tx.Create(net)
		tx.Update(task)
		tx.Create(own)
	})
	return p, net, own
}

func (p *pair) check(t *testing.T, ref string) (c object.NetworkCheck) {
	t.Helper()
	status, text := p.near.call(t, "GET /skep/networks/"+ref+"/check", "")
	if err := json.Unmarshal([]byte(text), &c); err != nil || status != http.StatusOK {
		t.Fatalf("check: %d %s", status, text)
	}
	return c
}

// told is a check as text.
func told(c object.NetworkCheck) string {
	var b strings.Builder
	for _, n := range c.Nodes {
		fmt.Fprintf(&b, "%s %q %d %q\n", n.Hostname, n.Unavailable, n.Version, n.Faults)
		for _, e := range n.Endpoints {
			fmt.Fprintf(&b, "  %s: %s %s\n", e.Name, e.Result, e.Reason)
		}
	}
	return b.String()
}

func TestNetworkCheck_AsksAllNodesThatHaveTheNetwork(t *testing.T) {
	results := map[string]object.CheckResult{}
	p, net, own := checkPair(t, sees(results, "a fault"))
	results[p.task.ID] = object.CheckOK
	for _, ref := range []string{"front", net.ID, net.ID[:8]} {
		c := p.check(t, ref)
		if c.Name != "front" || c.ID != net.ID || len(c.Nodes) != 2 {
			t.Fatalf("got %+v", c)
		}
		// This manager's own networks do not know it; the worker does not know the
		// other task.
		want := fmt.Sprintf("%s \"network %s is not on this node\" 0 []\nw1 \"\" 7 [\"a fault\"]\n  web.1.%s: ok \n  web.2.%s: not programmed the node does not know of it\n",
			c.Nodes[0].Hostname, net.ID, p.task.ID, own.ID)
		if diff := cmp.Diff(want, told(c)); diff != "" {
			t.Error(diff)
		}
		if c.Nodes[1].Node != p.task.NodeID || c.Nodes[1].Asker != "net "+net.ID {
			t.Errorf("got %+v", c.Nodes[1])
		}
	}
	if status, text := p.near.call(t, "GET /skep/networks/bridge/check", ""); status != http.StatusBadRequest || !strings.Contains(text, "not the swarm's") {
		t.Errorf("got %d %s", status, text)
	}
	if status, text := p.near.call(t, "GET /skep/networks/nosuch/check", ""); status != http.StatusNotFound || !strings.Contains(text, "network nosuch not found") {
		t.Errorf("got %d %s", status, text)
	}
}

func TestNetworkCheck_SaysWhoDoesNotAnswerAndWaitsForNobody(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	p, _, _ := checkPair(t, func(ctx context.Context, _ string) (object.NodeCheck, error) {
		<-release // deaf to ctx, too
		return object.NodeCheck{}, errors.New("late")
	})
	began := time.Now()
	if got := p.check(t, "front").Nodes[1]; got.Unavailable != "it does not answer" || got.Hostname != "w1" {
		t.Errorf("got %+v", got)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("took %v", took)
	}
	p.connect = errors.New("no session")
	if got := p.check(t, "front").Nodes[1]; got.Unavailable != "no session" {
		t.Errorf("got %+v", got)
	}
	s := p.members.store.Snapshot()
	n, _ := s.Nodes.Get(p.task.NodeID)
	down := n.Clone().(*object.Node)
	down.Status.State = swarm.NodeStateDown
	p.members.store.Write(t, func(tx *store.Tx) { tx.Update(down) })
	if got := p.check(t, "front").Nodes[1]; got.Unavailable != "it is down" {
		t.Errorf("got %+v", got)
	}
}

func TestNetworkCheck_AWorkerAnswersForItself(t *testing.T) {
	n := newNodeWith(t, func(c *engine.Config) {
		c.Swarm = inSwarm{id: "n7"}
		c.Networks = checkedNetworks{check: sees(map[string]object.CheckResult{"t1": object.CheckSilent})}
	})
	status, text := n.call(t, "GET /skep/networks/front/check", "")
	var c object.NetworkCheck
	if err := json.Unmarshal([]byte(text), &c); err != nil || status != 200 || len(c.Nodes) != 1 || c.Nodes[0].Well() || c.Nodes[0].Asker != "net front" {
		t.Errorf("got %d %s %v", status, text, err)
	}
}

func TestNetworkHealth(t *testing.T) {
	m := newManager(t)
	m.initialise(t)
	if status, text := (&node{http: m.http.Transport.(*http.Transport)}).call(t, "GET /skep/networks", ""); status != 200 || text != `{"Balancer":"nft","Encrypts":false,"Repaired":7}` {
		t.Errorf("got %d %s", status, text)
	}
}

func TestService_TellsWhatUsersMayNotExpect(t *testing.T) {
	m := newManager(t)
	m.initialise(t)
	n := &node{http: m.http.Transport.(*http.Transport)}
	spec := func(label string) swarm.ServiceSpec {
		s := swarm.ServiceSpec{Annotations: swarm.Annotations{Name: "web", Labels: map[string]string{object.LabelSource: label}}}
		s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "nginx"}
		return s
	}
	body, err := json.Marshal(spec("keep"))
	if err != nil {
		t.Fatal(err)
	}
	if status, text := n.call(t, "POST /services/create", string(body)); status != http.StatusBadRequest || !strings.Contains(text, `label skep.ingress.source: \"keep\" is neither \"preserve\" nor \"snat\"`) {
		t.Errorf("got %d %s", status, text)
	}
	for label, want := range map[string]string{
		object.SourceSNAT:     `"Skep":{"SourceAddress":"snat: the label skep.ingress.source says so","Unpublished":"1 of 2 published ports: the routing mesh carries tcp and udp"}`,
		object.SourcePreserve: "",
	} {
		o := &object.Service{Service: swarm.Service{ID: object.NewID(), Spec: spec(label)}}
		o.Spec.Name = "web-" + label
		o.Endpoint.Ports = []swarm.PortConfig{{Protocol: network.TCP, PublishedPort: 80, TargetPort: 80}}
		if want != "" {
			o.Endpoint.Ports = append(o.Endpoint.Ports, swarm.PortConfig{Protocol: network.SCTP, PublishedPort: 80, TargetPort: 80})
		}
		m.store.Write(t, func(tx *store.Tx) { tx.Create(o) })
		_, text := n.call(t, "GET /services/"+o.ID, "")
		if want == "" && strings.Contains(text, `"Skep"`) || !strings.Contains(text, want) || !strings.Contains(text, `"Spec":{`) {
			t.Errorf("%s: got %s", label, text)
		}
	}
}

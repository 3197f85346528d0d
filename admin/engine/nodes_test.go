package engine_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
)

// addNode writes a node of words: worker, or manager with leader, reachable or
// unreachable; ready, down or disconnected; a label k=v.
func (m *manager) addNode(t *testing.T, name, words string) {
	t.Helper()
	n := &object.Node{}
	n.ID, n.Description.Hostname, n.Status.State = "id-"+name, name, swarm.NodeStateReady
	n.Spec.Role, n.Spec.Availability = swarm.NodeRoleWorker, swarm.NodeAvailabilityActive
	for w := range strings.FieldsSeq(words) {
		switch w {
		case "worker":
		case "manager":
			n.Spec.Role, n.ManagerStatus = swarm.NodeRoleManager, &swarm.ManagerStatus{Addr: "192.168.78.9:2377"}
		case "demoted":
			n.Spec.Role = swarm.NodeRoleWorker
		case "leader":
			n.ManagerStatus.Leader, n.ManagerStatus.Reachability = true, swarm.ReachabilityReachable
		case "reachable", "unreachable":
			n.ManagerStatus.Reachability = swarm.Reachability(w)
		case "ready", "down", "disconnected", "unknown":
			n.Status.State = swarm.NodeState(w)
		default:
			k, v, _ := strings.Cut(w, "=")
			n.Spec.Labels = map[string]string{k: v}
		}
	}
	m.store.Write(t, func(tx *store.Tx) { tx.Create(n) })
}

// demote asks for a node to be a worker.
func (m *manager) demote(t *testing.T, name string) string {
	t.Helper()
	var n swarm.Node
	m.ok(t, "GET", "/nodes/"+name, "", &n)
	code, _, body := m.call(t, "POST", fmt.Sprintf("/nodes/%s/update?version=%d", n.ID, n.Version.Index), `{"Role":"worker","Availability":"active"}`)
	return fmt.Sprint(code, " ", strings.TrimSpace(body))
}

func TestNodes_Demotion(t *testing.T) {
	const (
		done = "200 "
		last = `400 {"message":"attempting to demote the last manager of the swarm"}`
		lost = `400 {"message":"can't remove member from the raft: this would result in a loss of quorum"}`
	)
	tests := []struct{ name, b, c, d, demote, want string }{
		{"the last", "worker", "worker", "worker", "node1", last},
		{"one of two", "manager reachable", "worker", "worker", "node1", done},
		{"the one of two that can be reached", "manager unreachable", "worker", "worker", "node1", lost},
		{"the other", "manager unreachable down", "worker", "worker", "b", done},
		{"one of three", "manager reachable", "manager reachable", "worker", "b", done},
		{"one of two that are left of three", "manager reachable", "manager unreachable", "worker", "b", lost},
		{"the one that is lost of three", "manager reachable", "manager unreachable", "worker", "c", done},
		{"one of three that are left of four", "manager reachable", "manager reachable", "manager unreachable", "c", done},
		{"one that is no replica yet", "manager unreachable", "manager unreachable", "manager", "d", done},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := initialised(t)
			m.addNode(t, "b", tt.b)
			m.addNode(t, "c", tt.c)
			m.addNode(t, "d", tt.d)
			if got := m.demote(t, tt.demote); got != tt.want {
				t.Errorf("demote %s: got %q, want %q", tt.demote, got, tt.want)
			}
			n, err := m.store.Snapshot().Nodes.Find(tt.demote)
			if err != nil {
				t.Fatal(err)
			}
			if (n.Spec.Role == swarm.NodeRoleWorker) != (tt.want == done) {
				t.Errorf("the role is %s after %q", n.Spec.Role, tt.want)
			}
		})
	}
}

func TestNodes_Removal(t *testing.T) {
	member := func(name string) string {
		return fmt.Sprintf("400 node id-%s is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal", name)
	}
	tests := []struct {
		words string
		force bool
		want  string
	}{
		{"worker", false, "400 node id-b is not down and can't be removed"},
		{"worker", true, "200"},
		{"worker down", false, "200"},
		{"worker disconnected", false, "200"},
		{"manager reachable", true, member("b")},
		{"manager unreachable down", true, member("b")},
		{"manager down", true, member("b")},
		{"manager reachable down demoted", true, member("b")}, // the roles loop is not done with it
	}
	for _, tt := range tests {
		m := initialised(t)
		m.addNode(t, "b", tt.words)
		path := "/nodes/b"
		if tt.force {
			path += "?force=1"
		}
		code, _, body := m.call(t, "DELETE", path, "")
		got := strings.TrimSpace(fmt.Sprint(code, " ", strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(body), `{"message":"`), `"}`)))
		if got != tt.want {
			t.Errorf("remove %s, force %t: got %q, want %q", tt.words, tt.force, got, tt.want)
		}
		if _, there := m.store.Snapshot().Nodes.Get("id-b"); there == (tt.want == "200") {
			t.Errorf("remove %s, force %t: the node is there: %t", tt.words, tt.force, there)
		}
	}
}

func TestNodes_ListAndFilters(t *testing.T) {
	m := initialised(t)
	m.addNode(t, "m2", "manager unreachable down")
	m.addNode(t, "m3", "manager")
	m.addNode(t, "w1", "worker zone=a")
	m.addNode(t, "w2", "worker disconnected")
	list := func(filters string) string {
		var nodes []swarm.Node
		m.ok(t, "GET", "/nodes?filters="+url.QueryEscape(filters), "", &nodes)
		var out []string
		for _, n := range nodes {
			text := n.Description.Hostname + " " + string(n.Status.State)
			if n.ManagerStatus != nil {
				text += fmt.Sprintf(" %t %s", n.ManagerStatus.Leader, n.ManagerStatus.Reachability)
			}
			out = append(out, text)
		}
		return strings.Join(out, ", ")
	}
	tests := map[string]string{
		`{"role":["manager"],"name":["m"]}`: "m2 down false unreachable, m3 ready",
		`{"role":{"worker":true}}`:          "w1 ready, w2 disconnected",
		`{"node.label":["zone=a"]}`:         "w1 ready",
		`{"node.label":["zone=b"]}`:         "",
		`{"id":["id-w"]}`:                   "w1 ready, w2 disconnected",
		`{"membership":["pending"]}`:        "",
		`{"name":["node1"]}`:                "node1 ready true reachable",
	}
	for filters, want := range tests {
		if diff := cmp.Diff(want, list(filters)); diff != "" {
			t.Errorf("nodes by %s (-want +got):\n%s", filters, diff)
		}
	}
}

func TestNodes_TasksOfANode(t *testing.T) {
	m := initialised(t)
	m.addNode(t, "w1", "worker")
	m.ok(t, "POST", "/services/create", `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"busybox"}}}`, nil)
	o := m.service(t, "web")
	for slot, node := range map[int]string{1: "id-w1", 2: m.nodeID} {
		task := &object.Task{ID: fmt.Sprint("t", slot), ServiceID: o.ID, SpecVersion: o.SpecVersion, Slot: slot, NodeID: node, DesiredState: swarm.TaskStateRunning}
		m.store.Write(t, func(tx *store.Tx) { tx.Create(task) })
	}
	for filters, want := range map[string]string{
		`{"node":["w1"]}`:                      "t1",
		`{"node":["w1","node1"]}`:              "t1 t2",
		`{"node":["w1"],"service":["web"]}`:    "t1",
		`{"node":["node1"],"service":["web"]}`: "t2",
	} {
		var tasks []swarm.Task
		m.ok(t, "GET", "/tasks?filters="+url.QueryEscape(filters), "", &tasks)
		got := map[string]bool{}
		for _, task := range tasks {
			got[task.ID] = true
		}
		for id := range strings.FieldsSeq(want) {
			if !got[id] {
				t.Errorf("tasks by %s: %s is not there", filters, id)
			}
		}
		if len(got) != len(strings.Fields(want)) || len(tasks) != len(got) {
			t.Errorf("tasks by %s: got %d, want %s", filters, len(tasks), want)
		}
	}
}

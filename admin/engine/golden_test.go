package engine_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
)

// golden reads what a Docker daemon answered, as JSON and as its type.
func golden(t *testing.T, name string, v any) (answer any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "golden", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []any{v, &answer} {
		if err := json.Unmarshal(text, to); err != nil {
			t.Fatal(err)
		}
	}
	return answer
}

// timeless is JSON without what the store fills in, and what the daemon numbers.
func timeless(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for _, key := range []string{"Version", "CreatedAt", "UpdatedAt", "Created", "EndpointID", "LocalLBIndex"} {
			delete(v, key)
		}
		if _, peer := v["IP"]; peer {
			delete(v, "Name") // a node has another name there
		}
		for _, e := range v {
			timeless(e)
		}
	case []any:
		for _, e := range v {
			timeless(e)
		}
	}
	return v
}

// TestGolden_ShowsObjectsAsDockerDoes puts into the store what a daemon showed
// and compares what we show of it, key for key.
func TestGolden_ShowsObjectsAsDockerDoes(t *testing.T) {
	var (
		service, full swarm.Service
		nodes         []swarm.Node
		tasks         []swarm.Task
		cluster       swarm.Swarm
	)
	wantService := golden(t, "service", &service)
	wantFull := golden(t, "service-ins", &full)
	wantNodes := golden(t, "nodes", &nodes)
	wantTasks := golden(t, "tasks", &tasks)
	wantCluster := golden(t, "swarm", &cluster)
	var networks, front, ingress any
	golden(t, "networks", &networks)
	golden(t, "network-front", &front)
	golden(t, "network-ingress", &ingress)

	m := newManager(t)
	if _, err := m.Init(t.Context(), swarm.InitRequest{Spec: cluster.Spec}); err != nil {
		t.Fatal(err)
	}
	s := m.store.Snapshot()
	own := s.Cluster()
	m.store.Write(t, func(tx *store.Tx) {
		// The recorded objects in place of the ones that were made here.
		tx.Delete(own)
		c := own.Clone().(*object.Cluster)
		c.ID = cluster.ID
		c.RootCA.Cert = []byte(cluster.TLSInfo.TrustRoot)
		tx.Create(c)
		for n := range s.Nodes.All() {
			tx.Delete(n)
		}
		tx.Create(&object.Node{Node: nodes[0], Slot: 1})
		for n := range s.Networks.All() {
			tx.Delete(n)
		}
		for i, at := range tasks[0].NetworksAttachments {
			tx.Create(&object.Network{Network: at.Network, VNI: uint32(4096 + i)})
		}
		o := &object.Service{Service: service}
		tx.Create(o)
		tx.Create(&object.Revision{ServiceID: o.ID, Service: o.Spec.Annotations, Spec: tasks[0].Spec, Endpoint: o.Spec.EndpointSpec})
	})
	web, _ := m.store.Snapshot().Services.Get(service.ID)
	m.nodeID = nodes[0].ID
	m.store.Write(t, func(tx *store.Tx) {
		for _, task := range tasks {
			o := &object.Task{ID: task.ID, ServiceID: task.ServiceID, SpecVersion: web.SpecVersion, Slot: task.Slot, NodeID: task.NodeID, DesiredState: task.DesiredState, Status: task.Status}
			for _, at := range slices.Backward(task.NetworksAttachments) { // the routing mesh is a task's last
				o.Networks = append(o.Networks, object.TaskNetwork{ID: at.Network.ID, Addresses: at.Addresses})
			}
			tx.Create(o)
		}
	})
	for path, want := range map[string]any{
		"/services/web?insertDefaults=false": wantService,
		"/services/web?insertDefaults=true":  wantFull,
		"/nodes":                             wantNodes,
		"/tasks":                             wantTasks,
		"/swarm":                             wantCluster,
		"/networks?filters={%22scope%22:[%22swarm%22]}": networks,
		"/networks/front?verbose=true":                  front,
		"/networks/ingress":                             ingress,
	} {
		var got any
		m.ok(t, "GET", path, "", &got)
		if diff := cmp.Diff(timeless(want), timeless(got)); diff != "" {
			t.Errorf("%s (-Docker +Skep):\n%s", path, diff)
		}
	}
}

package membership_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/appliance/wire/control/controltest"
	"skep/pki"
	"skep/store"
	"skep/store/object"
)

// authorised says who may do what at the control port: every route is here.
func authorised() []string {
	return []string{
		"anonymous POST /a/v1/join",
		"anonymous POST /a/v1/reenrol",
		"manager POST /m/v1/guests/attach",
		"manager POST /m/v1/guests/list",
		"manager POST /m/v1/guests/release",
		"manager POST /m/v1/nodes/{id}/connect",
		"manager POST /m/v1/propose",
		"manager POST /m/v1/readindex",
		"manager POST /m/v1/renew",
		"manager POST /m/v1/session",
		"manager POST /m/v1/streams/{id}",
		"worker POST /w/v1/guests/attach",
		"worker POST /w/v1/guests/list",
		"worker POST /w/v1/guests/release",
		"worker POST /w/v1/renew",
		"worker POST /w/v1/session",
		"worker POST /w/v1/streams/{id}",
	}
}

func TestMatrix(t *testing.T) {
	w := &world{T: t}
	m1 := w.add("m1")
	m1.init()
	table := m1.Table()
	var rows []string
	for _, r := range table {
		rows = append(rows, string(r.Class)+" "+r.Pattern)
	}
	slices.Sort(rows)
	if diff := cmp.Diff(authorised(), rows); diff != "" {
		t.Errorf("routes (-authorised +served):\n%s", diff)
	}

	p, err := m1.Store(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cluster := p.Snapshot().Cluster()
	root, err := pki.ParseRoot(cluster.RootCA.Cert, cluster.RootCA.Key)
	if err != nil {
		t.Fatal(err)
	}
	// The demoted one may show no certificate from before now.
	old := p.Snapshot().Index
	tx := store.Begin(p.Snapshot())
	for id, role := range map[string]swarm.NodeRole{"w9": swarm.NodeRoleWorker, "m9": swarm.NodeRoleManager, "d9": swarm.NodeRoleWorker} {
		n := &object.Node{}
		n.ID, n.Spec.Role, n.Spec.Availability = id, role, swarm.NodeAvailabilityActive
		n.Status.State = swarm.NodeStateDown
		if id == "d9" {
			n.MinGeneration = old + 1
		}
		tx.Create(n)
	}
	if _, err := p.Propose(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	self := m1.Identity()
	cast := controltest.Cast{
		Swarm:  &controltest.Swarm{Root: root, Cluster: self.Cluster, Epoch: self.Epoch},
		Worker: "w9", Manager: "m9", Removed: "gone", Demoted: "d9",
		Generation: old + 1, Old: old,
	}
	controltest.Matrix(t, wire.Peer{NodeID: self.NodeID, Addr: m1.addr + ":2377"}, table, cast.Callers(t))
}

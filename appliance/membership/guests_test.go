package membership_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
)

// addNetwork makes a network of the swarm.
func (n *node) addNetwork(name string, attachable bool) {
	n.t.Helper()
	p, err := n.Store(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	tx := store.Begin(p.Snapshot())
	o := &object.Network{}
	o.ID = object.NewID()
	o.Spec = swarm.NetworkSpec{DriverConfiguration: &swarm.Driver{Name: "overlay"}, Attachable: attachable, Scope: "swarm", IPAMOptions: &swarm.IPAMOptions{}}
	o.Spec.Name = name
	o.IPAMOptions = &swarm.IPAMOptions{Driver: swarm.Driver{Name: "default"}}
	tx.Create(o)
	if _, err := p.Propose(n.t.Context(), tx); err != nil {
		n.t.Fatal(err)
	}
}

func guestOn(name string) *wire.GuestRequest {
	return &wire.GuestRequest{ID: object.NewID(), ContainerID: strings.Repeat("c", 64), Name: "box", Network: name}
}

// A container of a worker, of a follower and of the leader gets its place, and
// nodes have no say in each other's.
func TestGuests_OfAllNodes(t *testing.T) {
	w := &world{T: t}
	m1, m2, w1 := w.add("m1"), w.add("m2"), w.add("w1")
	if _, err := w1.AttachGuest(t.Context(), guestOn("front")); !errdefs.IsNotFound(err) {
		t.Errorf("outside of a swarm: %v", err)
	}
	m1.init()
	m2.join(m1.tokens().Manager, m1)
	w1.join(m1.tokens().Worker, m1)
	m1.addNetwork("front", true)
	m1.addNetwork("back", false)

	seen := map[string]bool{}
	var first *wire.GuestRequest
	for _, n := range []*node{m1, m2, w1} {
		r := guestOn("front")
		p, err := n.AttachGuest(t.Context(), r)
		if err != nil {
			t.Fatalf("%s: %v", n.name, err)
		}
		if len(p.Addresses) == 0 || seen[p.Addresses[0].String()] || p.NetworkName != "front" {
			t.Errorf("%s: %+v", n.name, p)
		}
		seen[p.Addresses[0].String()] = true
		if l, err := n.ListGuests(t.Context()); err != nil || !slices.Equal(l.IDs, []string{r.ID}) {
			t.Errorf("%s has %v, %v", n.name, l, err)
		}
		if first == nil {
			first = r
		}
		for network, is := range map[string]func(error) bool{"back": errdefs.IsPermissionDenied, "nope": errdefs.IsNotFound} {
			_, err := n.AttachGuest(t.Context(), guestOn(network))
			want := map[string]string{"back": "network back not manually attachable", "nope": "network nope not found"}[network]
			if !is(err) || err.Error() != want {
				t.Errorf("%s: %v", n.name, err)
			}
		}
	}
	if err := w1.ReleaseGuests(t.Context(), &wire.GuestRelease{IDs: []string{first.ID}}); err != nil {
		t.Error(err)
	}
	if l, err := m1.ListGuests(t.Context()); err != nil || !slices.Equal(l.IDs, []string{first.ID}) {
		t.Errorf("m1 has %v, %v after another node released its guest", l, err)
	}
	if err := m1.ReleaseGuests(t.Context(), &wire.GuestRelease{IDs: []string{first.ID}}); err != nil {
		t.Error(err)
	}
	if l, err := m1.ListGuests(t.Context()); err != nil || len(l.IDs) != 0 {
		t.Errorf("m1 has %v, %v", l, err)
	}
}

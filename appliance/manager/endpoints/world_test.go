package endpoints_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/endpoints"
	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

// world is a store, and a board that follows it when it is told to.
type world struct {
	*testing.T
	store *storetest.Local
	board *endpoints.Board
	after uint64
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{T: t, store: storetest.New(t), board: endpoints.NewBoard()}
}

// put creates an object, or replaces the one with its key.
func (w *world) put(objects ...object.Object) {
	w.Helper()
	w.store.Write(w.T, func(tx *store.Tx) {
		for _, o := range objects {
			was := tx.Base().Get(o.Kind(), o.Key())
			if was == nil {
				tx.Create(o)
				continue
			}
			*o.Metadata() = *was.Metadata()
			tx.Update(o)
		}
	})
}

func (w *world) remove(kind object.Kind, id string) {
	w.Helper()
	w.store.Write(w.T, func(tx *store.Tx) { tx.Delete(tx.Base().Get(kind, id)) })
}

func (w *world) follow() endpoints.News {
	ch := w.store.Since(w.after)
	w.after = ch.Snapshot.Index
	return w.board.Follow(ch)
}

func node(id string, state swarm.NodeState) *object.Node {
	n := &object.Node{DataPath: "192.0.2." + strings.TrimPrefix(id, "n"), Slot: int(id[len(id)-1] - '0')}
	n.ID, n.Status.State = id, state
	return n
}

func network(id string) *object.Network {
	n := &object.Network{VNI: 4096 + uint32(id[0])}
	n.ID, n.Spec.Name, n.Spec.Ingress = id, "name-"+id, id == "ingress"
	n.IPAMOptions = &swarm.IPAMOptions{Configs: []swarm.IPAMConfig{{
		Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.1"),
	}}}
	return n
}

func service(id string, networks ...string) *object.Service {
	s := &object.Service{SpecVersion: swarm.Version{Index: 1}}
	s.ID, s.Spec.Name = id, "web-"+id
	for _, n := range networks {
		s.Spec.TaskTemplate.Networks = append(s.Spec.TaskTemplate.Networks, swarm.NetworkAttachmentConfig{Target: n})
		s.Endpoint.VirtualIPs = append(s.Endpoint.VirtualIPs, swarm.EndpointVirtualIP{NetworkID: n, Addr: netip.MustParsePrefix("10.0.0.2/24")})
	}
	return s
}

func publish(s *object.Service) {
	s.Endpoint.Ports = []swarm.PortConfig{
		{Protocol: "tcp", TargetPort: 80, PublishedPort: 8080, PublishMode: swarm.PortConfigPublishModeIngress},
		{Protocol: "tcp", TargetPort: 81, PublishedPort: 8081, PublishMode: swarm.PortConfigPublishModeHost},
		{Protocol: "udp", TargetPort: 82, PublishedPort: 8082, PublishMode: swarm.PortConfigPublishModeIngress},
	}
}

func revision(service string) *object.Revision {
	return &object.Revision{ServiceID: service, SpecVersion: swarm.Version{Index: 1}, Service: swarm.Annotations{Name: "web-" + service}}
}

func task(id, service, node string, state, desired swarm.TaskState, networks ...string) *object.Task {
	t := &object.Task{ID: id, ServiceID: service, SpecVersion: swarm.Version{Index: 1}, Slot: 1, NodeID: node, DesiredState: desired}
	t.Status.State = state
	for _, n := range networks {
		t.Networks = append(t.Networks, object.TaskNetwork{ID: n, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.7/24")}, Aliases: []string{"alias"}})
	}
	return t
}

func guest(id, node, network string) *object.Guest {
	return &object.Guest{
		ID: id, NodeID: node, ContainerID: "0123456789abcdef", Name: "sh",
		Network: object.TaskNetwork{ID: network, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.9/24")}},
	}
}

// follower is a node that is told.
type follower struct {
	node   string
	cursor endpoints.Cursor
	view   *wire.View
	now    *wire.NetworkView
}

func newFollower(node string) *follower { return &follower{node: node, view: wire.NewView(nil)} }

func (f *follower) hear(tb testing.TB, b *endpoints.Board) *wire.NetworkView {
	tb.Helper()
	for _, part := range b.Since(f.node, &f.cursor) {
		v, err := f.view.Apply(part)
		if err != nil {
			tb.Fatalf("node %s: %v", f.node, err)
		}
		if v != nil {
			f.now = v
		}
	}
	return f.now
}

// text is a view in few words. Who is on no network does not care who else is there.
func text(v *wire.NetworkView) string {
	if len(v.Networks) == 0 {
		return "no networks\n"
	}
	var out []string
	for _, id := range slices.Sorted(maps.Keys(v.Hosts)) {
		h := v.Hosts[id]
		line := fmt.Sprintf("host %s %v %d", id, h.Address, h.Slot)
		if h.Down {
			line += " down"
		}
		out = append(out, line)
	}
	for _, id := range slices.Sorted(maps.Keys(v.Networks)) {
		m := v.Networks[id]
		out = append(out, fmt.Sprintf("network %s %s", id, m.Name))
		for _, s := range slices.Sorted(maps.Keys(m.Services)) {
			s := m.Services[s]
			out = append(out, strings.TrimRight(fmt.Sprintf("  service %s %s %v %v %s", s.ID, s.Name, s.VIPs, s.Published, s.Source), " "))
		}
		for _, e := range slices.Sorted(maps.Keys(m.Endpoints)) {
			e := m.Endpoints[e]
			out = append(out, fmt.Sprintf("  %s %s on %s %v %v %v %v", e.ID, e.State, e.Node, e.Addresses, e.Names, e.Aliases, e.Ports))
		}
	}
	return strings.Join(out, "\n") + "\n"
}

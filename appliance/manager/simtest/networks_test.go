package simtest_test

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
)

// network makes a network.
func (s *swarmed) network() {
	s.networks++
	n := &object.Network{}
	n.ID = fmt.Sprint("net", s.networks)
	n.Spec.Name, n.Spec.IPv6Enabled = n.ID, s.rng.IntN(3) == 0
	s.trace.Log("create %s", n.ID)
	s.write(func(tx *store.Tx) {
		if _, there := tx.Base().Networks.Get(n.ID); !there {
			tx.Create(n)
		}
	})
}

// removeNetwork removes a network that no service asks for, as the API does.
func (s *swarmed) removeNetwork() {
	pick := s.rng.IntN(max(1, s.networks)) + 1
	s.write(func(tx *store.Tx) {
		n, ok := tx.Base().Networks.Get(fmt.Sprint("net", pick))
		if !ok || n.PendingDelete {
			return
		}
		for o := range tx.Base().Services.All() {
			if slices.ContainsFunc(o.Spec.TaskTemplate.Networks, func(c swarm.NetworkAttachmentConfig) bool { return c.Target == n.ID }) {
				return
			}
		}
		s.trace.Log("remove %s", n.ID)
		tx.Unused(n)
		if !object.OnNetwork(tx.Base().Tasks.All(), n.ID) {
			tx.Delete(n)
			return
		}
		n = n.Clone().(*object.Network)
		n.PendingDelete = true
		tx.Update(n)
	})
}

// joinNetworks gives a spec some of the networks that are there, and stay.
func (s *swarmed) joinNetworks(tx *store.Tx, spec *swarm.ServiceSpec) {
	spec.TaskTemplate.Networks = nil
	for n := range tx.Base().Networks.All() {
		if !n.Spec.Ingress && !n.PendingDelete && s.rng.IntN(3) == 0 {
			spec.TaskTemplate.Networks = append(spec.TaskTemplate.Networks, swarm.NetworkAttachmentConfig{Target: n.ID})
			tx.There(n)
		}
	}
}

// onlyOnce reports what two have of which there is one.
func (s *swarmed) onlyOnce(snap *store.Snapshot) {
	owner := map[string]string{}
	own := func(what, who string) {
		if other := owner[what]; other != "" && other != who {
			s.trace.Violate("%s and %s both have %s", other, who, what)
		}
		owner[what] = who
	}
	address := func(network string, p netip.Prefix) string { return network + " " + p.Addr().String() }
	for n := range snap.Networks.All() {
		if n.VNI == 0 {
			continue
		}
		own(fmt.Sprint("number ", n.VNI), n.ID)
		for _, c := range n.IPAMOptions.Configs {
			own("subnet "+c.Subnet.String(), n.ID)
			own(n.ID+" "+c.Gateway.String(), "gateway")
		}
	}
	for o := range snap.Services.All() {
		for _, v := range o.Endpoint.VirtualIPs {
			own(address(v.NetworkID, v.Addr), o.Spec.Name)
		}
		for _, p := range o.Endpoint.Ports {
			own(fmt.Sprint("port ", p.PublishedPort), o.Spec.Name)
		}
	}
	for t := range snap.Tasks.All() {
		for _, n := range t.Networks {
			for _, a := range n.Addresses {
				if !object.Over(t) {
					own(address(n.ID, a), t.ID)
				}
			}
		}
	}
	for n := range snap.Nodes.All() {
		if n.Slot != 0 {
			own(fmt.Sprint("slot ", n.Slot), n.ID)
		}
	}
}

// addressed says which task or service lacks an address, and which network is
// left over; "" if all is well.
func (s *swarmed) addressed(snap *store.Snapshot) string {
	for n := range snap.Networks.All() {
		if n.VNI == 0 || n.Problem != "" {
			return fmt.Sprintf("%s has no subnet: %q", n.ID, n.Problem)
		}
		if n.PendingDelete {
			return n.ID + " is yet to go"
		}
	}
	for t := range snap.Tasks.All() {
		rev := snap.Revision(t.ServiceID, t.SpecVersion)
		if object.Over(t) || rev == nil {
			continue
		}
		want := len(rev.Spec.Networks)
		if rev.Endpoint != nil && len(rev.Endpoint.Ports) > 0 {
			want++
		}
		if len(t.Networks) != want {
			return fmt.Sprintf("task %s is on %d networks, not %d", t.ID, len(t.Networks), want)
		}
	}
	return ""
}

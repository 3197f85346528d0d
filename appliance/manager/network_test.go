package manager_test

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing/synctest"

	"github.com/moby/moby/api/types/swarm"
	"github.com/rogpeppe/go-internal/testscript"

	"skep/store"
	"skep/store/object"
)

// cmdNetwork makes a network, or marks it as removed: network NAME [SUBNET|rm].
func (w *world) cmdNetwork(ts *testscript.TestScript, args []string) {
	if args[len(args)-1] == "rm" {
		n, ok := w.store.Snapshot().Networks.Get(args[0])
		check(ts, ok, "no network %q", args[0])
		n = n.Clone().(*object.Network)
		n.PendingDelete = true
		w.store.Write(w.t, func(tx *store.Tx) { tx.Update(n) })
		synctest.Wait()
		return
	}
	n := &object.Network{}
	n.ID, n.Spec.Name, n.Spec.Attachable = args[0], args[0], true
	if len(args) == 2 {
		subnet, err := netip.ParsePrefix(args[1])
		ts.Check(err)
		n.Spec.IPAMOptions = &swarm.IPAMOptions{Configs: []swarm.IPAMConfig{{Subnet: subnet}}}
	}
	w.store.Write(w.t, func(tx *store.Tx) { tx.Create(n) })
	synctest.Wait()
}

// cmdNetworks prints what was allocated to networks.
func (w *world) cmdNetworks(ts *testscript.TestScript, _ []string) {
	for n := range w.store.Snapshot().Networks.All() {
		line := n.Spec.Name + " " + n.Problem
		if n.IPAMOptions != nil {
			line = fmt.Sprintf("%s %s via %s number %d", n.Spec.Name, n.IPAMOptions.Configs[0].Subnet, n.IPAMOptions.Configs[0].Gateway, n.VNI)
		}
		if n.PendingDelete {
			line += ", to go"
		}
		fmt.Fprintln(ts.Stdout(), strings.TrimSpace(line))
	}
}

// cmdAddresses prints a service's virtual addresses and those of its tasks that
// have not ended.
func (w *world) cmdAddresses(ts *testscript.TestScript, args []string) {
	s := w.service(ts, one(ts, args))
	for _, v := range s.Endpoint.VirtualIPs {
		fmt.Fprintf(ts.Stdout(), "%s %s %s\n", s.Spec.Name, v.NetworkID, v.Addr)
	}
	tasks := slices.Collect(w.store.Snapshot().Tasks.By(store.ByService, s.ID))
	slices.SortFunc(tasks, func(a, b *object.Task) int {
		return cmp.Or(cmp.Compare(a.Slot, b.Slot), a.CreatedAt.Compare(b.CreatedAt))
	})
	for _, t := range tasks {
		if object.Over(t) {
			continue
		}
		line := fmt.Sprintf("%s.%d %s", s.Spec.Name, t.Slot, t.Status.State)
		for _, n := range t.Networks {
			line += fmt.Sprintf(" %s %s", n.ID, n.Addresses[0])
		}
		fmt.Fprintln(ts.Stdout(), line)
	}
}

// cmdGuest makes a guest on a network of a node, or prints what became of it:
// guest NAME [NODE NETWORK].
func (w *world) cmdGuest(ts *testscript.TestScript, args []string) {
	if len(args) == 3 {
		g := &object.Guest{ID: args[0], Name: args[0], NodeID: args[1], Network: object.TaskNetwork{ID: args[2]}}
		w.store.Write(w.t, func(tx *store.Tx) { tx.Create(g) })
		synctest.Wait()
		return
	}
	g, ok := w.store.Snapshot().Guests.Get(one(ts, args))
	if !ok {
		fmt.Fprintln(ts.Stdout(), "gone")
		return
	}
	fmt.Fprintln(ts.Stdout(), g.Network.Addresses, g.Problem)
}

// networksOf reads "a,b", or nothing, as what a service asks for.
func networksOf(v string) (out []swarm.NetworkAttachmentConfig) {
	for name := range strings.SplitSeq(v, ",") {
		if name != "" {
			out = append(out, swarm.NetworkAttachmentConfig{Target: name})
		}
	}
	return out
}

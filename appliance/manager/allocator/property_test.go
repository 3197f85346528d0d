package allocator_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/allocator"
	"skep/appliance/manager/loop"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

// life is a swarm in which things come and go in any order.
type life struct {
	t     *testing.T
	rng   *rand.Rand
	s     *storetest.Local
	alloc *allocator.Allocator
	prev  *store.Snapshot
	count int
}

func (l *life) id(kind string) string {
	l.count++
	return fmt.Sprintf("%s%04d", kind, l.count)
}

func (l *life) write(do func(tx *store.Tx)) { l.s.Write(l.t, do) }

// settle lets the allocator decide until it has nothing more to say. Some of
// its writes are lost, and sometimes another leader takes over.
func (l *life) settle() {
	l.t.Helper()
	for range 50 {
		if l.rng.IntN(20) == 0 {
			l.alloc, l.prev = allocator.New(), nil
		}
		var after uint64
		if l.prev != nil {
			after = l.prev.Index
		}
		ch := l.s.Since(after)
		ch.All = ch.All || l.prev == nil
		c, _ := l.alloc.Plan(l.prev, ch, time.Now())
		if c.Empty() {
			l.prev = ch.Snapshot
			l.check()
			return
		}
		all := true
		for rest := c.Update; len(rest) > 0; {
			n := min(len(rest), 1+l.rng.IntN(8))
			if l.rng.IntN(10) == 0 {
				all = false // somebody else was faster
				break
			}
			l.write(func(tx *store.Tx) {
				for _, o := range rest[:n] {
					tx.Update(o)
				}
			})
			rest = rest[n:]
		}
		if all {
			l.prev = ch.Snapshot
		}
		l.check()
	}
	l.t.Fatal("the allocator never comes to rest")
}

// check looks for what is there twice, or where it does not belong.
func (l *life) check() {
	l.t.Helper()
	snap := l.s.Snapshot()
	var subnets []netip.Prefix
	vnis, slots := map[uint32]string{}, map[int]string{}
	owner := map[string]string{}
	own := func(network string, a netip.Prefix, who string) {
		n, ok := snap.Networks.Get(network)
		if !ok {
			l.t.Fatalf("%s has an address of network %s, which is gone", who, network)
		}
		fits := false
		for _, c := range n.IPAMOptions.Configs {
			fits = fits || (c.Subnet.Contains(a.Addr()) && c.Subnet.Bits() == a.Bits() && (!c.Range.IsValid() || c.Range.Contains(a.Addr())))
		}
		if !fits {
			l.t.Fatalf("%s has %s, which network %s does not give", who, a, network)
		}
		k := network + " " + a.Addr().String()
		if other := owner[k]; other != "" {
			l.t.Fatalf("%s and %s both have %s", other, who, k)
		}
		owner[k] = who
	}
	for n := range snap.Networks.All() {
		if n.VNI == 0 {
			continue
		}
		if other := vnis[n.VNI]; other != "" {
			l.t.Fatalf("networks %s and %s have the same number", other, n.ID)
		}
		vnis[n.VNI] = n.ID
		for _, c := range n.IPAMOptions.Configs {
			for _, s := range subnets {
				if s.Overlaps(c.Subnet) {
					l.t.Fatalf("subnets %s and %s overlap", s, c.Subnet)
				}
			}
			subnets = append(subnets, c.Subnet)
			owner[n.ID+" "+c.Gateway.String()] = "gateway"
		}
		for _, a := range n.Auxiliary {
			owner[n.ID+" "+a.String()] = "auxiliary"
		}
	}
	for s := range snap.Services.All() {
		for _, v := range s.Endpoint.VirtualIPs {
			own(v.NetworkID, v.Addr, s.ID)
		}
	}
	for t := range snap.Tasks.All() {
		if object.Over(t) {
			continue
		}
		for _, n := range t.Networks {
			for _, a := range n.Addresses {
				own(n.ID, a, t.ID)
			}
		}
	}
	for g := range snap.Guests.All() {
		for _, a := range g.Network.Addresses {
			own(g.Network.ID, a, g.ID)
		}
	}
	for n := range snap.Nodes.All() {
		if n.Slot != 0 && slots[n.Slot] != "" {
			l.t.Fatalf("nodes %s and %s have the same slot", slots[n.Slot], n.ID)
		}
		slots[n.Slot] = n.ID
	}
}

func (l *life) createNetwork() {
	n := &object.Network{}
	n.ID = l.id("n")
	n.Spec.Name, n.Spec.Attachable, n.Spec.IPv6Enabled = n.ID, l.rng.IntN(3) > 0, l.rng.IntN(3) == 0
	c := swarm.IPAMConfig{Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(l.rng.IntN(2)), byte(l.rng.IntN(4)), 0}), 24+l.rng.IntN(5))}
	switch l.rng.IntN(3) {
	case 0:
		c.Range = netip.PrefixFrom(c.Subnet.Addr(), c.Subnet.Bits()+1)
		n.Auxiliary = map[string]netip.Addr{"router": c.Subnet.Addr().Next().Next()}
		fallthrough
	case 1:
		n.Spec.IPAMOptions = &swarm.IPAMOptions{Configs: []swarm.IPAMConfig{c}}
	}
	if l.rng.IntN(4) == 0 {
		n.Spec.DriverConfiguration = &swarm.Driver{Options: map[string]string{object.OptionVNI: fmt.Sprint(4096 + l.rng.IntN(3))}}
	}
	l.write(func(tx *store.Tx) { tx.Create(n) })
}

// removeNetwork removes one that nobody is on.
func (l *life) removeNetwork(n *object.Network) {
	snap := l.s.Snapshot()
	for s := range snap.Services.All() {
		for _, v := range s.Spec.TaskTemplate.Networks {
			if v.Target == n.ID {
				return
			}
		}
		for _, v := range s.Endpoint.VirtualIPs {
			if v.NetworkID == n.ID {
				return
			}
		}
	}
	for t := range snap.Tasks.All() {
		for _, v := range t.Networks {
			if v.ID == n.ID && !object.Over(t) {
				return
			}
		}
	}
	for g := range snap.Guests.All() {
		if g.Network.ID == n.ID {
			return
		}
	}
	l.write(func(tx *store.Tx) { tx.Delete(n) })
}

func (l *life) spec(name string) (spec swarm.ServiceSpec) {
	spec.Name = name
	for n := range l.s.Snapshot().Networks.All() {
		if !n.Spec.Ingress && l.rng.IntN(4) == 0 {
			spec.TaskTemplate.Networks = append(spec.TaskTemplate.Networks, swarm.NetworkAttachmentConfig{Target: n.ID, Aliases: []string{"db"}})
		}
	}
	spec.EndpointSpec = &swarm.EndpointSpec{}
	switch l.rng.IntN(4) {
	case 0:
		spec.EndpointSpec.Mode = swarm.ResolutionModeDNSRR
	case 1:
		spec.EndpointSpec.Ports = []swarm.PortConfig{{TargetPort: 80}}
	}
	return spec
}

func (l *life) createTask(svc *object.Service) {
	l.write(func(tx *store.Tx) {
		for range 1 + l.rng.IntN(12) {
			task := &object.Task{ID: l.id("t"), ServiceID: svc.ID, SpecVersion: svc.SpecVersion, DesiredState: swarm.TaskStateRunning}
			task.Status.State = swarm.TaskStateNew
			tx.Create(task)
		}
	})
}

// moveTask lets a task go on, or end, or be forgotten.
func (l *life) moveTask(task *object.Task) {
	task = task.Clone().(*object.Task)
	l.write(func(tx *store.Tx) {
		switch {
		case object.Over(task):
			tx.Delete(task)
		case task.Status.State == swarm.TaskStatePending && l.rng.IntN(3) > 0:
			task.Status.State = swarm.TaskStateRunning
			tx.Update(task)
		case task.DesiredState == swarm.TaskStateRunning:
			task.DesiredState = swarm.TaskStateShutdown
			tx.Update(task)
		default:
			task.Status.State = swarm.TaskStateShutdown
			tx.Update(task)
		}
	})
}

func (l *life) createGuest() {
	n := pick(l.rng, l.s.Snapshot().Networks)
	if n == nil || n.Spec.Ingress {
		return
	}
	g := &object.Guest{ID: l.id("g"), Network: object.TaskNetwork{ID: n.ID}}
	if n.VNI != 0 && l.rng.IntN(3) == 0 {
		a := n.IPAMOptions.Configs[0].Subnet.Addr()
		for range 1 + l.rng.IntN(6) {
			a = a.Next()
		}
		if r := n.IPAMOptions.Configs[0].Range; !r.IsValid() || r.Contains(a) {
			g.Wanted = []netip.Addr{a}
		}
	}
	l.write(func(tx *store.Tx) { tx.Create(g) })
}

func pick[T object.Object](rng *rand.Rand, t *store.Table[T]) (out T) {
	if t.Len() == 0 {
		return out
	}
	i := rng.IntN(t.Len())
	for o := range t.All() {
		if i--; i < 0 {
			return o
		}
	}
	return out
}

func (l *life) step() {
	snap := l.s.Snapshot()
	switch l.rng.IntN(14) {
	case 0:
		l.createNetwork()
	case 1:
		if n := pick(l.rng, snap.Networks); n != nil && !n.Spec.Ingress {
			l.removeNetwork(n)
		}
	case 2:
		l.write(func(tx *store.Tx) { store.CreateService(tx, l.spec(l.id("web")), nil) })
	case 3:
		if s := pick(l.rng, snap.Services); s != nil {
			l.write(func(tx *store.Tx) { store.UpdateService(tx, s, l.spec(s.Spec.Name), nil) })
		}
	case 4:
		if s := pick(l.rng, snap.Services); s != nil {
			l.write(func(tx *store.Tx) { tx.Delete(s) })
		}
	case 5, 6:
		if s := pick(l.rng, snap.Services); s != nil {
			l.createTask(s)
		}
	case 7:
		l.createGuest()
	case 8:
		if g := pick(l.rng, snap.Guests); g != nil {
			l.write(func(tx *store.Tx) { tx.Delete(g) })
		}
	case 9:
		n := &object.Node{}
		n.ID = l.id("node")
		l.write(func(tx *store.Tx) { tx.Create(n) })
	case 10:
		if n := pick(l.rng, snap.Nodes); n != nil {
			l.write(func(tx *store.Tx) { tx.Delete(n) })
		}
	default:
		for range 5 {
			if t := pick(l.rng, l.s.Snapshot().Tasks); t != nil {
				l.moveTask(t)
			}
		}
	}
	time.Sleep(time.Duration(l.rng.IntN(20)) * time.Second)
}

// TestPlan_GivesNothingTwiceAndLosesNothing is the property of the whole: in
// whatever order things come, change and go, and leaders with them, nothing is
// given to two; what can be given is given; and in the end all is free again.
func TestPlan_GivesNothingTwiceAndLosesNothing(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &life{t: t, rng: rand.New(rand.NewPCG(seed, 1)), s: swarmStore(t), alloc: allocator.New()}
				for range 150 {
					l.step()
					if l.rng.IntN(3) > 0 {
						l.settle()
					}
				}
				l.settle()
				l.nothingIsHeldBack()
				l.empty()
				l.wholeSubnet()
			})
		})
	}
}

// nothingIsHeldBack: when all has rested, a leader that knows nothing of the
// past finds nothing to give either.
func (l *life) nothingIsHeldBack() {
	l.t.Helper()
	time.Sleep(2 * time.Minute)
	l.write(func(tx *store.Tx) {
		n := &object.Network{}
		n.ID = l.id("n")
		n.Spec.Name = n.ID
		tx.Create(n)
	})
	l.settle()
	if c := decide(l.s); !c.Empty() {
		l.t.Fatalf("another leader would have given %d objects more", len(c.Update))
	}
}

func decide(s *storetest.Local) loop.Changes {
	c, _ := allocator.New().Plan(nil, s.Since(0), time.Now())
	return c
}

// empty removes all but the ingress network.
func (l *life) empty() {
	l.write(func(tx *store.Tx) {
		snap := l.s.Snapshot()
		for o := range snap.Tasks.All() {
			tx.Delete(o)
		}
		for o := range snap.Services.All() {
			tx.Delete(o)
		}
		for o := range snap.Guests.All() {
			tx.Delete(o)
		}
		for o := range snap.Nodes.All() {
			tx.Delete(o)
		}
		for o := range snap.Networks.All() {
			if !o.Spec.Ingress {
				tx.Delete(o)
			}
		}
	})
	l.settle()
	time.Sleep(2 * time.Minute)
}

// wholeSubnet gives the ingress network's every address: to one service and 252 tasks.
func (l *life) wholeSubnet() {
	l.t.Helper()
	l.write(func(tx *store.Tx) {
		s := store.CreateService(tx, swarm.ServiceSpec{EndpointSpec: &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}}}}, nil)
		for range 253 {
			task := &object.Task{ID: l.id("t"), ServiceID: s.ID, DesiredState: swarm.TaskStateRunning}
			task.Status.State = swarm.TaskStateNew
			tx.Create(task)
		}
	})
	l.settle()
	pending, reason := 0, ""
	for t := range l.s.Snapshot().Tasks.All() {
		if t.Status.State == swarm.TaskStatePending {
			pending++
		} else {
			reason = t.Status.Err
		}
	}
	if pending != 252 || !strings.HasPrefix(reason, "no address is free in network ingress (10.0.") {
		l.t.Fatalf("%d tasks have addresses, want 252; the other says %q", pending, reason)
	}
}

package allocator_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/allocator"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

// netOf reads "name key=value ...": subnets with subnet=PREFIX[,range=PREFIX][,gateway=ADDR].
func netOf(text string) *object.Network {
	fields := strings.Fields(text)
	n := &object.Network{Auxiliary: map[string]netip.Addr{}}
	n.ID, n.Spec.Name = fields[0], fields[0]
	n.Spec.IPAMOptions, n.Spec.DriverConfiguration = &swarm.IPAMOptions{}, &swarm.Driver{Options: map[string]string{}}
	for _, f := range fields[1:] {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "ipv6":
			n.Spec.IPv6Enabled = true
		case "attachable":
			n.Spec.Attachable = true
		case "vni":
			n.Spec.DriverConfiguration.Options[object.OptionVNI] = value
		case "aux":
			n.Auxiliary[value] = netip.MustParseAddr(value)
		case "subnet":
			parts := strings.Split(value, ",")
			c := swarm.IPAMConfig{Subnet: netip.MustParsePrefix(parts[0])}
			for _, p := range parts[1:] {
				switch k, v, _ := strings.Cut(p, "="); k {
				case "range":
					c.Range = netip.MustParsePrefix(v)
				case "gateway":
					c.Gateway = netip.MustParseAddr(v)
				}
			}
			n.Spec.IPAMOptions.Configs = append(n.Spec.IPAMOptions.Configs, c)
		}
	}
	return n
}

func showNetwork(n *object.Network) string {
	out := n.Spec.Name + ":"
	if n.Problem != "" {
		return out + " " + n.Problem
	}
	for _, c := range n.IPAMOptions.Configs {
		out += fmt.Sprintf(" %s via %s", c.Subnet, c.Gateway)
	}
	return out + fmt.Sprintf(" number %d", n.VNI)
}

func TestPlan_Networks(t *testing.T) {
	tests := []struct {
		name     string
		cluster  object.Cluster
		node     string // its address
		networks []string
		want     []string
	}{
		{
			name: "in turn", networks: []string{"a", "b", "c"},
			want: []string{"a: 10.0.0.0/24 via 10.0.0.1 number 4096", "b: 10.0.1.0/24 via 10.0.1.1 number 4097", "c: 10.0.2.0/24 via 10.0.2.1 number 4098"},
		},
		{
			name: "of the swarm's pools", cluster: object.Cluster{DefaultAddrPool: []string{"10.20.0.0/27", "10.30.0.0/16"}, SubnetSize: 27}, networks: []string{"a", "b"},
			want: []string{"a: 10.20.0.0/27 via 10.20.0.1 number 4096", "b: 10.30.0.0/27 via 10.30.0.1 number 4097"},
		},
		{
			name: "no more", cluster: object.Cluster{DefaultAddrPool: []string{"10.20.0.0/24"}, SubnetSize: 24}, networks: []string{"a", "b"},
			want: []string{"a: 10.20.0.0/24 via 10.20.0.1 number 4096", "b: address pools: no subnet is free"},
		},
		{
			name: "not around a node", node: "10.0.0.7", networks: []string{"a"},
			want: []string{"a: 10.0.1.0/24 via 10.0.1.1 number 4096"},
		},
		{
			name: "as asked", networks: []string{"a subnet=10.0.0.0/25,gateway=10.0.0.126 subnet=10.9.0.0/16,range=10.9.5.0/24 vni=70000", "b"},
			want: []string{"a: 10.0.0.0/25 via 10.0.0.126 10.9.0.0/16 via 10.9.0.1 number 70000", "b: 10.0.1.0/24 via 10.0.1.1 number 4096"},
		},
		{
			name: "asked for twice", networks: []string{"a subnet=10.9.0.0/24", "b subnet=10.9.0.128/25", "c vni=4096", "d vni=x"},
			want: []string{
				"a: 10.9.0.0/24 via 10.9.0.1 number 4096", "b: subnet 10.9.0.128/25 overlaps with one of network a",
				"c: VXLAN ID 4096 is in use by network a", `d: VXLAN ID "x" is not a number from 1 to 16777215`,
			},
		},
		{
			name: "the first host is spoken for", networks: []string{"a subnet=10.9.0.0/24 aux=10.9.0.1"},
			want: []string{"a: 10.9.0.0/24 via 10.9.0.2 number 4096"},
		},
		{
			name: "both families", networks: []string{"a ipv6", "b ipv6 subnet=fd00:9::/64", "c ipv6"},
			want: []string{
				"a: 10.0.0.0/24 via 10.0.0.1 ULA::/64 via ULA::1 number 4096",
				"b: fd00:9::/64 via fd00:9::1 10.0.1.0/24 via 10.0.1.1 number 4097",
				"c: 10.0.2.0/24 via 10.0.2.1 ULA:1::/64 via ULA:1::1 number 4098",
			},
		},
		{
			name: "nonsense", networks: []string{"a subnet=10.9.0.0/24,gateway=10.8.0.1", "b subnet=10.9.0.0/24,range=10.0.0.0/8", "c subnet=10.9.0.0/31"},
			want: []string{
				"a: no matching subnet for gateway 10.8.0.1", "b: range 10.0.0.0/8: not in subnet 10.9.0.0/24",
				"c: subnet 10.9.0.0/31: not a subnet of at least four addresses",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := storetest.New(t)
			s.Write(t, func(tx *store.Tx) {
				tt.cluster.ID = "c"
				tx.Create(&tt.cluster)
				n := &object.Node{DataPath: tt.node}
				n.ID = "node"
				tx.Create(n)
				for _, text := range tt.networks {
					tx.Create(netOf(text))
				}
			})
			plan(t, s)
			var got []string
			for n := range s.Snapshot().Networks.All() {
				got = append(got, showNetwork(n))
			}
			if tt.name == "both families" {
				ula := allocator.UniqueLocal("c").Base.Addr().String()
				for i := range got {
					got[i] = strings.ReplaceAll(got[i], strings.TrimSuffix(ula, "::"), "ULA")
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("networks (-want +got):\n%s", diff)
			}
			if again := plan(t, s); len(again) > 0 {
				t.Errorf("decided twice: %v", again)
			}
		})
	}
}

// A network that could not be had is, when the one in its way is gone.
func TestPlan_NetworkGetsWhatAnotherLeaves(t *testing.T) {
	s := storetest.New(t)
	s.Write(t, func(tx *store.Tx) {
		tx.Create(&object.Cluster{ID: "c"})
		tx.Create(netOf("a subnet=10.9.0.0/24"))
		tx.Create(netOf("b subnet=10.9.0.0/24"))
	})
	a := allocator.New()
	step := watch(t, s, a)
	step()
	s.Write(t, func(tx *store.Tx) {
		n, _ := s.Snapshot().Networks.Get("a")
		tx.Delete(n)
	})
	step()
	n, _ := s.Snapshot().Networks.Get("b")
	if got, want := showNetwork(n), "b: 10.9.0.0/24 via 10.9.0.1 number 4096"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// watch lets an allocator see what changed since its last step.
func watch(t *testing.T, s *storetest.Local, a *allocator.Allocator) (step func() time.Time) {
	t.Helper()
	var prev *store.Snapshot
	return func() (next time.Time) {
		t.Helper()
		for {
			var after uint64
			if prev != nil {
				after = prev.Index
			}
			ch := s.Since(after)
			c, next := a.Plan(prev, ch, time.Now())
			prev = ch.Snapshot
			if c.Empty() {
				return next
			}
			s.Write(t, func(tx *store.Tx) {
				for _, o := range c.Update {
					tx.Update(o)
				}
			})
		}
	}
}

// swarmOf is a swarm with these networks and a service on all of them.
func swarmOf(t *testing.T, networks ...string) *storetest.Local {
	t.Helper()
	s := storetest.New(t)
	s.Write(t, func(tx *store.Tx) {
		tx.Create(&object.Cluster{ID: "c"})
		svc := &object.Service{}
		svc.ID, svc.Spec.Name = "web", "web"
		for _, text := range networks {
			n := netOf(text)
			tx.Create(n)
			svc.Spec.TaskTemplate.Networks = append(svc.Spec.TaskTemplate.Networks, swarm.NetworkAttachmentConfig{Target: n.ID, Aliases: []string{"www"}})
		}
		tx.Create(svc)
	})
	return s
}

func newTask(t *testing.T, s *storetest.Local, ids ...string) {
	t.Helper()
	s.Write(t, func(tx *store.Tx) {
		for _, id := range ids {
			task := &object.Task{ID: id, ServiceID: "web", DesiredState: swarm.TaskStateRunning}
			task.Status.State = swarm.TaskStateNew
			tx.Create(task)
		}
	})
}

func endTask(t *testing.T, s *storetest.Local, id string, state swarm.TaskState) {
	t.Helper()
	s.Write(t, func(tx *store.Tx) {
		o, _ := s.Snapshot().Tasks.Get(id)
		o = o.Clone().(*object.Task)
		o.DesiredState, o.Status.State = swarm.TaskStateShutdown, state
		tx.Update(o)
	})
}

func showTask(t *testing.T, s *storetest.Local, id string) string {
	t.Helper()
	o, ok := s.Snapshot().Tasks.Get(id)
	if !ok {
		t.Fatalf("no task %s", id)
	}
	if o.Status.State == swarm.TaskStateNew {
		return o.Status.Err
	}
	var out []string
	for _, n := range o.Networks {
		out = append(out, n.ID+"("+strings.Join(n.Aliases, ",")+")")
		for _, a := range n.Addresses {
			out = append(out, a.String())
		}
	}
	return strings.Join(out, " ")
}

func TestPlan_TaskOnTwoNetworksAndTheMesh(t *testing.T) {
	s := swarmOf(t, "a", "b subnet=10.9.0.0/24,range=10.9.0.64/26 ipv6 subnet=fd00:9::/64")
	s.Write(t, func(tx *store.Tx) {
		tx.Create(storetest.Ingress())
		svc, _ := s.Snapshot().Services.Get("web")
		svc = svc.Clone().(*object.Service)
		svc.Spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80, PublishedPort: 8080}}}
		svc.Spec.TaskTemplate.Networks = append(svc.Spec.TaskTemplate.Networks, swarm.NetworkAttachmentConfig{Target: "bridge"})
		tx.Update(svc)
	})
	newTask(t, s, "t")
	plan(t, s)
	svc, _ := s.Snapshot().Services.Get("web")
	var vips []string
	for _, v := range svc.Endpoint.VirtualIPs {
		vips = append(vips, v.NetworkID+" "+v.Addr.String())
	}
	if want := []string{"ingress 10.0.1.2/24", "a 10.0.0.2/24", "b 10.9.0.64/24", "b fd00:9::2/64"}; !slices.Equal(vips, want) {
		t.Errorf("virtual addresses: got %v, want %v", vips, want)
	}
	if got, want := showTask(t, s, "t"), "a(www) 10.0.0.3/24 b(www) 10.9.0.65/24 fd00:9::3/64 ingress() 10.0.1.3/24"; got != want {
		t.Errorf("task: got %s, want %s", got, want)
	}
}

// An address is free when its node says that the task ended, and a minute of
// rest is over; not when that is merely wanted.
func TestPlan_AddressesComeBackAfterAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := swarmOf(t, "a subnet=10.9.0.0/29") // the gateway, a virtual address, and four tasks
		step := watch(t, s, allocator.New())
		newTask(t, s, "t1", "t2", "t3", "t4", "t5")
		step()
		const full = "no address is free in network a (10.9.0.0/29)"
		if got := showTask(t, s, "t5"); got != full {
			t.Fatalf("got %q, want %q", got, full)
		}
		endTask(t, s, "t1", swarm.TaskStateRunning)
		if next := step(); !next.IsZero() || showTask(t, s, "t5") != full {
			t.Fatal("an address was given that a task still has")
		}
		endTask(t, s, "t1", swarm.TaskStateShutdown)
		next := step()
		if got := time.Until(next); got != time.Minute || showTask(t, s, "t5") != full {
			t.Fatalf("looks again in %v, want a minute", got)
		}
		time.Sleep(time.Minute)
		step()
		if got, want := showTask(t, s, "t5"), "a(www) 10.9.0.3/29"; got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	})
}

// A new leader goes on behind what was given last, and lets rest what ended lately.
func TestPlan_ANewLeaderGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := swarmOf(t, "a subnet=10.9.0.0/24")
		step := watch(t, s, allocator.New())
		newTask(t, s, "t1")
		step()
		time.Sleep(time.Second)
		newTask(t, s, "t2")
		step()
		endTask(t, s, "t2", swarm.TaskStateFailed)
		time.Sleep(time.Second)
		newTask(t, s, "t3")
		watch(t, s, allocator.New())()
		if got, want := showTask(t, s, "t3"), "a(www) 10.9.0.5/24"; got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	})
}

func TestPlan_VirtualAddressesStayWhileOldTasksAreThere(t *testing.T) {
	s := swarmOf(t, "a", "b")
	newTask(t, s, "old")
	plan(t, s)
	s.Write(t, func(tx *store.Tx) {
		task, _ := s.Snapshot().Tasks.Get("old")
		task = task.Clone().(*object.Task)
		task.Status.State = swarm.TaskStateRunning
		tx.Update(task)
		svc, _ := s.Snapshot().Services.Get("web")
		svc = svc.Clone().(*object.Service)
		svc.Spec.TaskTemplate.Networks = svc.Spec.TaskTemplate.Networks[1:]
		tx.Update(svc)
	})
	on := func() (ids []string) {
		svc, _ := s.Snapshot().Services.Get("web")
		for _, v := range svc.Endpoint.VirtualIPs {
			ids = append(ids, v.NetworkID)
		}
		slices.Sort(ids)
		return ids
	}
	if plan(t, s); !slices.Equal(on(), []string{"a", "b"}) {
		t.Fatalf("virtual addresses on %v while the old task runs", on())
	}
	endTask(t, s, "old", swarm.TaskStateShutdown)
	if plan(t, s); !slices.Equal(on(), []string{"b"}) {
		t.Fatalf("virtual addresses on %v after the old task ended", on())
	}
}

func TestPlan_Guests(t *testing.T) {
	s := swarmOf(t, "a subnet=10.9.0.0/24 ipv6 subnet=fd00:9::/64 attachable", "closed")
	guest := func(id, network string, wanted ...string) {
		g := &object.Guest{ID: id, Network: object.TaskNetwork{ID: network, Aliases: []string{"me"}}}
		for _, w := range wanted {
			g.Wanted = append(g.Wanted, netip.MustParseAddr(w))
		}
		s.Write(t, func(tx *store.Tx) { tx.Create(g) })
	}
	guest("g1", "a")
	guest("g2", "a", "10.9.0.77")
	guest("g3", "a", "10.9.0.1")
	guest("g4", "a", "10.8.0.1")
	guest("g5", "closed")
	guest("g6", "gone")
	plan(t, s)
	var got []string
	for g := range s.Snapshot().Guests.All() {
		got = append(got, strings.TrimSpace(fmt.Sprint(g.ID, " ", g.Network.Addresses, " ", g.Problem)))
	}
	want := []string{
		"g1 [10.9.0.3/24 fd00:9::3/64]",
		"g2 [10.9.0.77/24 fd00:9::4/64]",
		"g3 [] address 10.9.0.1 is already in use on network a",
		"g4 [] no subnet of network a has the address 10.8.0.1",
		"g5 [] network closed not manually attachable",
		"g6 [] network gone not found",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("guests (-want +got):\n%s", diff)
	}
}

func TestPlan_SlotsInTurn(t *testing.T) {
	s := storetest.New(t)
	node := func(id string) {
		n := &object.Node{}
		n.ID = id
		s.Write(t, func(tx *store.Tx) { tx.Create(n) })
		plan(t, s)
	}
	for i := range 1023 {
		node(fmt.Sprintf("n%04d", i))
	}
	node("late")
	for id, want := range map[string]int{"n0000": 1, "n1022": 1023, "late": 0} {
		if n, _ := s.Snapshot().Nodes.Get(id); n.Slot != want {
			t.Errorf("node %s has slot %d, want %d", id, n.Slot, want)
		}
	}
	s.Write(t, func(tx *store.Tx) {
		n, _ := s.Snapshot().Nodes.Get("n0500")
		tx.Delete(n)
	})
	plan(t, s)
	if n, _ := s.Snapshot().Nodes.Get("late"); n.Slot != 501 {
		t.Errorf("the late node has slot %d, want the one that is free", n.Slot)
	}
}

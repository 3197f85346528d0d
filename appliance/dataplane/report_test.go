package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"skep/appliance/wire"
	"skep/net/link"
	"skep/net/overlay"
	"skep/store/object"
)

// reported is a report as text, a line for each endpoint.
func reported(c object.NodeCheck) string {
	var b strings.Builder
	for _, f := range c.Faults {
		fmt.Fprintf(&b, "fault: %s\n", f)
	}
	for _, e := range c.Endpoints {
		fmt.Fprintf(&b, "%s on %s %s: frames %s, names %s, balancer %s: %s %v%s\n",
			e.Name, e.Node, e.State, e.Frames, e.Names, e.Balancer, e.Result, e.Echo, prefixed(" | ", e.Reason))
	}
	return b.String()
}

func prefixed(by, s string) string {
	if s == "" {
		return ""
	}
	return by + s
}

// scene is a network with endpoints in all states, as node n1 sees it.
func scene() *wire.NetworkMembers {
	guest := wire.Endpoint{Network: "front", ID: "g", Node: "n2", State: wire.EndpointActive, Addresses: addrs("10.0.1.9"), Names: []string{"box"}}
	return members(front(), []wire.NetworkService{web("10.0.1.2")},
		task("a", "n1", wire.EndpointActive, "10.0.1.3"),
		task("b", "n2", wire.EndpointActive, "10.0.1.4"),
		task("c", "n2", wire.EndpointDraining, "10.0.1.5"),
		task("d", "n3", wire.EndpointPrepared, "10.0.1.6"),
		task("e", "n3", wire.EndpointActive, "10.0.1.7"),
		guest)
}

// well is what is found on n1 if nothing is wrong.
func well() found {
	f := found{
		balanced: true, balancers: 1, attached: map[string]bool{"a": true},
		asker:  asker{name: "c0ffee", path: "/ns/a", sources: addrs("10.0.1.3"), names: true},
		echoes: map[netip.Addr]time.Duration{},
		told:   map[string][]netip.Addr{"tasks.Web": addrs("10.0.1.3", "10.0.1.4", "10.0.1.7"), "box": addrs("10.0.1.9")},
	}
	for i, a := range addrs("10.0.1.3", "10.0.1.4", "10.0.1.7", "10.0.1.9") {
		f.echoes[a] = time.Duration(i+1) * time.Millisecond
	}
	return f
}

func mac(a string) link.MAC { return link.MAC(overlay.MAC(addrs(a))) }

func TestReport(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(v *wire.NetworkView, in *input, f *found)
		want   string
	}{
		{"all is well", func(*wire.NetworkView, *input, *found) {}, `
box on n2 active: frames yes, names yes, balancer -: ok 4ms
web.a on n1 active: frames yes, names yes, balancer yes: ok 1ms
web.b on n2 active: frames yes, names yes, balancer yes: ok 2ms
web.c on n2 draining: frames yes, names -, balancer -: not asked 0s | it does not serve: draining
web.d on n3 prepared: frames yes, names -, balancer -: not asked 0s | it does not serve: prepared
web.e on n3 active: frames yes, names yes, balancer yes: ok 3ms
`},
		{"the kernel lost entries", func(_ *wire.NetworkView, _ *input, f *found) {
			f.frames = overlay.State{
				Faults: []string{"br0 is not as it should be"},
				Missing: []link.Entry{
					{Table: link.Forwards, MAC: mac("10.0.1.4"), Address: addr("192.0.2.2")},
					{Table: link.Neighbours, MAC: mac("10.0.1.4"), Address: addr("10.0.1.4")},
					{Table: link.Neighbours, MAC: mac("10.0.1.5"), Address: addr("10.0.1.5")},
				},
				Superfluous: []link.Entry{{Table: link.Neighbours, MAC: mac("10.0.1.77"), Address: addr("10.0.1.77")}},
			}
			delete(f.echoes, addr("10.0.1.4"))
		}, `
fault: br0 is not as it should be
fault: 1 entries too many: neigh 10.0.1.77 lladdr 02:42:0a:00:01:4d
box on n2 active: frames yes, names yes, balancer -: ok 4ms
web.a on n1 active: frames yes, names yes, balancer yes: ok 1ms
web.b on n2 active: frames no, names yes, balancer yes: not programmed 0s | missing: fdb 02:42:0a:00:01:04 dst 192.0.2.2, neigh 10.0.1.4 lladdr 02:42:0a:00:01:04
web.c on n2 draining: frames no, names -, balancer -: not programmed 0s | missing: neigh 10.0.1.5 lladdr 02:42:0a:00:01:05
web.d on n3 prepared: frames yes, names -, balancer -: not asked 0s | it does not serve: prepared
web.e on n3 active: frames yes, names yes, balancer yes: ok 3ms
`},
		{"names and balancers", func(_ *wire.NetworkView, _ *input, f *found) {
			f.told["tasks.Web"] = addrs("10.0.1.3")
			delete(f.told, "box")
			f.refused = map[string]error{"box": errors.New("ask for box: no such host")}
			f.balanced, f.faults = false, []string{"container c0ffee: its balancer is not as it should be (2 differences)"}
		}, `
fault: container c0ffee: its balancer is not as it should be (2 differences)
box on n2 active: frames yes, names no, balancer -: not programmed 0s | ask for box: no such host
web.a on n1 active: frames yes, names yes, balancer no: not programmed 0s | a balancer is not as it should be
web.b on n2 active: frames yes, names no, balancer no: not programmed 0s | 10.0.1.4 is not told by tasks.Web; a balancer is not as it should be
web.c on n2 draining: frames yes, names -, balancer -: not asked 0s | it does not serve: draining
web.d on n3 prepared: frames yes, names -, balancer -: not asked 0s | it does not serve: prepared
web.e on n3 active: frames yes, names no, balancer no: not programmed 0s | 10.0.1.7 is not told by tasks.Web; a balancer is not as it should be
`},
		{"somebody is silent, a node is down, one seems dead", func(v *wire.NetworkView, in *input, f *found) {
			in.suspended = map[string]bool{"n2": true}
			h := v.Hosts["n3"]
			h.Down = true
			v.Hosts["n3"] = h
			delete(f.echoes, addr("10.0.1.3"))
		}, `
box on n2 active: frames yes, names -, balancer -: not asked 0s | its node seems to be dead
web.a on n1 active: frames yes, names yes, balancer yes: no answer 0s | 10.0.1.3 does not answer c0ffee
web.b on n2 active: frames yes, names -, balancer -: not asked 0s | its node seems to be dead
web.c on n2 draining: frames yes, names -, balancer -: not asked 0s | it does not serve: draining
web.d on n3 prepared: frames yes, names -, balancer -: not asked 0s | it does not serve: prepared
web.e on n3 active: frames yes, names -, balancer -: not asked 0s | its node is down
`},
		{"no container is here, and a node has no address", func(v *wire.NetworkView, _ *input, f *found) {
			*f = found{balanced: true}
			h := v.Hosts["n3"]
			h.Address = netip.Addr{}
			v.Hosts["n3"] = h
		}, `
box on n2 active: frames yes, names -, balancer -: not asked 0s | no container here to ask from
web.a on n1 active: frames no, names -, balancer -: not programmed 0s | its container is not connected
web.b on n2 active: frames yes, names -, balancer -: not asked 0s | no container here to ask from
web.c on n2 draining: frames yes, names -, balancer -: not asked 0s | it does not serve: draining
web.d on n3 prepared: frames no, names -, balancer -: not programmed 0s | the address of its node is not known
web.e on n3 active: frames no, names -, balancer -: not programmed 0s | the address of its node is not known
`},
		{"the kernel cannot be read", func(_ *wire.NetworkView, _ *input, f *found) {
			f.unread = errors.New("list neighbours: no")
			f.asker.sources = addrs("fd00::1")
		}, `
fault: list neighbours: no
box on n2 active: frames no, names yes, balancer -: not programmed 0s | the kernel's part cannot be read
web.a on n1 active: frames no, names yes, balancer yes: not programmed 0s | the kernel's part cannot be read
web.b on n2 active: frames no, names yes, balancer yes: not programmed 0s | the kernel's part cannot be read
web.c on n2 draining: frames no, names -, balancer -: not programmed 0s | the kernel's part cannot be read
web.d on n3 prepared: frames no, names -, balancer -: not programmed 0s | the kernel's part cannot be read
web.e on n3 active: frames no, names yes, balancer yes: not programmed 0s | the kernel's part cannot be read
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := input{self: self{node: "n1", mtu: 1500}, view: view(7, scene())}
			f := well()
			tt.change(in.view, &in, &f)
			n := plan(nil, in).place("front")
			if diff := cmp.Diff(strings.TrimPrefix(tt.want, "\n"), reported(report(&in, n, f))); diff != "" {
				t.Errorf("want -, got +:\n%s", diff)
			}
		})
	}
}

func TestCheck_ReadsEverythingAndAsksFromAContainer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		w.Set(view(7, members(front(), []wire.NetworkService{web("10.0.1.2")},
			task("ta", "n1", wire.EndpointActive, "10.0.1.3"), task("tb", "n2", wire.EndpointActive, "10.0.1.4"))))
		synctest.Wait()
		if _, err := w.Connect(t.Context(), inFront("a", "10.0.1.3/24")); err != nil {
			t.Fatal(err)
		}
		w.echoes = map[netip.Addr]time.Duration{addr("10.0.1.3"): 1, addr("10.0.1.4"): 2}
		w.told = map[string][]netip.Addr{"tasks.Web": addrs("10.0.1.3", "10.0.1.4")}
		w.lines()
		for _, ref := range []string{"front", "Front"} {
			c, err := w.Check(t.Context(), ref)
			if err != nil || !c.Well() || c.Node != "n1" || c.Version != 7 || c.Asker != "a" {
				t.Errorf("%s: got %+v, %v", ref, c, err)
			}
			want(t, w, "echo from /ns/a [10.0.1.3] to [10.0.1.3 10.0.1.4]") // and nothing was changed
		}
		w.mu.Lock()
		w.differences = 4
		delete(w.echoes, addr("10.0.1.4"))
		w.mu.Unlock()
		c, err := w.Check(t.Context(), "front")
		if got := reported(c); err != nil || c.Well() || !strings.Contains(got, "fault: container a: its balancer is not as it should be (4 differences)") {
			t.Errorf("%v %s", err, got)
		}
		if _, err := w.Check(t.Context(), "back"); !errdefs.IsNotFound(err) || err.Error() != "network back is not on this node" {
			t.Error(err)
		}
	})
}

func TestCheck_OfTheMeshAsksFromItsRouter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		published := wire.MeshPort{Protocol: "tcp", Published: 8080, Target: 80}
		s := wire.NetworkService{Network: "mesh", ID: "web", Name: "Web", Source: object.SourcePreserve, Published: []wire.MeshPort{published}}
		e := wire.Endpoint{Network: "mesh", ID: "tb", Service: "web", Node: "n2", State: wire.EndpointActive, Addresses: addrs("10.0.0.4"), Ports: []wire.MeshPort{published}}
		w.Set(view(7, members(meshNetwork(), []wire.NetworkService{s}, e)))
		synctest.Wait()
		w.echoes = map[netip.Addr]time.Duration{addr("10.0.0.4"): 1}
		w.lines()
		c, err := w.Check(t.Context(), "ingress")
		want(t, w, "echo from /overlay/mesh [169.254.64.1] to [10.0.0.4]")
		const conflict = "fault: port 8080/tcp of service web: another program has it\n"
		if diff := cmp.Diff(conflict+"tb on n2 active: frames yes, names -, balancer yes: ok 1ns\n", reported(c)); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
		w.mu.Lock()
		w.meshFaults = []string{"the router has no leg"}
		w.mu.Unlock()
		c, _ = w.Check(t.Context(), "ingress")
		if diff := cmp.Diff("fault: the router has no leg\n"+conflict+
			"tb on n2 active: frames yes, names -, balancer no: not programmed 0s | a balancer is not as it should be\n", reported(c)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestCheck_OfTheMeshOnANodeWithoutANumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		published := wire.MeshPort{Protocol: "tcp", Published: 8080, Target: 80}
		v := view(7, members(meshNetwork(), []wire.NetworkService{{Network: "mesh", ID: "web", Published: []wire.MeshPort{published}}}))
		own := v.Hosts["n1"]
		own.Slot = 0
		v.Hosts["n1"] = own
		w.Set(v)
		synctest.Wait()
		const reason = "this node has none of the routing mesh's 1023 numbers, and does not answer on published ports"
		c, err := w.Check(t.Context(), "ingress")
		if diff := cmp.Diff("fault: "+reason+"\n", reported(c)); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
		if diff := cmp.Diff([]object.MissingNetwork{{ID: "mesh", Name: "ingress", Reason: reason}}, w.Health(t.Context()).Missing); diff != "" {
			t.Error(diff)
		}
	})
}

func TestCheck_SaysWhyANetworkIsNotThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		secret := front()
		secret.Encrypted = true
		w.failing("frames", errors.New("no"))
		w.Set(view(7, members(secret, nil), members(meshNetwork(), nil)))
		synctest.Wait()
		for ref, want := range map[string]string{
			"front":   "fault: the network is encrypted, which this node cannot do: no xfrm\n",
			"ingress": "", // nobody publishes anything
		} {
			c, err := w.Check(t.Context(), ref)
			if diff := cmp.Diff("fault: what the managers say is not followed yet: no\n"+want, reported(c)); err != nil || diff != "" {
				t.Errorf("%s: %v %s", ref, err, diff)
			}
		}
		time.Sleep(look) // what is mended is counted
		synctest.Wait()
		h := w.Health(t.Context())
		if h.Repaired != 2+3 || !strings.HasSuffix(h.Fault, "no") || len(h.Conflicts) != 1 {
			t.Errorf("got %+v", h)
		}
		h.Repaired, h.Fault, h.Conflicts = 0, "", nil
		if diff := cmp.Diff(object.NetworkHealth{
			Balancer: "nft", BalancerReason: "no IPVS",
			Missing: []object.MissingNetwork{{ID: "front", Name: "Front", Reason: "the network is encrypted, which this node cannot do: no xfrm"}},
		}, h); diff != "" {
			t.Error(diff)
		}
		w.failing("frames", nil)
		time.Sleep(latest)
		synctest.Wait()
		if h := w.Health(t.Context()); h.Fault != "" {
			t.Errorf("got %+v", h)
		}
	})
}

package containers_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"skep/exec/containers"
	"skep/store/object"
)

// guests are managers that give every container a place, the first one with 5.
type guests struct {
	mu sync.Mutex
	// refuse is why no place can be given.
	refuse   error
	asked    []containers.GuestRequest
	given    map[string][]string // IDs by container
	retained []map[string][]string
}

func (g *guests) Attach(_ context.Context, r containers.GuestRequest) (object.Overlay, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, r)
	if g.refuse != nil {
		return object.Overlay{}, g.refuse
	}
	if g.given == nil {
		g.given = map[string][]string{}
	}
	id := fmt.Sprint("guest", len(g.asked))
	g.given[r.ContainerID] = append(g.given[r.ContainerID], id)
	return object.Overlay{
		Network: "id-" + r.Network, Name: r.Network, Task: id, Aliases: r.Aliases,
		Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(4 + len(g.asked))}), 24), netip.MustParsePrefix("fd00::5/64")},
	}, nil
}

func (g *guests) Release(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.given, id)
}

func (g *guests) ReleaseOne(id, place string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.given[id] = slices.DeleteFunc(g.given[id], func(p string) bool { return p == place }); len(g.given[id]) == 0 {
		delete(g.given, id)
	}
}

func (g *guests) Retain(used map[string][]string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.retained = append(g.retained, used)
}

func (g *guests) held() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.given)
}

func (g *guests) set(refuse error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuse = refuse
}

// onNetwork is a request for the swarm's network front.
func onNetwork(settings *network.EndpointSettings, script ...string) container.CreateRequest {
	r := request(script...)
	r.HostConfig.NetworkMode = container.NetworkMode("front")
	r.NetworkingConfig = &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{"front": settings}}
	return r
}

func inspect(tb testing.TB, e *containers.Engine, id string) container.InspectResponse {
	tb.Helper()
	in, err := e.Inspect(tb.Context(), id, false)
	if err != nil {
		tb.Fatal(err)
	}
	return in
}

func compareAddresses() cmp.Options {
	return cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()}
}

func TestGuest_IsOnTheNetworkWhileItRuns(t *testing.T) {
	w := newWorld(t)
	w.guests = &guests{}
	e := w.engine(t)
	req := onNetwork(&network.EndpointSettings{
		Aliases: []string{"www"}, IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.0.1.5")},
	}, "deaf")
	req.Hostname = "myhost"
	req.HostConfig.DNS = []netip.Addr{netip.MustParseAddr("192.0.2.53")}
	c, err := e.Create(t.Context(), "box", req)
	if err != nil {
		t.Fatal(err)
	}
	id := c.ID
	if n := inspect(t, e, id).NetworkSettings.Networks; len(n) != 1 || n["front"] == nil || n["front"].IPAddress.IsValid() {
		t.Errorf("before the start it is on %v", n)
	}
	start(t, e, id)

	wantAsked := []containers.GuestRequest{{
		ContainerID: id, Name: "box", Network: "front", Aliases: []string{"www", "myhost"}, Wanted: []netip.Addr{netip.MustParseAddr("10.0.1.5")},
	}}
	if diff := cmp.Diff(wantAsked, w.guests.asked, compareAddresses()); diff != "" {
		t.Errorf("asked of the managers: %s", diff)
	}
	at, _ := w.nets.Attachment(id)
	if ep := at.Endpoint; ep.Network != "bridge" || ep.Interface != "eth1" || len(ep.Overlays) != 1 || ep.Overlays[0].Task != "guest1" ||
		ep.DNS == nil || ep.DNS.Nameservers[0].String() != "192.0.2.53" {
		t.Errorf("asked of the network: %+v", ep)
	}
	want := map[string]*network.EndpointSettings{"front": {
		NetworkID: "id-front", EndpointID: "endpoint-id-front", Aliases: []string{"www", "myhost"}, DNSNames: []string{"box", id[:12], "www", "myhost"},
		IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.0.1.5")},
		IPAddress:  netip.MustParseAddr("10.0.1.5"), IPPrefixLen: 24, Gateway: netip.MustParseAddr("10.0.1.1"),
		GlobalIPv6Address: netip.MustParseAddr("fd00::5"), GlobalIPv6PrefixLen: 64, IPv6Gateway: netip.MustParseAddr("fd00::1"),
		MacAddress: network.HardwareAddr{2, 0x42, 0x0a, 0, 1, 5},
	}}
	if diff := cmp.Diff(want, inspect(t, e, id).NetworkSettings.Networks, compareAddresses()); diff != "" {
		t.Errorf("networks: %s", diff)
	}
	if list, err := e.List(t.Context(), true, false); err != nil || list[0].NetworkSettings.Networks["front"] == nil {
		t.Errorf("list: %+v, %v", list, err)
	}

	if err := e.Stop(t.Context(), id, "KILL", nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the place is given back", func() bool { return w.guests.held() == 0 })
	start(t, e, id)
	if len(w.guests.asked) != 2 {
		t.Errorf("asked %d times", len(w.guests.asked))
	}
	if err := e.Remove(t.Context(), id, true, true); err != nil {
		t.Fatal(err)
	}
	if w.guests.held() != 0 {
		t.Error("the place was kept")
	}
}

func TestGuest_SeesItsNetworkInItsFiles(t *testing.T) {
	w := newWorld(t)
	w.guests = &guests{}
	e := w.engine(t)
	req := onNetwork(nil, "read", "/etc/resolv.conf", "read", "/etc/hosts")
	req.Hostname = "myhost"
	req.HostConfig.DNS = []netip.Addr{netip.MustParseAddr("192.0.2.53")}
	req.HostConfig.ExtraHosts = []string{"gate:host-gateway"}
	code, out, errs := run(t, e, req)
	want := "nameserver 127.0.0.11\nsearch example.com\noptions ndots:0\n"
	if code != 0 || len(out) < len(want) || out[:len(want)] != want {
		t.Errorf("resolv.conf: %d, %q, %s", code, out, errs)
	}
	for _, line := range []string{"10.0.1.5\tmyhost\n", "fd00::5\tmyhost\n", "10.1.2.1\tgate\n"} {
		if !strings.Contains(out, line) {
			t.Errorf("no %q in hosts: %q", line, out)
		}
	}
	if strings.Contains(out, "10.1.2.3\t") {
		t.Errorf("the way out has a name: %q", out)
	}
}

func TestGuest_ThatGetsNoPlaceDoesNotStart(t *testing.T) {
	w := newWorld(t)
	w.guests = &guests{}
	e := w.engine(t)
	w.nets.refuse = func(object.Endpoint) error { return object.Errorf(errdefs.ErrFailedPrecondition, "no encryption here") }
	id := create(t, e, onNetwork(nil, "deaf"))
	if err := e.Start(t.Context(), id); !errdefs.IsFailedPrecondition(err) || err.Error() != "no encryption here" {
		t.Errorf("got %v", err)
	}
	if w.guests.held() != 0 {
		t.Error("the place was kept")
	}
	w.guests.set(object.Errorf(errdefs.ErrPermissionDenied, "network front not manually attachable"))
	if err := e.Start(t.Context(), id); !errdefs.IsPermissionDenied(err) {
		t.Errorf("got %v", err)
	}
	if s := inspect(t, e, id).State; s.Status != container.StateCreated || s.Error != "network front not manually attachable" {
		t.Errorf("state: %+v", s)
	}
}

// When a machine starts, containers come back before managers do.
func TestGuest_IsStartedAgainWhenManagersAreBack(t *testing.T) {
	w := newWorld(t)
	w.guests = &guests{}
	e, stop := w.open(t)
	req := onNetwork(nil, "deaf")
	req.HostConfig.RestartPolicy.Name = container.RestartPolicyAlways
	id := create(t, e, req)
	start(t, e, id)
	stop()
	p := inspect(t, e, id).State.Pid
	if err := unix.Kill(p, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.guests.set(object.Errorf(errdefs.ErrUnavailable, "no manager of the swarm is known"))
	e = w.engine(t)
	eventually(t, "managers are asked", func() bool {
		w.guests.mu.Lock()
		defer w.guests.mu.Unlock()
		return len(w.guests.asked) > 1
	})
	w.guests.set(nil)
	eventually(t, "it runs again", func() bool {
		s := inspect(t, e, id).State
		return s.Running && !s.Restarting
	})
}

func TestGuest_PlacesOfRunningContainersAreRetained(t *testing.T) {
	w := newWorld(t)
	w.guests = &guests{}
	e, stop := w.open(t)
	id := create(t, e, onNetwork(nil, "deaf"))
	start(t, e, id)
	ended := create(t, e, onNetwork(nil, "ms", "1"))
	start(t, e, ended)
	wait(t, e, ended)
	task, err := e.CreateWith(t.Context(), "", request("deaf"), containers.Extra{Overlays: []object.Overlay{{Network: "n", Task: "t"}}})
	if err != nil {
		t.Fatal(err)
	}
	start(t, e, task.ID)
	stop()
	w.engine(t)
	if got := w.guests.retained[len(w.guests.retained)-1]; !cmp.Equal(got, map[string][]string{id: {"guest1"}}) {
		t.Errorf("retained %v", got)
	}
}

func TestGuest_RefusesWhatNetworksOfTheSwarmDoNotHave(t *testing.T) {
	w := newWorld(t)
	w.guests = &guests{}
	e := w.engine(t)
	for _, tt := range []struct {
		name   string
		change func(*container.CreateRequest)
		is     func(error) bool
	}{
		{"host and another", func(r *container.CreateRequest) { r.HostConfig.NetworkMode = "host" }, errdefs.IsInvalidArgument},
		{"none and another", func(r *container.CreateRequest) { r.HostConfig.NetworkMode = "none" }, errdefs.IsInvalidArgument},
		{"MAC address", func(r *container.CreateRequest) {
			r.NetworkingConfig.EndpointsConfig["front"].MacAddress = network.HardwareAddr{2, 0, 0, 0, 0, 1}
		}, errdefs.IsNotImplemented},
		{"links", func(r *container.CreateRequest) {
			r.NetworkingConfig.EndpointsConfig["front"].Links = []string{"a:b"}
		}, errdefs.IsNotImplemented},
	} {
		req := onNetwork(&network.EndpointSettings{}, "deaf")
		tt.change(&req)
		if _, err := e.Create(t.Context(), "", req); !tt.is(err) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestGuest_OnSeveralNetworks(t *testing.T) {
	w := newWorld(t)
	w.guests = &guests{}
	e := w.engine(t)
	req := onNetwork(nil, "deaf")
	req.NetworkingConfig.EndpointsConfig["back"] = &network.EndpointSettings{Aliases: []string{"db"}}
	id := create(t, e, req)
	start(t, e, id)
	at, _ := w.nets.Attachment(id)
	var on []string
	for _, o := range at.Endpoint.Overlays {
		on = append(on, o.Network)
	}
	if !slices.Equal(on, []string{"id-front", "id-back"}) || at.Endpoint.Interface != "eth2" {
		t.Errorf("on %v, and the bridge by %s", on, at.Endpoint.Interface)
	}
}

// A task's places come with it; that of the routing mesh is not what it is called by.
func TestOverlays_OfATask(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	c, err := e.CreateWith(t.Context(), "web.1.x", func() container.CreateRequest {
		r := request("read", "/etc/hosts")
		r.HostConfig.NetworkMode = "bridge"
		return r
	}(), containers.Extra{Overlays: []object.Overlay{
		{Network: "n1", Task: "x", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.1.9/24")}, Aliases: []string{"www"}},
		{Network: "n0", Task: "x", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.9/24")}, Ingress: true, Ports: []object.Port{{Protocol: "tcp", Host: 8080, Container: 80}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if n := inspect(t, e, c.ID).NetworkSettings.Networks; n["n1"] == nil || n["n1"].NetworkID != "n1" || n["bridge"] != nil {
		t.Errorf("before the start it is on %v", n)
	}
	var seen object.Endpoint
	w.nets.refuse = func(ep object.Endpoint) error {
		seen = ep
		return nil
	}
	start(t, e, c.ID)
	wait(t, e, c.ID)
	out, _ := output(t, e, c.ID, object.LogQuery{Stdout: true, Tail: -1})
	if !strings.Contains(out, "10.0.1.9\t") || strings.Contains(out, "10.0.0.9\t") || seen.Interface != "eth1" {
		t.Errorf("hosts: %q; endpoint: %+v", out, seen)
	}
	if n := inspect(t, e, c.ID).NetworkSettings.Networks; len(n) != 2 || n["name-of-n1"] == nil || n["name-of-n0"] == nil {
		t.Errorf("after the end it was on %v", n)
	}
}

func TestStop_LeadsNothingMoreToTheContainerFirst(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	task, err := e.CreateWith(t.Context(), "", request("term", "3"), containers.Extra{Overlays: []object.Overlay{{Network: "n1", Task: "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	plain := create(t, e, request("term", "3"))
	for _, id := range []string{task.ID, plain} {
		start(t, e, id)
		if err := e.Stop(t.Context(), id, "KILL", nil); err != nil {
			t.Fatal(err)
		}
	}
	finished, err := time.Parse(time.RFC3339Nano, inspect(t, e, task.ID).State.FinishedAt)
	if err != nil {
		t.Fatal(err)
	}
	if at, ok := w.nets.withdrawn[task.ID]; !ok || finished.Sub(at) < 100*time.Millisecond {
		t.Errorf("withdrawn at %v, ended at %v", at, finished)
	}
	if _, ok := w.nets.withdrawn[plain]; ok {
		t.Error("a container on no network of the swarm was withdrawn")
	}
}

func TestOverlays_ATemporaryErrorOfATaskIsTheAgentsAffair(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	w.nets.refuse = func(object.Endpoint) error { return object.Errorf(object.ErrTemporary, "not yet") }
	c, err := e.CreateWith(t.Context(), "", request("deaf"), containers.Extra{Overlays: []object.Overlay{{Network: "n1", Task: "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := e.Start(t.Context(), c.ID); !errors.Is(err, object.ErrTemporary) || time.Since(began) > 5*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	if s := inspect(t, e, c.ID).State; s.Status != container.StateCreated {
		t.Errorf("state: %+v", s)
	}
	w.nets.refuse = nil
	start(t, e, c.ID)
}

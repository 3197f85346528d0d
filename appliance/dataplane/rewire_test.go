package dataplane

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"skep/appliance/wire"
	"skep/net/overlay"
	"skep/store/object"
)

// back is another network.
func back() wire.Network {
	return wire.Network{ID: "back", Name: "Back", VNI: 4098, Subnets: []wire.Subnet{{Prefix: netip.MustParsePrefix("10.0.9.0/24"), Gateway: netip.MustParseAddr("10.0.9.1")}}}
}

// placeOf is a place on a network.
func placeOf(network, task, address string) object.Overlay {
	return object.Overlay{Network: network, Task: task, Addresses: []netip.Prefix{netip.MustParsePrefix(address)}}
}

// rewiring is a node with the networks front and back, and the container "c" on
// its bridge alone.
func rewiring(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.run(t)
	w.Set(view(1, members(front(), []wire.NetworkService{web("10.0.1.2")}, task("ta", "n2", wire.EndpointActive, "10.0.1.3")), members(back(), nil)))
	if _, err := w.Connect(t.Context(), object.Endpoint{ID: "c", Network: "bridge"}); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	w.lines()
	return w
}

// devices are those of "c" on networks of the swarm, as they are shown.
func devices(t *testing.T, w *world) string {
	t.Helper()
	at, ok := w.Attachment("c")
	if !ok {
		t.Fatal("it is on no network")
	}
	var out, plugged []string
	for _, o := range at.Overlays {
		out = append(out, o.Name+" "+o.Interface)
	}
	for _, a := range (overlayPart{w}).Attached("c") {
		plugged = append(plugged, a.Interface)
	}
	if len(plugged) != len(out) {
		t.Errorf("shown are %v, and there are %v", out, plugged)
	}
	return strings.Join(append(out, at.Nameserver...), ", ")
}

func TestRewire_WhileItRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := rewiring(t)
		inFront, inBack := placeOf("front", "g1", "10.0.1.9/24"), placeOf("back", "g2", "10.0.9.9/24")
		for _, step := range []struct {
			places []object.Overlay
			want   string
			lines  []string
		}{
			{[]object.Overlay{inFront}, "Front eth1, 127.0.0.11", []string{"amend c front", "plug c front eth1", "balancer /ns/c", "services /ns/c 10.0.1.2:10.0.1.3", "answer c [front]"}},
			{[]object.Overlay{inFront, inBack}, "Front eth1, Back eth2, 127.0.0.11", []string{"amend c front back", "plug c back eth2", "services /ns/c 10.0.1.2:10.0.1.3", "answer c [front back]"}},
			{[]object.Overlay{inBack}, "Back eth2, 127.0.0.11", []string{"amend c back", "unplug c front", "services /ns/c", "answer c [back]"}},
			{[]object.Overlay{inBack, inFront}, "Back eth2, Front eth1, 127.0.0.11", nil},
			{nil, "192.0.2.53", []string{"amend c", "unplug c back front", "services /ns/c", "shut c", "close /ns/c"}},
		} {
			at, err := w.Rewire(t.Context(), object.Endpoint{ID: "c", Overlays: step.places})
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := devices(t, w); got != step.want || len(at.Overlays) != len(step.places) {
				t.Errorf("got %q, want %q", got, step.want)
			}
			got := slices.DeleteFunc(w.linesOf("c"), func(l string) bool { return strings.HasPrefix(l, "check") })
			if diff := cmp.Diff(step.lines, got); step.lines != nil && diff != "" {
				t.Errorf("to %q: want -, got +:\n%s", step.want, diff)
			}
		}
		if w.member("c") != nil {
			t.Error("it is followed though it is on no network of the swarm")
		}
	})
}

// If it fails, all is as it was.
func TestRewire_ThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := rewiring(t)
		inFront, inBack := placeOf("front", "g1", "10.0.1.9/24"), placeOf("back", "g2", "10.0.9.9/24")
		if _, err := w.Rewire(t.Context(), object.Endpoint{ID: "c", Overlays: []object.Overlay{inFront}}); err != nil {
			t.Fatal(err)
		}
		w.failing("plug c back", errors.New("no"))
		if _, err := w.Rewire(t.Context(), object.Endpoint{ID: "c", Overlays: []object.Overlay{inBack}}); err == nil || !strings.Contains(err.Error(), "no") {
			t.Errorf("got %v", err)
		}
		if got := devices(t, w); got != "Front eth1, 127.0.0.11" {
			t.Errorf("it is on %q", got)
		}
		began := time.Now()
		_, err := w.Rewire(t.Context(), object.Endpoint{ID: "c", Overlays: []object.Overlay{inFront, placeOf("other", "g3", "10.0.7.9/24")}})
		if !errors.Is(err, object.ErrTemporary) || time.Since(began) != patience {
			t.Errorf("a network that is not known, after %v: %v", time.Since(began), err)
		}
		if got := devices(t, w); got != "Front eth1, 127.0.0.11" {
			t.Errorf("it is on %q", got)
		}
		if _, err := w.Rewire(t.Context(), object.Endpoint{ID: "d", Overlays: []object.Overlay{inFront}}); !errdefs.IsNotFound(err) {
			t.Errorf("a container that is not there: %v", err)
		}
	})
}

// One that has no way out gets none by a network that has one.
func TestRewire_OfAContainerOnInternalNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		inner := back()
		inner.Internal = true
		w.Set(view(1, members(front(), nil), members(inner, nil)))
		e := object.Endpoint{ID: "c", Network: "bridge", Interface: "eth1", Overlays: []object.Overlay{placeOf("back", "g2", "10.0.9.9/24")}}
		if _, err := w.Connect(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		e.Overlays = append(e.Overlays, placeOf("front", "g1", "10.0.1.9/24"))
		if _, err := w.Rewire(t.Context(), e); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "stop it to connect it to network Front") {
			t.Errorf("got %v", err)
		}
		if got := devices(t, w); got != "Back eth0, 127.0.0.11" {
			t.Errorf("it is on %q", got)
		}
	})
}

// A process that ended between the record and the devices.
func TestRestart_FinishesTheDevicesOfAContainer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := object.Endpoint{ID: "c", Network: "bridge", Overlays: []object.Overlay{placeOf("front", "g1", "10.0.1.9/24")}}
		e.Overlays[0].Interface = "eth2"
		w := newWorld(t, e)
		w.plugs["c"] = []overlay.Attachment{{ID: "c", Network: "back", Interface: "eth1"}}
		w.run(t)
		w.Set(view(1, members(front(), nil), members(back(), nil)))
		synctest.Wait()
		if got := (overlayPart{w}).Attached("c"); len(got) != 1 || got[0].Network != "front" || got[0].Interface != "eth2" {
			t.Errorf("there are %+v", got)
		}
	})
}

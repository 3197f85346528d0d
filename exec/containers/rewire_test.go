package containers_test

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"skep/store/object"
)

func TestGuest_ChangesItsNetworksWhileItRuns(t *testing.T) {
	w := newWorld(t)
	w.guests = &guests{}
	e, stop := w.open(t)
	req := request("deaf")
	req.HostConfig.NetworkMode = "bridge"
	id := create(t, e, req)
	start(t, e, id)
	hosts := filepath.Join(w.dir, "containers", id, "hosts")
	if err := os.WriteFile(hosts, []byte("192.0.2.1 mine\n10.1.2.3\t"+id[:12]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name   string
		do     func() error
		refuse bool
		want   string // the networks, then what hosts says
		given  int
	}{
		{"connect", func() error {
			return e.ConnectNetwork(t.Context(), id, "front", &network.EndpointSettings{Aliases: []string{"db"}, IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.0.1.77")}})
		}, false, "bridge front; 192.0.2.1 mine 10.0.1.5 fd00::5", 1},
		{"connect to another", func() error { return e.ConnectNetwork(t.Context(), id, "back", nil) }, false, "back bridge front; 192.0.2.1 mine 10.0.1.5 fd00::5 10.0.1.6", 2},
		{"connect by the ID", func() error { return e.ConnectNetwork(t.Context(), id, "id-back", nil) }, true, "back bridge front; 192.0.2.1 mine 10.0.1.5 fd00::5 10.0.1.6", 2},
		{"a network that fails", func() error {
			w.nets.refuse = func(object.Endpoint) error { return errors.New("no") }
			defer func() { w.nets.refuse = nil }()
			return e.ConnectNetwork(t.Context(), id, "third", nil)
		}, true, "back bridge front; 192.0.2.1 mine 10.0.1.5 fd00::5 10.0.1.6", 2},
		{"disconnect", func() error { return e.DisconnectNetwork(t.Context(), id, "front") }, false, "back bridge; 192.0.2.1 mine fd00::5 10.0.1.6", 1},
		{"disconnect again", func() error { return e.DisconnectNetwork(t.Context(), id, "front") }, true, "back bridge; 192.0.2.1 mine fd00::5 10.0.1.6", 1},
		{"disconnect the last", func() error { return e.DisconnectNetwork(t.Context(), id, "back") }, false, "bridge; 192.0.2.1 mine 10.1.2.3", 0},
	} {
		if err := step.do(); (err != nil) != step.refuse {
			t.Errorf("%s: %v", step.name, err)
		}
		got := strings.Join(slices.Sorted(maps.Keys(inspect(t, e, id).NetworkSettings.Networks)), " ") + ";"
		text, err := os.ReadFile(hosts)
		if err != nil {
			t.Fatal(err)
		}
		got += strings.TrimRight(" "+strings.Join(strings.Fields(strings.ReplaceAll(string(text), "\t"+id[:12], "")), " "), " ")
		if given := len(w.guests.given[id]); got != step.want || given != step.given {
			t.Errorf("%s: got %q and %d places, want %q and %d", step.name, got, given, step.want, step.given)
		}
	}
	if q := w.guests.asked[0]; !slices.Equal(q.Aliases, []string{"db"}) || len(q.Wanted) != 1 {
		t.Errorf("asked for %+v", q)
	}
	stop()
	e = w.engine(t)
	if got := inspect(t, e, id).NetworkSettings.Networks; len(got) != 1 {
		t.Errorf("after a restart of the node it is on %v", got)
	}
}

// Whose network is somebody else's, or who is to have none, is connected to none.
func TestGuest_CannotBeConnectedWhileItRuns(t *testing.T) {
	w := newWorld(t)
	w.guests = &guests{}
	e := w.engine(t)
	for mode, want := range map[container.NetworkMode]string{
		"host": "container sharing network namespace with another container or host cannot be connected to any other network",
		"none": "container cannot be connected to multiple networks with one of the networks in private (none) mode",
	} {
		req := request("deaf")
		req.HostConfig = &container.HostConfig{NetworkMode: mode}
		id := create(t, e, req)
		start(t, e, id)
		if err := e.ConnectNetwork(t.Context(), id, "front", nil); err == nil || err.Error() != want {
			t.Errorf("%s: %v", mode, err)
		}
	}
}

func TestGuest_ChangesItsNetworksWhileItDoesNotRun(t *testing.T) {
	w := newWorld(t)
	w.guests = &guests{}
	e, stop := w.open(t)
	id := create(t, e, onNetwork(nil, "deaf"))
	networks := func() []string { return slices.Sorted(maps.Keys(inspect(t, e, id).NetworkSettings.Networks)) }
	if err := e.ConnectNetwork(t.Context(), id, "back", &network.EndpointSettings{Aliases: []string{"db"}}); err != nil {
		t.Fatal(err)
	}
	if err := e.ConnectNetwork(t.Context(), id, "back", nil); !errdefs.IsConflict(err) {
		t.Errorf("connected again: %v", err)
	}
	start(t, e, id)
	if got := networks(); !slices.Equal(got, []string{"back", "front"}) {
		t.Errorf("it is on %v", got)
	}
	if err := e.Stop(t.Context(), id, "KILL", nil); err != nil {
		t.Fatal(err)
	}
	if err := e.DisconnectNetwork(t.Context(), id, "front"); err != nil {
		t.Fatal(err)
	}
	if err := e.DisconnectNetwork(t.Context(), id, "front"); !errdefs.IsNotFound(err) {
		t.Errorf("disconnected again: %v", err)
	}
	stop()
	e = w.engine(t)
	if got := networks(); !slices.Equal(got, []string{"back"}) || inspect(t, e, id).HostConfig.NetworkMode != "back" {
		t.Errorf("after a restart of the node it is on %v", got)
	}
	if err := errors.Join(e.DisconnectNetwork(t.Context(), id, "back"), e.ConnectNetwork(t.Context(), id, "back", &network.EndpointSettings{Aliases: []string{"db"}})); err != nil {
		t.Fatal(err)
	}
	start(t, e, id)
	if got := w.guests.asked[len(w.guests.asked)-1]; got.Network != "back" || !slices.Equal(got.Aliases, []string{"db"}) {
		t.Errorf("asked for %+v", got)
	}
}

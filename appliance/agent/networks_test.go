package agent_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"skep/appliance/agent"
	"skep/appliance/wire"
)

// views are what a data plane was handed.
type views struct {
	mu  sync.Mutex
	all []*wire.NetworkView
}

func (v *views) take(n *wire.NetworkView) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.all = append(v.all, n)
}

// last is what came last, nil if nothing has since the last call.
func (v *views) last() *wire.NetworkView {
	synctest.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.all) == 0 {
		return nil
	}
	last := v.all[len(v.all)-1]
	v.all = nil
	return last
}

func networks(version uint64, endpoints ...string) *wire.Message {
	n := &wire.Networks{Complete: true, Version: version, Items: []wire.NetworkItem{
		{Host: &wire.Host{ID: "n1", Address: netip.MustParseAddr("192.0.2.1"), Slot: 1}},
		{Network: &wire.Network{ID: "a", VNI: 4096, Subnets: []wire.Subnet{{Prefix: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.1")}}}},
	}}
	for _, id := range endpoints {
		n.Items = append(n.Items, wire.NetworkItem{Endpoint: &wire.Endpoint{
			Network: "a", ID: id, Node: "n1", State: wire.EndpointActive, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.7")},
		}})
	}
	return &wire.Message{Networks: n}
}

func TestAgent_HandsNetworksOnAndSaysWhatIsProgrammed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &views{}
		var keys []uint64
		m, a, stop := startWith(t, filepath.Join(t.TempDir(), "tasks"), &runtime{}, func(c *agent.Config) {
			c.Networks = v.take
			c.Tunnels = func(k *wire.Tunnels) { keys = append(keys, k.Version) }
		})
		c := m.welcome()
		m.send(c, &wire.Message{Swarm: &wire.Swarm{DataPathPort: 4789}})
		m.send(c, networks(7, "t1"))
		m.send(c, &wire.Message{Tunnels: &wire.Tunnels{Version: 3}})
		now := v.last()
		if now.Version != 7 || now.Port != 4789 || len(now.Networks["a"].Endpoints) != 1 || len(keys) != 1 {
			t.Fatalf("handed over: %+v, keys %v", now, keys)
		}
		a.Programmed(wire.Programmed{Networks: 6})
		a.Programmed(wire.Programmed{Networks: 7, Tunnels: 3}) // only the last counts
		if got := m.receive(c).Programmed; !reflect.DeepEqual(got, &wire.Programmed{Networks: 7, Tunnels: 3}) {
			t.Errorf("told %+v", got)
		}
		// What no manager says ends the session; the next begins anew, and what was
		// programmed before means nothing to it.
		m.send(c, &wire.Message{Networks: &wire.Networks{Version: 7}})
		c = m.welcome()
		a.Programmed(wire.Programmed{Networks: 8})
		if got := m.receive(c).Programmed; got == nil || got.Networks != 8 {
			t.Errorf("told %+v", got)
		}
		m.send(c, &wire.Message{Networks: &wire.Networks{Version: 9}})
		c = m.welcome()
		m.send(c, networks(9, "t1"))
		next := v.last()
		if next.Version != 9 || next.Networks["a"] != now.Networks["a"] {
			t.Errorf("after the same in another session: %+v", next)
		}
		stop()
	})
}

// Without a data plane there is nothing to program.
func TestAgent_WithoutADataPlaneAllIsProgrammed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, stop := start(t, filepath.Join(t.TempDir(), "tasks"), &runtime{})
		c := m.welcome()
		m.send(c, networks(7))
		if got := m.receive(c).Programmed; got == nil || got.Networks != 7 {
			t.Errorf("told %+v", got)
		}
		stop()
	})
}

func TestAgent_KeepsItsNetworksForAStartWithoutManagers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		v := &views{}
		begin := func() (*manager, *agent.Agent, func()) {
			return startWith(t, filepath.Join(dir, "tasks"), &runtime{}, func(c *agent.Config) {
				c.Networks, c.NetworksFile = v.take, filepath.Join(dir, "networks")
			})
		}
		m, _, stop := begin()
		c := m.welcome()
		m.send(c, &wire.Message{Swarm: &wire.Swarm{DataPathPort: 4790}})
		m.send(c, networks(7, "t1"))
		synctest.Wait()
		first, err := os.ReadFile(filepath.Join(dir, "networks"))
		if err != nil {
			t.Fatal(err)
		}
		m.send(c, networks(8, "t1", "t2")) // soon after
		want := v.last()
		if second, err := os.ReadFile(filepath.Join(dir, "networks")); err != nil || string(second) != string(first) {
			t.Errorf("written again at once, or gone: %v", err)
		}
		stop()

		_, _, stop = begin()
		got := v.last()
		if !got.Stored || want.Stored {
			t.Errorf("stored: %t before, %t after", want.Stored, got.Stored)
		}
		ignore := cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty(), cmpopts.IgnoreFields(wire.NetworkView{}, "Stored")}
		if diff := cmp.Diff(want, got, ignore); diff != "" {
			t.Errorf("after a restart (-want +got):\n%s", diff)
		}
		stop()

		if err := os.WriteFile(filepath.Join(dir, "networks"), []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
		m, _, stop = begin()
		if got := v.last(); got != nil {
			t.Errorf("of a damaged file: %+v", got)
		}
		c = m.welcome() // and goes on without
		m.send(c, networks(9))
		if got := v.last(); got == nil || got.Version != 9 {
			t.Errorf("after a damaged file: %+v", got)
		}
		time.Sleep(5 * time.Second)
		stop()
	})
}

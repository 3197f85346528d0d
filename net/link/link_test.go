// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"skep/net/ipam"
	"skep/net/link"
	"skep/net/link/linktest"
)

func TestMain(m *testing.M) { linktest.Main(m) }

func namespace(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(st.Ino)
}

func TestCreate_PinsANamespaceAndLeavesTheProcessWhereItIs(t *testing.T) {
	before := namespace(t, "/proc/self/ns/net")
	var wg sync.WaitGroup
	for range 20 {
		path := filepath.Join(t.TempDir(), "ns")
		wg.Go(func() {
			if err := link.Create(path, link.Loopback); err != nil {
				t.Error(err)
				return
			}
			if !link.Pinned(path) || namespace(t, path) == before {
				t.Error("no new namespace is pinned")
			}
			if err := link.Within(path, func() error {
				ifs, err := net.Interfaces()
				if len(ifs) != 1 {
					t.Errorf("devices inside: %v", ifs)
				}
				return err
			}); err != nil {
				t.Error(err)
			}
			for range 2 {
				if err := link.Remove(path); err != nil {
					t.Error(err)
				}
			}
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the file is left: %v", err)
			}
		})
	}
	wg.Wait()
	// No thread of the process stayed behind in another namespace.
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(tasks) == 0 {
		t.Fatal(tasks, err)
	}
	for _, task := range tasks {
		var st unix.Stat_t
		if err := unix.Stat(task, &st); err != nil {
			continue // that thread has ended
		}
		if fmt.Sprint(st.Ino) != before {
			t.Errorf("thread %s is in another namespace", task)
		}
	}
}

// Also when the goroutine that calls has the process's first thread.
func TestCreate_FromTheFirstThread(t *testing.T) {
	before := namespace(t, "/proc/self/ns/net")
	path := filepath.Join(t.TempDir(), "ns")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for range 50 {
		if err := link.Create(path, link.Loopback); err != nil {
			t.Fatal(err)
		}
		if err := link.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if namespace(t, "/proc/self/ns/net") != before {
		t.Error("the process has moved to another namespace")
	}
}

func TestCreate_LeavesNothingWhenSetupFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ns")
	c := open(t)
	bridge(t, c)
	cause := errors.New("no")
	v := veth("pf0")
	err := link.Create(path, func() error { return errors.Join(c.Plug(v), cause) })
	if !errors.Is(err, cause) {
		t.Fatal(err)
	}
	if link.Pinned(path) {
		t.Error("the namespace is pinned")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the file is left")
	}
	// The kernel removes the device with its peer's namespace, after a moment;
	// asked to remove it, it is gone either way.
	if err := c.Remove(v.Name); err != nil {
		t.Fatal(err)
	}
	if names, err := c.Names("pf"); err != nil || len(names) > 0 {
		t.Errorf("devices: %s, %v", names, err)
	}
}

func TestPlug_BridgeAndPair(t *testing.T) {
	c := open(t)
	bridge(t, c)
	if made, err := c.EnsureBridge(wanted()); made || err != nil {
		t.Errorf("ensured again: %t, %v", made, err)
	}
	taken, err := c.Taken("br-test")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range taken {
		if p.Overlaps(wanted().Address) {
			t.Errorf("the bridge's own subnet counts as taken: %s", taken)
		}
	}
	if taken, err = c.Taken(""); err != nil || !overlaps(taken, wanted().Address) {
		t.Errorf("the bridge's subnet is not taken: %s, %v", taken, err)
	}
	var paths, names []string
	for i, name := range []string{"pa0", "pa1"} {
		path := filepath.Join(t.TempDir(), "ns")
		v := veth(name)
		for range i {
			v.Address = netip.PrefixFrom(v.Address.Addr().Next(), v.Address.Bits())
		}
		v.MAC = ipam.MAC(v.Address.Addr())
		if err := link.Create(path, func() error { return c.Plug(v) }); err != nil {
			t.Fatal(err)
		}
		paths, names = append(paths, path), append(names, name)
	}
	if s, err := c.PeerStats("pa0"); err != nil || s.RxErrors != 0 {
		t.Errorf("counters: %+v, %v", s, err)
	}
	if err := c.Remove(append(names, "pa-never-was")...); err != nil {
		t.Fatal(err)
	}
	if left, err := c.Names("pa"); err != nil || len(left) > 0 {
		t.Errorf("devices: %s, %v", left, err)
	}
	for _, p := range paths {
		if err := link.Remove(p); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.PeerStats("pa0"); err == nil {
		t.Error("a device that is gone has counters")
	}
}

func overlaps(ps []netip.Prefix, with netip.Prefix) bool {
	for _, p := range ps {
		if p.Overlaps(with) {
			return true
		}
	}
	return false
}

func open(t *testing.T) *link.Conn {
	t.Helper()
	c, err := link.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func wanted() link.Bridge {
	gateway := netip.MustParsePrefix("10.77.0.1/24")
	return link.Bridge{Name: "br-test", Address: gateway, MAC: ipam.MAC(gateway.Addr()), MTU: 1400}
}

func bridge(t *testing.T, c *link.Conn) {
	t.Helper()
	if made, err := c.EnsureBridge(wanted()); !made || err != nil {
		t.Fatalf("ensure bridge: %t, %v", made, err)
	}
	t.Cleanup(func() {
		if err := c.Remove("br-test"); err != nil {
			t.Error(err)
		}
	})
}

func veth(name string) link.Veth {
	return link.Veth{
		Name: name, Bridge: "br-test", Peer: "eth0", MTU: 1400, Hairpin: true,
		Address: netip.MustParsePrefix("10.77.0.2/24"), Gateway: wanted().Address.Addr(),
		MAC: ipam.MAC(netip.MustParseAddr("10.77.0.2")),
	}
}

// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"skep/net/link"
	"skep/net/link/linktest"
)

// tunnel makes a namespace with a VXLAN device in it, whose socket is here.
func tunnel(t *testing.T) (inside *link.Conn, device link.Device) {
	t.Helper()
	here := open(t)
	path := filepath.Join(t.TempDir(), "ns")
	if err := link.Create(path, link.Loopback); err != nil {
		t.Fatal(err)
	}
	inside, err := linktest.OpenIn(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := inside.Remove("vxlan0"); err != nil {
			t.Error(err)
		}
		inside.Close()
		if err := link.Remove(path); err != nil {
			t.Error(err)
		}
	})
	v := link.Vxlan{Name: "vxlan0", VNI: 77, Port: 4789, Local: netip.MustParseAddr("192.0.2.1"), MTU: 1450}
	if err := here.AddVxlan(v, path); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := here.Device("vxlan0"); ok || err != nil {
		t.Errorf("the device is here: %t, %v", ok, err)
	}
	device, ok, err := inside.Device("vxlan0")
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	if d := cmp.Diff(&v, device.Vxlan, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("the device is another (-want +got):\n%s", d)
	}
	if err := here.AddVxlan(v, path); !errors.Is(err, link.ErrTaken) {
		t.Errorf("a second one: %v", err)
	}
	if err := link.Within(path, func() error { return link.SpeakIPv6("vxlan0", true) }); err != nil {
		t.Fatal(err)
	}
	return inside, device
}

func entriesOf(t *testing.T, c *link.Conn, d link.Device) []string {
	t.Helper()
	all, err := c.Entries()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range all[d.Index] {
		out = append(out, e.String())
	}
	slices.Sort(out)
	return out
}

func TestProgram_AsManyAsNeeded(t *testing.T) {
	c, d := tunnel(t)
	var set []link.Entry
	for i := range 1000 {
		mac := link.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}
		four := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		six := netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)})
		set = append(set,
			link.Entry{Table: link.Neighbours, MAC: mac, Address: four},
			link.Entry{Table: link.Neighbours, MAC: mac, Address: six},
			link.Entry{Table: link.Forwards, MAC: mac, Address: netip.MustParseAddr("192.0.2.9")})
	}
	var want []string
	for _, e := range set {
		want = append(want, e.String())
	}
	slices.Sort(want)
	for range 2 {
		if err := c.Program(d.Index, set, nil); err != nil {
			t.Fatal(err)
		}
		if got := entriesOf(t, c, d); !slices.Equal(got, want) {
			t.Fatalf("the kernel has %d entries, want %d", len(got), len(want))
		}
	}
	moved := set[2]
	moved.Address = netip.MustParseAddr("192.0.2.10")
	if err := c.Program(d.Index, []link.Entry{moved}, set[3:]); err != nil {
		t.Fatal(err)
	}
	want = []string{"fdb 02:00:00:00:00:00 dst 192.0.2.10", "neigh 10.0.0.0 lladdr 02:00:00:00:00:00", "neigh fd00:: lladdr 02:00:00:00:00:00"}
	if d := cmp.Diff(want, entriesOf(t, c, d)); d != "" {
		t.Errorf("entries (-want +got):\n%s", d)
	}
	// What is not there any more is no error.
	if err := c.Program(d.Index, nil, set); err != nil {
		t.Fatal(err)
	}
	if got := entriesOf(t, c, d); len(got) > 0 {
		t.Errorf("left: %s", got)
	}
}

// The error names the entry; others are programmed, also if very many are refused.
func TestProgram_TellsWhatIsRefused(t *testing.T) {
	c, d := tunnel(t)
	good := func(i byte) link.Entry {
		return link.Entry{Table: link.Forwards, MAC: link.MAC{2, 0, 0, 0, 0, i}, Address: netip.MustParseAddr("192.0.2.9")}
	}
	bad := link.Entry{Table: link.Neighbours, MAC: link.MAC{2, 0, 0, 0, 0, 9}} // of whom?
	set := []link.Entry{good(1)}
	for range 200 {
		set = append(set, bad)
	}
	set = append(set, good(2))
	err := c.Program(d.Index, set, nil)
	if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "program neigh invalid IP lladdr 02:00:00:00:00:09") {
		t.Errorf("error: %v", err)
	}
	if got := entriesOf(t, c, d); len(got) != 2 {
		t.Errorf("entries: %s", got)
	}
	if err := c.Program(d.Index, nil, set[:1]); err != nil {
		t.Errorf("the next: %v", err)
	}
}

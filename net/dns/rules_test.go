// SPDX-License-Identifier: Apache-2.0

package dns_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"skep/net/dns"
	"skep/net/link"
	"skep/net/nft"
)

var update = flag.Bool("update", false, "write the golden files")

func TestResolver_TracksNoConnection(t *testing.T) {
	w := newWorld(t)
	w.Set(state(shop()))
	ns := container(t)
	w.open(t, client(ns, "n1"))
	// A balancer's table has the kernel track all that is not exempted.
	within(t, ns, func() error {
		c, err := nft.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		hook := &nft.Hook{Type: "filter", Point: nft.Output}
		return c.Replace(nft.Table{Name: "tracking", Chains: []nft.Chain{
			{Name: "output", Hook: hook, Rules: []nft.Rule{nft.Rule{}.Established().Accept()}},
		}})
	})
	for _, network := range []string{"udp", "tcp"} {
		ask(t, ns, network, "web")
	}
	within(t, ns, func() error {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
		for _, f := range flows {
			t.Errorf("tracked %s", f)
		}
		return err
	})
}

// table reads the container's table, with its port as P.
func table(tb testing.TB, path string, port string) string {
	tb.Helper()
	var out string
	within(tb, path, func() error {
		c, err := nft.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		t, _, err := c.Read(nft.IPv4, dns.Table)
		out = t.String()
		return err
	})
	return strings.ReplaceAll(out, port, "40001")
}

func (w *world) port(tb testing.TB) string {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join(w.config.RunDir, "dns", "c1"))
	if err != nil {
		tb.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestResolver_ProgramsTheTable(t *testing.T) {
	golden := filepath.Join("testdata", "table.nft")
	planned := dns.Plan(40001).String()
	if *update {
		if err := os.WriteFile(golden, []byte(planned), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), planned); diff != "" {
		t.Errorf("planned (-want +got):\n%s", diff)
	}
	w := newWorld(t)
	ns := container(t)
	w.open(t, client(ns))
	if diff := cmp.Diff(string(want), table(t, ns, w.port(t))); diff != "" {
		t.Errorf("in the kernel (-want +got):\n%s", diff)
	}
}

func TestCheck_MendsTheTable(t *testing.T) {
	w := newWorld(t)
	w.Set(state(shop()))
	ns := container(t)
	w.open(t, client(ns, "n1"))
	before := table(t, ns, w.port(t))
	check := func(want int) {
		t.Helper()
		if n, err := w.Check(t.Context()); n != want || err != nil {
			t.Errorf("got %d %v, want %d", n, err, want)
		}
	}
	check(0)
	edit := func(edit func(c *nft.Conn) error) {
		t.Helper()
		within(t, ns, func() error {
			c, err := nft.Open()
			if err != nil {
				return err
			}
			defer c.Close()
			return edit(c)
		})
	}
	edit(func(c *nft.Conn) error { return c.Delete(nft.IPv4, dns.Table) })
	check(1)
	edit(func(c *nft.Conn) error { return c.Replace(dns.Plan(1234)) })
	check(1)
	edit(func(c *nft.Conn) error { return c.Replace(nft.Table{Name: "another"}) })
	check(0)
	if diff := cmp.Diff(before, table(t, ns, w.port(t))); diff != "" {
		t.Errorf("mended (-want +got):\n%s", diff)
	}
	if got := text(ask(t, ns, "udp", "web")); got != "NOERROR 60:10.0.1.2" {
		t.Errorf("got %s", got)
	}
	// A container that has ended is no error.
	if err := link.Remove(ns); err != nil {
		t.Fatal(err)
	}
	check(0)
}

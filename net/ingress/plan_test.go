// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/network"

	"skep/net/ingress"
	"skep/net/link/linktest"
	"skep/net/link/vmtest"
	"skep/net/nft"
	"skep/store/object"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) { vmtest.Main(m, linktest.Main) }

func local() ingress.Local {
	return ingress.Local{Table: "skep-0a1b2c", Bridge: "sk0a1b2c", Subnet: netip.MustParsePrefix("172.17.0.0/20")}
}

func end(addr string, ports ...object.Port) ingress.Endpoint {
	return ingress.Endpoint{Address: netip.MustParseAddr(addr), Ports: ports}
}

func own(proto network.IPProtocol, ip string, host, container uint16) object.Port {
	return object.Port{Protocol: proto, HostIP: ip, Host: host, Container: container}
}

type plan struct {
	name      string
	endpoints []ingress.Endpoint
}

func plans() []plan {
	return []plan{
		{"empty", nil},
		{"one", []ingress.Endpoint{end("172.17.0.2", own("tcp", "", 8080, 80))}},
		{"several", []ingress.Endpoint{
			end("172.17.0.10", own("tcp", "", 8080, 80)),
			end("172.17.0.9", own("tcp", "", 8081, 80), own("udp", "", 8080, 81)),
		}},
		{"addresses", []ingress.Endpoint{
			end("172.17.0.2", own("tcp", "127.0.0.1", 8080, 80), own("udp", "0.0.0.0", 53, 53)),
			end("172.17.0.3", own("tcp", "10.0.0.1", 8080, 80), own("udp", "10.0.0.1", 5353, 53)),
		}},
	}
}

func TestPlan_Golden(t *testing.T) {
	for _, p := range plans() {
		t.Run(p.name, func(t *testing.T) {
			got := ingress.Plan(local(), p.endpoints).String()
			path := filepath.Join("testdata", p.name+".nft")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("plan differs (-want +got):\n%s", d)
			}
			slices.Reverse(p.endpoints)
			if again := ingress.Plan(local(), p.endpoints).String(); again != got {
				t.Errorf("the endpoints' order matters:\n%s", cmp.Diff(got, again))
			}
		})
	}
}

// The kernel holds what the text says, whether the table is made whole or by
// the difference from any other.
func TestPlan_KernelAgrees(t *testing.T) {
	c, err := nft.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	table := local().Table
	check := func(t *testing.T, want nft.Table) {
		t.Helper()
		got, ok, err := c.Read(nft.IPv4, table)
		if err != nil || !ok {
			t.Fatalf("read: %t, %v", ok, err)
		}
		if d := cmp.Diff(want.String(), got.String()); d != "" {
			t.Fatalf("kernel differs (-want +got):\n%s", d)
		}
	}
	for _, from := range plans() {
		now := ingress.Plan(local(), from.endpoints)
		for _, to := range plans() {
			t.Run(from.name+" to "+to.name, func(t *testing.T) {
				if err := c.Replace(now); err != nil {
					t.Fatal(err)
				}
				check(t, now)
				next := ingress.Plan(local(), to.endpoints)
				if err := c.Apply(now, next); err != nil {
					t.Fatal(err)
				}
				check(t, next)
			})
		}
	}
	if err := c.Delete(nft.IPv4, table); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(nft.IPv4, table); err != nil {
		t.Fatalf("delete what is gone: %v", err)
	}
	if _, ok, err := c.Read(nft.IPv4, table); ok || err != nil {
		t.Fatalf("table is still there: %t, %v", ok, err)
	}
}

// However endpoints come, change and go: the difference that is applied leads
// to the table that is planned.
func TestPlan_KernelFollowsAnySequence(t *testing.T) {
	c, err := nft.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	r := rand.New(rand.NewPCG(7, 11))
	ends := map[byte]ingress.Endpoint{}
	plan := func() nft.Table { return ingress.Plan(local(), slices.Collect(maps.Values(ends))) }
	now := plan()
	if err = c.Replace(now); err != nil {
		t.Fatal(err)
	}
	for step := range 300 {
		for range 1 + r.IntN(3) {
			id := byte(2 + r.IntN(8))
			if r.IntN(3) == 0 {
				delete(ends, id)
				continue
			}
			e := end(netip.AddrFrom4([4]byte{172, 17, 0, id}).String())
			for range r.IntN(4) {
				proto := []network.IPProtocol{network.TCP, network.UDP}[r.IntN(2)]
				ip := []string{"", "127.0.0.1", "10.0.0.1"}[r.IntN(3)]
				// Nobody else's.
				e.Ports = append(e.Ports, own(proto, ip, uint16(8000+100*int(id)+r.IntN(3)), uint16(80+r.IntN(2))))
			}
			ends[id] = e
		}
		next := plan()
		if err = c.Apply(now, next); err != nil {
			t.Fatalf("step %d: %v\nfrom %s\nto %s", step, err, now, next)
		}
		now = next
		got, _, err := c.Read(nft.IPv4, now.Name)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(now.String(), got.String()); d != "" {
			t.Fatalf("step %d: kernel differs (-want +got):\n%s", step, d)
		}
	}
	if err := c.Delete(nft.IPv4, local().Table); err != nil {
		t.Fatal(err)
	}
}

func many(n int) []ingress.Endpoint {
	var es []ingress.Endpoint
	a := netip.MustParseAddr("172.17.0.1")
	for i := range n {
		a = a.Next()
		es = append(es, end(a.String(), own("tcp", "", uint16(10000+i), 80)))
	}
	return es
}

func TestPlan_LargeTableIsOneTransaction(t *testing.T) {
	c, err := nft.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	want := ingress.Plan(local(), many(2000))
	before, err := c.Generation()
	if err != nil {
		t.Fatal(err)
	}
	if err = c.Replace(want); err != nil {
		t.Fatal(err)
	}
	after, err := c.Generation()
	if err != nil {
		t.Fatal(err)
	}
	if after != before+1 {
		t.Errorf("%d transactions, want 1", after-before)
	}
	got, _, err := c.Read(nft.IPv4, want.Name)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != want.String() {
		t.Error("the kernel's table differs")
	}
	if err := c.Delete(nft.IPv4, want.Name); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkPlan(b *testing.B) {
	for _, n := range []int{10, 1000} {
		es := many(n)
		b.Run(fmt.Sprintf("endpoints=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				ingress.Plan(local(), es)
			}
		})
	}
}

func BenchmarkReplace(b *testing.B) {
	c, err := nft.Open()
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for _, n := range []int{10, 1000} {
		t := ingress.Plan(local(), many(n))
		b.Run(fmt.Sprintf("endpoints=%d", n), func(b *testing.B) {
			for b.Loop() {
				if err := c.Replace(t); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	if err := c.Delete(nft.IPv4, local().Table); err != nil {
		b.Fatal(err)
	}
}

// One endpoint more or less among many, as when a container starts or ends.
func BenchmarkApply(b *testing.B) {
	c, err := nft.Open()
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for _, n := range []int{10, 1000} {
		es := many(n)
		b.Run(fmt.Sprintf("endpoints=%d", n), func(b *testing.B) {
			with, without := ingress.Plan(local(), es), ingress.Plan(local(), es[1:])
			if err := c.Replace(with); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if err := c.Apply(with, without); err != nil {
					b.Fatal(err)
				}
				with, without = without, with
			}
		})
	}
	if err := c.Delete(nft.IPv4, local().Table); err != nil {
		b.Fatal(err)
	}
}

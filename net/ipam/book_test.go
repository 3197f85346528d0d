// SPDX-License-Identifier: Apache-2.0

package ipam_test

import (
	"errors"
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"skep/net/ipam"
)

func TestHosts(t *testing.T) {
	tests := []struct {
		subnet, within string
		want           string // first, last; empty if refused
		n              uint64
	}{
		{"10.0.0.0/24", "", "10.0.0.1-10.0.0.254", 254},
		{"10.0.0.7/30", "", "10.0.0.5-10.0.0.6", 2},
		{"10.0.0.0/24", "10.0.0.128/25", "10.0.0.128-10.0.0.254", 127},
		{"10.0.0.0/24", "10.0.0.0/28", "10.0.0.1-10.0.0.15", 15},
		{"10.0.0.0/24", "10.0.0.9/32", "10.0.0.9-10.0.0.9", 1},
		{"10.0.0.0/24", "10.0.0.0/32", "", 0},
		{"10.0.0.0/24", "10.0.0.0/23", "", 0},
		{"10.0.0.0/24", "10.0.1.0/25", "", 0},
		{"10.0.0.0/31", "", "", 0},
		{"::ffff:10.0.0.0/120", "", "", 0},
		{"fd00::/126", "", "fd00::1-fd00::3", 3},
		{"fd00::/64", "", "fd00::1-fd00::ffff:ffff:ffff:ffff", math.MaxUint64},
		{"fd00::/63", "", "fd00::1-fd00::1:ffff:ffff:ffff:ffff", math.MaxUint64},
		{"0.0.0.0/0", "", "0.0.0.1-255.255.255.254", 1<<32 - 2},
	}
	for _, tt := range tests {
		var within netip.Prefix
		if tt.within != "" {
			within = netip.MustParsePrefix(tt.within)
		}
		got, err := ipam.Hosts(netip.MustParsePrefix(tt.subnet), within)
		switch {
		case tt.want == "" && !errors.Is(err, errdefs.ErrInvalidArgument):
			t.Errorf("hosts of %s in %s: got %v, %v; want a refusal", tt.subnet, tt.within, got, err)
		case tt.want != "" && (err != nil || got.First.String()+"-"+got.Last.String() != tt.want || got.Len() != tt.n):
			t.Errorf("hosts of %s in %s: got %v (%d), %v; want %s (%d)", tt.subnet, tt.within, got, got.Len(), err, tt.want, tt.n)
		}
	}
}

func TestFirstFree_IPv6(t *testing.T) {
	r := []ipam.Range{{Base: netip.MustParsePrefix("fd00:1:2::/48"), Bits: 64}}
	taken := []netip.Prefix{netip.MustParsePrefix("fd00:1:2:1::/64"), netip.MustParsePrefix("fd00:1:2::/64"), netip.MustParsePrefix("10.0.0.0/8")}
	if got, err := ipam.FirstFree(r, taken); err != nil || got.String() != "fd00:1:2:2::/64" {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestBook_SpansAreOneRing(t *testing.T) {
	now := time.Unix(1000, 0)
	b := ipam.NewBook()
	spans := []ipam.Span{span("10.0.0.1", "10.0.0.2"), span("10.9.0.1", "10.9.0.1")}
	for _, want := range []string{"10.0.0.1", "10.0.0.2", "10.9.0.1"} {
		if got, err := b.Take(spans, now); err != nil || got.String() != want {
			t.Fatalf("got %s, %v; want %s", got, err, want)
		}
	}
	if _, err := b.Take(spans, now); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Fatalf("got %v from a network that is full", err)
	}
	second := netip.MustParseAddr("10.0.0.2")
	b.Hold(second)
	if b.Release(second, now) {
		t.Fatal("an address rests that has another holder")
	}
	if !b.Release(second, now) || b.Wake(spans) != now.Add(ipam.Quarantine) {
		t.Fatalf("the last holder is gone, and the address rests until %v", b.Wake(spans))
	}
	if _, err := b.Take(spans, now.Add(ipam.Quarantine-1)); err == nil {
		t.Fatal("an address was given during its rest")
	}
	if got, err := b.Take(spans, now.Add(ipam.Quarantine)); err != nil || got != second {
		t.Fatalf("got %s, %v", got, err)
	}
}

func span(first, last string) ipam.Span {
	return ipam.Span{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)}
}

// Property: a book hands out what is in the spans, held by nobody and rested;
// when it hands out nothing, there is no such address.
func FuzzBook(f *testing.F) {
	f.Add([]byte{10, 9, 0, 0}, uint8(28), []byte{0, 1, 2, 3, 0, 0, 0, 0, 200, 0})
	f.Add([]byte{0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, uint8(125), []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 3})
	f.Add([]byte{255, 255, 255, 255}, uint8(30), []byte{0, 0, 0})
	f.Fuzz(func(t *testing.T, base []byte, bits uint8, verbs []byte) {
		a, ok := netip.AddrFromSlice(base)
		if !ok {
			return
		}
		subnet := netip.PrefixFrom(a, int(bits))
		hosts, err := ipam.Hosts(subnet, netip.Prefix{})
		if err != nil || len(verbs) > 512 {
			return
		}
		if subnet.Masked().Addr() == hosts.First || !subnet.Contains(hosts.First) || !subnet.Contains(hosts.Last) || hosts.Len() == 0 {
			t.Fatalf("hosts of %s: %v", subnet, hosts)
		}
		b, now := ipam.NewBook(), time.Unix(0, 0)
		free := map[netip.Addr]time.Time{} // of those that were held once: since when not
		var mine []netip.Addr
		for _, v := range verbs {
			now = now.Add(time.Duration(v) * time.Second)
			if v%4 == 3 && len(mine) > 0 {
				free[mine[0]] = now
				b.Release(mine[0], now)
				mine = mine[1:]
				continue
			}
			got, err := b.Take([]ipam.Span{hosts}, now)
			if err != nil {
				if uint64(len(mine)+len(free)) < hosts.Len() {
					t.Fatalf("nothing is free of %d with %d held and %d let go", hosts.Len(), len(mine), len(free))
				}
				for a, since := range free {
					if now.Sub(since) >= ipam.Quarantine {
						t.Fatalf("%s is free since %v, at %v", a, since, now)
					}
				}
				continue
			}
			since, was := free[got]
			for _, m := range mine {
				if m == got {
					t.Fatalf("%s was given twice", got)
				}
			}
			if !hosts.Contains(got) || (was && now.Sub(since) < ipam.Quarantine) {
				t.Fatalf("%s was given after %v", got, now.Sub(since))
			}
			delete(free, got)
			mine = append(mine, got)
		}
		if b.Len() != len(mine) {
			t.Fatalf("%d are held, want %d", b.Len(), len(mine))
		}
	})
}

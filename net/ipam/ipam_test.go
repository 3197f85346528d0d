// SPDX-License-Identifier: Apache-2.0

package ipam_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"skep/net/ipam"
)

func pool(tb testing.TB, subnet string) *ipam.Pool {
	tb.Helper()
	p := netip.MustParsePrefix(subnet)
	pool, err := ipam.New(p, p.Masked().Addr().Next())
	if err != nil {
		tb.Fatal(err)
	}
	return pool
}

func take(tb testing.TB, p *ipam.Pool, now time.Time) string {
	tb.Helper()
	a, err := p.Take(now)
	if err != nil {
		tb.Fatal(err)
	}
	return a.String()
}

func TestPool_IsSerialAndRests(t *testing.T) {
	now := time.Unix(1000, 0)
	p := pool(t, "10.0.0.0/29") // .1 is reserved, .2 to .6 are free
	for _, want := range []string{"10.0.0.2", "10.0.0.3"} {
		if got := take(t, p, now); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
	p.Release(netip.MustParseAddr("10.0.0.2"), now)
	for _, want := range []string{"10.0.0.4", "10.0.0.5", "10.0.0.6"} {
		if got := take(t, p, now); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
	if _, err := p.Take(now.Add(ipam.Quarantine - 1)); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Fatalf("an address in quarantine was handed out, or a wrong error came: %v", err)
	}
	if got := take(t, p, now.Add(ipam.Quarantine)); got != "10.0.0.2" {
		t.Fatalf("got %s, want the address that has rested", got)
	}
}

func TestPool_GoesOnAfterARestart(t *testing.T) {
	now := time.Unix(1000, 0)
	before := pool(t, "10.0.0.0/24")
	kept := take(t, before, now)
	gone := take(t, before, now)
	before.Release(netip.MustParseAddr(gone), now)

	after := pool(t, "10.0.0.0/24")
	if err := after.Claim(netip.MustParseAddr(kept)); err != nil {
		t.Fatal(err)
	}
	after.Resume(before.Next())
	if got := take(t, after, now); got == kept || got == gone {
		t.Fatalf("handed out %s, which is %s (in use) or %s (just released)", got, kept, gone)
	}
	if err := after.Claim(netip.MustParseAddr(kept)); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Fatalf("claimed an address twice: %v", err)
	}
}

func TestPool_RefusesWhatIsNotItsOwn(t *testing.T) {
	for _, s := range []string{"10.0.0.0/31", "10.0.0.0/32", "fd00::/64"} {
		if _, err := ipam.New(netip.MustParsePrefix(s)); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("subnet %s: %v", s, err)
		}
	}
	p := pool(t, "10.0.0.0/24")
	for _, s := range []string{"10.0.0.0", "10.0.0.255", "10.0.1.1", "fd00::1"} {
		if err := p.Claim(netip.MustParseAddr(s)); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("address %s: %v", s, err)
		}
	}
}

func TestFirstFree(t *testing.T) {
	node := ipam.NodeRanges()
	small := []ipam.Range{{Base: netip.MustParsePrefix("10.0.0.0/22"), Bits: 24}}
	tests := []struct {
		name   string
		ranges []ipam.Range
		taken  []string
		want   string
	}{
		{"nothing is taken", node, nil, "172.17.0.0/20"},
		{"Docker's bridge is there", node, []string{"172.17.0.0/16"}, "172.18.0.0/20"},
		{"a small network in the first", node, []string{"172.17.3.0/24"}, "172.17.16.0/20"},
		{"one address", small, []string{"10.0.0.7/32", "10.0.1.0/24"}, "10.0.2.0/24"},
		{"a block over all but the last", node, []string{"172.16.0.0/12"}, "192.168.0.0/20"},
		{"the last one", small, []string{"10.0.0.0/23", "10.0.2.0/24"}, "10.0.3.0/24"},
		{"all is taken", small, []string{"10.0.0.0/8"}, ""},
		{"the whole address space", node, []string{"0.0.0.0/0"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var taken []netip.Prefix
			for _, s := range tt.taken {
				taken = append(taken, netip.MustParsePrefix(s))
			}
			got, err := ipam.FirstFree(tt.ranges, taken)
			if tt.want == "" {
				if !errors.Is(err, errdefs.ErrResourceExhausted) {
					t.Fatalf("got %s, %v", got, err)
				}
				return
			}
			if err != nil || got.String() != tt.want {
				t.Fatalf("got %s, %v; want %s", got, err, tt.want)
			}
		})
	}
}

func TestMAC(t *testing.T) {
	if got := ipam.MAC(netip.MustParseAddr("172.17.0.2")).String(); got != "02:42:ac:11:00:02" {
		t.Fatal(got)
	}
}

// Property: what FirstFree finds lies in a range and overlaps nothing taken;
// what a pool hands out is a host of its subnet, and nobody else's.
func FuzzIPAM(f *testing.F) {
	f.Add(uint32(0x0a000000), uint8(22), uint8(28), uint32(0x0a000100), uint8(24), []byte{0, 1, 0, 0, 1, 1, 0})
	f.Add(uint32(0), uint8(0), uint8(30), uint32(0), uint8(1), []byte{0, 0, 0, 0, 0, 0})
	f.Add(^uint32(0), uint8(24), uint8(30), uint32(0), uint8(0), []byte{1})
	f.Fuzz(func(t *testing.T, base uint32, baseBits, bits uint8, taken uint32, takenBits uint8, verbs []byte) {
		addr := func(n uint32) netip.Addr {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], n)
			return netip.AddrFrom4(b)
		}
		if int(bits) > int(baseBits)+10 {
			return // no more than a thousand subnets to look at
		}
		r := ipam.Range{Base: netip.PrefixFrom(addr(base), int(baseBits)), Bits: int(bits)}
		other := netip.PrefixFrom(addr(taken), int(takenBits)).Masked()
		s, err := ipam.FirstFree([]ipam.Range{r}, []netip.Prefix{other})
		if err != nil {
			return
		}
		if !r.Base.Contains(s.Addr()) || s.Bits() != r.Bits || s != s.Masked() || (other.IsValid() && other.Overlaps(s)) {
			t.Fatalf("chose %s of %v although %s is taken", s, r, other)
		}
		p, err := ipam.New(s)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Unix(0, 0)
		var mine []netip.Addr
		have := map[netip.Addr]bool{}
		for _, v := range verbs {
			now = now.Add(time.Duration(v) * time.Second)
			if v%3 == 0 && len(mine) > 0 {
				p.Release(mine[0], now)
				delete(have, mine[0])
				mine = mine[1:]
				continue
			}
			a, err := p.Take(now)
			if err != nil {
				continue
			}
			if have[a] || !s.Contains(a) || a == s.Addr() || a == ipam.Last(s) {
				t.Fatalf("handed out %s of %s, in use: %t", a, s, have[a])
			}
			have[a] = true
			mine = append(mine, a)
		}
	})
}

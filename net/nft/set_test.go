// SPDX-License-Identifier: Apache-2.0

package nft_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"skep/net/link/linktest"
	"skep/net/nft"
)

func TestMain(m *testing.M) { linktest.Main(m) }

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, last} }

func base(name, kind string, at nft.Point, priority int32, rules ...nft.Rule) nft.Chain {
	return nft.Chain{Name: name, Hook: &nft.Hook{Type: kind, Point: at, Priority: priority}, Rules: rules}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// frames is a table that changes frames' addresses.
func frames(n byte) nft.Table {
	var r nft.Rule
	by := nft.Map{Name: "routers", Key: "ipv4_addr", Value: "ether_addr"}
	slots := nft.Map{Name: "slots", Key: "inet_service", Value: "ether_addr"}
	for i := range n {
		by.Elements = append(by.Elements, nft.Element{Key: nft.Pack(netip.AddrFrom4([4]byte{169, 254, 64, i})), Value: nft.Pack(mac(i))})
		slots.Elements = append(slots.Elements, nft.Element{Key: nft.Pack(uint16(i)), Value: nft.Pack(mac(i + n%2))})
	}
	to := r.ToMAC(mac(200))
	parts := nft.Map{Name: "parts", Key: "ipv4_addr . ipv4_addr . integer", Value: "ether_addr", Timeout: 2 * time.Second}
	id := []nft.Part{nft.SourceIPv4, nft.DestIPv4, nft.PacketID}
	return nft.Table{Family: nft.Bridge, Name: "test", Maps: []nft.Map{by, slots, parts}, Chains: []nft.Chain{
		base("prerouting", "filter", nft.Prerouting, -300,
			to.SetMACBy("routers", nft.DestIPv4),
			to.FirstFragment().RememberMAC("parts", "slots", nft.SourcePort, 0x3ff, id...),
			to.LaterFragment().SetMACBy("parts", id...),
			to.Proto(unix.IPPROTO_ICMP).SetMACByMasked("slots", nft.BlamedPort, 0x3ff),
			to.SetMACByMasked("slots", nft.SourcePort, 0x3ff),
			to.Drop(),
			r.ToMAC(mac(1)).ForUs()),
	}}
}

// packets is a table of sets and translations.
func packets(n uint16) nft.Table {
	var r nft.Rule
	published := nft.Map{Name: "published", Key: "inet_proto . inet_service"}
	for i := range n {
		published.Elements = append(published.Elements, nft.Element{Key: nft.PortKey(netip.Addr{}, unix.IPPROTO_TCP, 8000+i)})
	}
	senders := nft.Map{Name: "senders", Key: "ipv4_addr . inet_service . inet_service", Timeout: 3 * time.Minute}
	inside := netip.MustParsePrefix("10.0.0.0/24")
	target := func(port uint16) []nft.Target { return []nft.Target{{Address: addr("10.0.0.5"), Port: port}} }
	return nft.Table{Name: "test", Maps: []nft.Map{published, senders}, Chains: []nft.Chain{
		base("prerouting", "nat", nft.Prerouting, -100,
			r.ToLocal().In("published", nft.Protocol, nft.DestPort).Translate(target(0)),
			r.NotFrom(inside).Proto(unix.IPPROTO_TCP).Masked(nft.DestPort, 0xfc00, 0x5000).Translate(target(80))),
		base("input", "filter", nft.Input, 110,
			r.Proto(unix.IPPROTO_UDP).Remember("senders", nft.SourceIPv4, nft.SourcePort, nft.DestPort)),
		base("output", "route", nft.Output, -300,
			r.In("senders", nft.DestIPv4, nft.DestPort, nft.SourcePort).NotFrom(netip.MustParsePrefix("10.0.0.5/32")).
				SetSource(addr("10.0.0.5"))),
		base("postrouting", "nat", nft.Postrouting, 100,
			r.To(inside).In("published", nft.Protocol, nft.DestPort).TranslateSource(addr("169.254.64.1"))),
	}}
}

const wantFrames = `table bridge test {
	map parts {
		type ipv4_addr . ipv4_addr . integer : ether_addr; flags dynamic,timeout; timeout 2s;
	}
	map routers {
		169.254.64.0 : 02:00:00:00:00:00
	}
	map slots {
		0 : 02:00:00:00:00:01
	}
	chain prerouting {
		type filter hook prerouting priority -300; policy accept;
		ether daddr 02:00:00:00:00:c8 ether daddr set ip daddr map @routers
		ether daddr 02:00:00:00:00:c8 ip frag-off & 0x3fff == 0x2000 add @parts { ip saddr . ip daddr . ip id : th sport & 0x03ff map @slots }
		ether daddr 02:00:00:00:00:c8 ip frag-off & 0x1fff != 0x0000 ether daddr set ip saddr . ip daddr . ip id map @parts
		ether daddr 02:00:00:00:00:c8 meta l4proto icmp ether daddr set icmp th dport & 0x03ff map @slots
		ether daddr 02:00:00:00:00:c8 ether daddr set th sport & 0x03ff map @slots
		ether daddr 02:00:00:00:00:c8 drop
		ether daddr 02:00:00:00:00:01 meta pkttype set host
	}
}
`

const wantPackets = `table ip test {
	set published {
		tcp . 8000
	}
	set senders {
		type ipv4_addr . inet_service . inet_service; flags dynamic,timeout; timeout 3m0s;
	}
	chain prerouting {
		type nat hook prerouting priority -100; policy accept;
		fib daddr type local meta l4proto . th dport @published dnat to 10.0.0.5
		ip saddr != 10.0.0.0/24 meta l4proto tcp th dport & 0xfc00 == 0x5000 dnat to 10.0.0.5 . 80
	}
	chain input {
		type filter hook input priority 110; policy accept;
		meta l4proto udp update @senders { ip saddr . th sport . th dport }
	}
	chain output {
		type route hook output priority -300; policy accept;
		ip daddr . th dport . th sport @senders ip saddr != 10.0.0.5/32 ip saddr set 10.0.0.5
	}
	chain postrouting {
		type nat hook postrouting priority 100; policy accept;
		ip daddr 10.0.0.0/24 meta l4proto . th dport @published snat to 169.254.64.1
	}
}
`

func TestTable_Prints(t *testing.T) {
	if d := cmp.Diff(wantFrames, frames(1).String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if d := cmp.Diff(wantPackets, packets(1).String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// The kernel holds what the text says, whether the table is made whole or by
// the difference from another.
func TestConn_KernelAgrees(t *testing.T) {
	c, err := nft.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	check := func(want nft.Table) {
		t.Helper()
		got, ok, err := c.Read(want.Family, want.Name)
		if err != nil || !ok {
			t.Fatalf("read: %t, %v", ok, err)
		}
		if d := cmp.Diff(want.String(), got.String()); d != "" {
			t.Fatalf("kernel differs (-want +got):\n%s", d)
		}
	}
	for from := range byte(4) {
		for to := range byte(4) {
			for _, pair := range [][2]nft.Table{{frames(from), frames(to)}, {packets(uint16(from)), packets(uint16(to))}} {
				if err := c.Replace(pair[0]); err != nil {
					t.Fatal(err)
				}
				check(pair[0])
				if err := c.Apply(pair[0], pair[1]); err != nil {
					t.Fatal(err)
				}
				check(pair[1])
			}
		}
	}
	for _, f := range []nft.Family{nft.Bridge, nft.IPv4} {
		if err := c.Delete(f, "test"); err != nil {
			t.Fatal(err)
		}
		if _, ok, err := c.Read(f, "test"); ok || err != nil {
			t.Fatalf("table is still there: %t, %v", ok, err)
		}
	}
}

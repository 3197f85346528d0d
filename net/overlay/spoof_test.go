// SPDX-License-Identifier: Apache-2.0

package overlay_test

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// A container's frames arrive only if they say truly whom they are from, by
// another node as by this one.
func TestOverlay_ContainerCannotPretendToBeAnother(t *testing.T) {
	n1, _, c1, far := pair(t)
	near := n1.attach(t, "near", webID, "10.0.9.7/24", "fd00:9::7/64")
	other := n1.attach(t, "other", webID, "10.0.9.8/24", "fd00:9::8/64")
	out := tap(t, c1)
	own4, own6 := c1.addrs()[0], c1.addrs()[1]
	for _, victim := range []*box{near, far} {
		in := tap(t, victim)
		v4, v6 := victim.addrs()[0], victim.addrs()[1]
		to := victim.MAC
		tests := []struct {
			name    string
			arrives bool
			frame   []byte
		}{
			{"its own packet", true, frame(to, c1.MAC, unix.ETH_P_IP, udp4(own4, v4))},
			{"its own packet, IPv6", true, frame(to, c1.MAC, unix.ETH_P_IPV6, udp6(own6, v6))},
			// Those to other nodes are asked of this one, so there is nobody to answer.
			{"its own answer about itself", victim == near, frame(to, c1.MAC, unix.ETH_P_ARP, arp(2, c1.MAC, own4, v4))},
			{"its own advertisement", true, frame(to, c1.MAC, unix.ETH_P_IPV6, icmp6(136, c1.MAC, own6, v6, own6))},
			{"another's MAC", false, frame(to, other.MAC, unix.ETH_P_IP, udp4(own4, v4))},
			{"another's address", false, frame(to, c1.MAC, unix.ETH_P_IP, udp4(other.addrs()[0], v4))},
			{"an address of no one", false, frame(to, c1.MAC, unix.ETH_P_IP, udp4(netip.MustParseAddr("192.0.2.1"), v4))},
			{"another's address, IPv6", false, frame(to, c1.MAC, unix.ETH_P_IPV6, udp6(other.addrs()[1], v6))},
			{"another's MAC and address", false, frame(to, other.MAC, unix.ETH_P_IP, udp4(other.addrs()[0], v4))},
			{"ARP for another", false, frame(to, c1.MAC, unix.ETH_P_ARP, arp(2, c1.MAC, other.addrs()[0], v4))},
			{"ARP with another's MAC", false, frame(to, c1.MAC, unix.ETH_P_ARP, arp(2, other.MAC, own4, v4))},
			{"ARP for another to all", false, frame(everybody, c1.MAC, unix.ETH_P_ARP, arp(1, c1.MAC, other.addrs()[0], v4))},
			{"advertisement for another", false, frame(to, c1.MAC, unix.ETH_P_IPV6, icmp6(136, c1.MAC, own6, v6, other.addrs()[1]))},
			{"solicitation by another", false, frame(to, c1.MAC, unix.ETH_P_IPV6, icmp6(135, c1.MAC, other.addrs()[1], v6, v6))},
			{"router's advertisement", false, frame(to, c1.MAC, unix.ETH_P_IPV6, icmp6(134, c1.MAC, own6, v6, own6))},
			{"redirect", false, frame(to, c1.MAC, unix.ETH_P_IPV6, icmp6(137, c1.MAC, own6, v6, own6))},
			{"a tag", false, frame(to, c1.MAC, unix.ETH_P_8021Q, append([]byte{0, 1, 8, 0}, udp4(own4, v4)...))},
			{"another protocol", false, frame(to, c1.MAC, 0x88b5, []byte(marked))},
		}
		for _, test := range tests {
			payload := test.frame[14:]
			out.send(t, test.frame)
			// A true one behind it: when that has come, the other would have.
			out.send(t, frame(to, c1.MAC, unix.ETH_P_IP, append(udp4(own4, v4), test.name...)))
			arrived := false
			behind := in.await(t, 10*time.Second, func(b []byte) bool {
				arrived = arrived || len(b) >= 14+len(payload) && bytes.Equal(b[14:14+len(payload)], payload) && !bytes.HasSuffix(b, []byte(test.name))
				return bytes.HasSuffix(b, []byte(test.name))
			})
			if !behind {
				t.Errorf("%s to %s: the true packet did not arrive", test.name, victim.ID)
			}
			if arrived != test.arrives {
				t.Errorf("%s to %s: arrived: %t, want %t", test.name, victim.ID, arrived, test.arrives)
			}
		}
	}
}

// Who asks for an address is answered by the node, and nobody else hears of it.
func TestOverlay_NothingIsFlooded(t *testing.T) {
	n1, n2, c1, far := pair(t)
	near := n1.attach(t, "near", webID, "10.0.9.7/24", "fd00:9::7/64")
	asker := tap(t, c1)
	listeners := map[string]*wire{"the container beside": tap(t, near), "the container afar": tap(t, far)}
	leaves := tap(t, n2)
	own4, own6 := c1.addrs()[0], c1.addrs()[1]
	for _, test := range []struct {
		who          string
		four, six    string
		mac          net.HardwareAddr
		isUnanswered bool
	}{
		{who: "beside", four: "10.0.9.7", six: "fd00:9::7", mac: near.MAC},
		{who: "afar", four: "10.0.9.6", six: "fd00:9::6", mac: far.MAC},
		{who: "nobody", four: "10.0.9.200", six: "fd00:9::200", isUnanswered: true},
	} {
		limit := 10 * time.Second
		if test.isUnanswered {
			limit = time.Second / 2
		}
		a4, a6 := netip.MustParseAddr(test.four), netip.MustParseAddr(test.six)
		asker.send(t, frame(everybody, c1.MAC, unix.ETH_P_ARP, arp(1, c1.MAC, own4, a4)))
		answered := asker.await(t, limit, func(b []byte) bool {
			return len(b) >= 42 && b[12] == 8 && b[13] == 6 && bytes.Equal(b[22:28], test.mac) && bytes.Equal(b[28:32], a4.AsSlice())
		})
		if answered == test.isUnanswered {
			t.Errorf("ARP for who is %s: answered: %t", test.who, answered)
		}
		group := netip.MustParseAddr("ff02::1:ff00:0").As16()
		last := a6.As16()
		copy(group[13:], last[13:])
		groupMAC := append(net.HardwareAddr{0x33, 0x33}, group[12:]...)
		asker.send(t, frame(groupMAC, c1.MAC, unix.ETH_P_IPV6, icmp6(135, c1.MAC, own6, netip.AddrFrom16(group), a6)))
		answered = asker.await(t, limit, func(b []byte) bool {
			return len(b) >= 86 && b[12] == 0x86 && b[54] == 136 && bytes.Equal(b[62:78], last[:]) && bytes.Equal(b[80:86], test.mac)
		})
		if answered == test.isUnanswered {
			t.Errorf("neighbour discovery for who is %s: answered: %t", test.who, answered)
		}
	}
	// To a station that nobody has told of, and to all.
	asker.send(t, frame(net.HardwareAddr{2, 0, 0, 0, 0, 1}, c1.MAC, unix.ETH_P_IP, udp4(own4, netip.MustParseAddr("10.0.9.201"))))
	asker.send(t, frame(everybody, c1.MAC, unix.ETH_P_IP, udp4(own4, netip.MustParseAddr("10.0.9.255"))))
	for name, l := range listeners {
		if l.await(t, time.Second/4, func([]byte) bool { return true }) {
			t.Errorf("%s heard something", name)
		}
	}
	if leaves.await(t, time.Second/4, func(b []byte) bool { return len(b) > 38 && b[23] == unix.IPPROTO_UDP && b[36] == 0x12 && b[37] == 0xb5 }) {
		t.Error("something went to the other node")
	}
}

// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// EtherType is what a frame carries. A frame with a VLAN tag carries a tag.
type EtherType uint16

// The types that rules name.
const (
	EtherIPv4 EtherType = unix.ETH_P_IP
	EtherARP  EtherType = unix.ETH_P_ARP
	EtherIPv6 EtherType = unix.ETH_P_IPV6
)

// The messages of ICMPv6 by which neighbours and routers are found.
const (
	RouterAdvertisement    uint8 = 134
	NeighbourAdvertisement uint8 = 136
	Redirect               uint8 = 137
)

// DeviceKey packs the key of a map by device.
func DeviceKey(name string) string {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return string(b)
}

// ByDevice goes to the chain that the map has for the device that the packet
// came in by, and goes on with the next rule if it has none.
func (r Rule) ByDevice(m string) Rule {
	return r.with(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}).vmap(m)
}

// NotFromMAC limits a rule to frames that do not say they are from a device.
func (r Rule) NotFromMAC(mac net.HardwareAddr) Rule {
	return r.field(expr.PayloadBaseLLHeader, 6, expr.CmpOpNeq, mac)
}

// Carries limits a rule to frames of a type.
func (r Rule) Carries(t EtherType) Rule {
	return r.field(expr.PayloadBaseLLHeader, 12, expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, uint16(t)))
}

// FromAddress limits a rule to packets from an address, of either family. In
// tables of frames it says which type the frame has, too.
func (r Rule) FromAddress(a netip.Addr) Rule {
	if a.Is4() {
		return r.field(expr.PayloadBaseNetworkHeader, 12, expr.CmpOpEq, a.AsSlice())
	}
	return r.field(expr.PayloadBaseNetworkHeader, 8, expr.CmpOpEq, a.AsSlice())
}

// SaysARP limits a rule to ARP messages that say: address a is at mac.
func (r Rule) SaysARP(a netip.Addr, mac net.HardwareAddr) Rule {
	return r.Carries(EtherARP).
		field(expr.PayloadBaseNetworkHeader, 8, expr.CmpOpEq, mac).
		field(expr.PayloadBaseNetworkHeader, 14, expr.CmpOpEq, a.AsSlice())
}

// ICMPv6 limits a rule to a kind of message.
func (r Rule) ICMPv6(kind uint8) Rule {
	return r.Proto(unix.IPPROTO_ICMPV6).field(expr.PayloadBaseTransportHeader, icmpType, expr.CmpOpEq, []byte{kind})
}

// About limits a rule to messages of neighbour discovery about an address.
func (r Rule) About(a netip.Addr) Rule {
	return r.field(expr.PayloadBaseTransportHeader, 8, expr.CmpOpEq, a.AsSlice())
}

func (r Rule) field(base expr.PayloadBase, offset uint32, op expr.CmpOp, data []byte) Rule {
	return r.with(
		&expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: uint32(len(data))},
		&expr.Cmp{Op: op, Register: reg, Data: data},
	)
}

// frameFields names what the rules of bridges compare, by base, offset and length.
func frameFields() map[[3]uint32]string {
	return map[[3]uint32]string{
		{uint32(expr.PayloadBaseLLHeader), 6, 6}:         "ether saddr",
		{uint32(expr.PayloadBaseLLHeader), 12, 2}:        "ether type",
		{uint32(expr.PayloadBaseNetworkHeader), 8, 6}:    "arp saddr ether",
		{uint32(expr.PayloadBaseNetworkHeader), 14, 4}:   "arp saddr ip",
		{uint32(expr.PayloadBaseTransportHeader), 8, 16}: "nd target",
	}
}

// frameValue prints what such a field is compared with.
func frameValue(field string, data []byte) (string, bool) {
	switch field {
	case "ether saddr", "arp saddr ether":
		return net.HardwareAddr(data).String(), true
	case "arp saddr ip", "nd target":
		a, _ := netip.AddrFromSlice(data)
		return a.String(), true
	case "ether type":
		return etherText(EtherType(binary.BigEndian.Uint16(data))), true
	}
	return "", false
}

func etherText(t EtherType) string {
	switch t {
	case EtherIPv4:
		return "ip"
	case EtherARP:
		return "arp"
	case EtherIPv6:
		return "ip6"
	}
	return fmt.Sprintf("%#04x", uint16(t))
}

// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Part is a part of the key that a rule looks up in a map.
type Part uint8

// The parts. Those that are nothing stand for any value: they match the
// elements whose keys are zero there.
const (
	DestIPv4 Part = iota
	DestIPv6
	Protocol
	DestPort
	SourceIPv4
	PacketID // what the fragments of a packet of IPv4 have in common
	SourcePort
	// BlamedPort is the destination port of the packet that an ICMP error is about.
	BlamedPort
	// NoIPv4, NoIPv6, NoProtocol and NoPort take the room of such a part.
	NoIPv4
	NoIPv6
	NoProtocol
	NoPort
)

// load puts the part into registers from the first on. It says how many words it takes.
func (p Part) load(first uint32) (e expr.Any, words uint32) {
	const words4, words6 = 1, 4
	switch p {
	case DestIPv4:
		return &expr.Payload{DestRegister: first, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}, words4
	case DestIPv6:
		return &expr.Payload{DestRegister: first, Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 16}, words6
	case Protocol:
		return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: first}, 1
	case DestPort:
		return &expr.Payload{DestRegister: first, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, 1
	case SourceIPv4:
		return &expr.Payload{DestRegister: first, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}, words4
	case PacketID:
		return &expr.Payload{DestRegister: first, Base: expr.PayloadBaseNetworkHeader, Offset: packetID, Len: 2}, 1
	case SourcePort:
		return &expr.Payload{DestRegister: first, Base: expr.PayloadBaseTransportHeader, Offset: sourcePort, Len: 2}, 1
	case BlamedPort:
		return &expr.Payload{DestRegister: first, Base: expr.PayloadBaseTransportHeader, Offset: blamedPort, Len: 2}, 1
	case NoIPv6:
		return &expr.Immediate{Register: first, Data: make([]byte, words6*part)}, words6
	default:
		return &expr.Immediate{Register: first, Data: make([]byte, part)}, 1
	}
}

// Registers are numbered by their first word: those of four words and those of
// one are two names for the same memory.
func word(register uint32) uint32 {
	if register >= unix.NFT_REG32_00 {
		return register - unix.NFT_REG32_00
	}
	return (register - unix.NFT_REG_1) * 4
}

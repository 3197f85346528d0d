// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ToMAC limits a rule to frames to a device.
func (r Rule) ToMAC(mac net.HardwareAddr) Rule {
	return r.with(
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseLLHeader, Len: uint32(len(mac))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: mac},
	)
}

// Masked limits a rule to packets some of the bits of whose port are these.
func (r Rule) Masked(p Part, mask, value uint16) Rule {
	e, _ := p.load(reg)
	return r.with(e, masked(reg, mask),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binary.BigEndian.AppendUint16(nil, value)})
}

func masked(register uint32, mask uint16) expr.Any {
	return &expr.Bitwise{
		SourceRegister: register, DestRegister: register, Len: 2,
		Mask: binary.BigEndian.AppendUint16(nil, mask), Xor: make([]byte, 2),
	}
}

// SetMACBy sends a frame to the device that a map has for parts of it. A frame
// that it has none for goes on with the next rule.
func (r Rule) SetMACBy(m string, parts ...Part) Rule { return r.load(parts).setMAC(m) }

// SetMACByMasked does so for some of the bits of a port.
func (r Rule) SetMACByMasked(m string, p Part, mask uint16) Rule {
	return r.load([]Part{p}).with(masked(reg, mask)).setMAC(m)
}

// RememberMAC puts into a map with a timeout, by some parts of a frame, what
// another has for some of the bits of a port. What is there already stays.
func (r Rule) RememberMAC(into, m string, p Part, mask uint16, key ...Part) Rule {
	const value = unix.NFT_REG_2
	e, _ := p.load(value)
	return r.with(e, masked(value, mask), &expr.Lookup{SourceRegister: value, DestRegister: value, IsDestRegSet: true, SetName: m}).
		load(key).
		with(&expr.Dynset{SrcRegKey: reg, SrcRegData: value, SetName: into, Operation: unix.NFT_DYNSET_OP_ADD})
}

// FirstFragment limits a rule to packets of IPv4 that are the first of several
// fragments, which has the ports.
func (r Rule) FirstFragment() Rule {
	return r.fragment(moreFragments|fragmentOffset, expr.CmpOpEq, moreFragments)
}

// LaterFragment limits a rule to fragments that have none.
func (r Rule) LaterFragment() Rule { return r.fragment(fragmentOffset, expr.CmpOpNeq, 0) }

func (r Rule) fragment(mask uint16, op expr.CmpOp, value uint16) Rule {
	return r.with(
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: fragmentField, Len: 2},
		masked(reg, mask),
		&expr.Cmp{Op: op, Register: reg, Data: binary.BigEndian.AppendUint16(nil, value)},
	)
}

func (r Rule) setMAC(m string) Rule {
	return r.with(
		&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: m},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg, Base: expr.PayloadBaseLLHeader, Len: 6},
	)
}

// ForUs marks a frame as one that is for this machine. The kernel has looked at
// the frame's address before a rule changed it.
func (r Rule) ForUs() Rule {
	return r.with(
		&expr.Immediate{Register: reg, Data: []byte{unix.PACKET_HOST}},
		&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: reg, SourceRegister: true},
	)
}

// TranslateSource changes the source of a connection to an address of IPv4. The
// port is kept, unless the connection would then be like another.
func (r Rule) TranslateSource(a netip.Addr) Rule {
	return r.with(
		&expr.Immediate{Register: reg, Data: a.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg},
	)
}

// SetSource writes another source address into a packet of IPv4, whatever
// connection tracking knows of it, if that is done before.
func (r Rule) SetSource(a netip.Addr) Rule {
	return r.with(
		&expr.Immediate{Register: reg, Data: a.AsSlice()},
		&expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4,
			CsumType: expr.CsumTypeInet, CsumOffset: headerChecksum,
			// The checksums of TCP and UDP cover the address, too.
			CsumFlags: unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR,
		},
	)
}

// Where the header of IPv4 has what is used here, and its flag and number of fragments.
const (
	packetID       = 4
	fragmentField  = 6
	headerChecksum = 10
	moreFragments  = 0x2000
	fragmentOffset = 0x1fff
)

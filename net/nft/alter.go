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
	return r.with(e, masked(mask),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binary.BigEndian.AppendUint16(nil, value)})
}

func masked(mask uint16) expr.Any {
	return &expr.Bitwise{
		SourceRegister: reg, DestRegister: reg, Len: 2,
		Mask: binary.BigEndian.AppendUint16(nil, mask), Xor: make([]byte, 2),
	}
}

// SetMACBy sends a frame to the device that a map has for a part of it. A frame
// that it has none for goes on with the next rule.
func (r Rule) SetMACBy(m string, p Part) Rule { return r.load([]Part{p}).setMAC(m) }

// SetMACByMasked does so for some of the bits of a port.
func (r Rule) SetMACByMasked(m string, p Part, mask uint16) Rule {
	return r.load([]Part{p}).with(masked(mask)).setMAC(m)
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

// headerChecksum is the offset of the header's checksum in IPv4.
const headerChecksum = 10

// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Where the ports, and what else is used, lie in the headers above IP.
const (
	icmpType        = 0
	sourcePort      = 0
	destinationPort = 2
	sequenceOffset  = 4
	tcpChecksum     = 16
	udpChecksum     = 6
	// ICMP's header, one of IPv4 without options, a source port.
	blamedPort = 8 + 20 + 2
)

// flagRST is that of TCP's flags which ends a connection, or refuses one.
const flagRST = 4

// SourcePort limits a rule that has a [Rule.Proto] to packets from a port.
func (r Rule) SourcePort(port uint16) Rule {
	return r.with(transport(sourcePort, 2), equal(binaryutil.BigEndian.PutUint16(port)))
}

// DestinationPort limits a rule that has a [Rule.Proto] to packets to a port.
func (r Rule) DestinationPort(port uint16) Rule {
	return r.with(transport(destinationPort, 2), equal(binaryutil.BigEndian.PutUint16(port)))
}

// Refused limits a rule of the protocol TCP to the answer to who asks for a
// connection to a port that is not open: a reset that acknowledges no data.
func (r Rule) Refused() Rule {
	return r.with(
		transport(flagsOffset, 1),
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 1, Mask: []byte{flagRST}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: []byte{0}},
		transport(sequenceOffset, 4), equal(make([]byte, 4)),
	)
}

// SetSourcePort writes another source port into a packet, without connection
// tracking: what comes back is to be rewritten by another rule.
func (r Rule) SetSourcePort(proto uint8, port uint16) Rule { return r.setPort(proto, sourcePort, port) }

// SetDestinationPort writes another destination port into a packet.
func (r Rule) SetDestinationPort(proto uint8, port uint16) Rule {
	return r.setPort(proto, destinationPort, port)
}

func (r Rule) setPort(proto uint8, offset uint32, port uint16) Rule {
	checksum := uint32(udpChecksum)
	if proto == unix.IPPROTO_TCP {
		checksum = tcpChecksum
	}
	return r.with(
		&expr.Immediate{Register: reg, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: reg, Base: expr.PayloadBaseTransportHeader,
			Offset: offset, Len: 2, CsumType: expr.CsumTypeInet, CsumOffset: checksum,
		},
	)
}

// Untracked keeps a packet out of connection tracking. It is for chains that
// come before that.
func (r Rule) Untracked() Rule { return r.with(&expr.Notrack{}) }

func transport(offset, length uint32) *expr.Payload {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}
}

func equal(value []byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: value}
}

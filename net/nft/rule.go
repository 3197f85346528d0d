// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// valueMax is the length of the longest value that a rule can hold.
const valueMax = 16

// The registers used: the first of four words, and its words.
const (
	reg   = unix.NFT_REG_1
	word0 = unix.NFT_REG32_00
)

// IfName limits a rule to packets that came in by the device.
func (r Rule) IfName(name string) Rule { return r.device(expr.MetaKeyIIFNAME, expr.CmpOpEq, name) }

// NotIfName limits a rule to packets that did not.
func (r Rule) NotIfName(name string) Rule { return r.device(expr.MetaKeyIIFNAME, expr.CmpOpNeq, name) }

// OutName limits a rule to packets that leave by the device.
func (r Rule) OutName(name string) Rule { return r.device(expr.MetaKeyOIFNAME, expr.CmpOpEq, name) }

// NotOutName limits a rule to packets that do not.
func (r Rule) NotOutName(name string) Rule {
	return r.device(expr.MetaKeyOIFNAME, expr.CmpOpNeq, name)
}

func (r Rule) device(key expr.MetaKey, op expr.CmpOp, name string) Rule {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return r.with(&expr.Meta{Key: key, Register: reg}, &expr.Cmp{Op: op, Register: reg, Data: b})
}

// From limits a rule to packets from a subnet.
func (r Rule) From(p netip.Prefix) Rule { return r.address(12, 8, expr.CmpOpEq, p) }

// NotFrom limits a rule to packets that are not.
func (r Rule) NotFrom(p netip.Prefix) Rule { return r.address(12, 8, expr.CmpOpNeq, p) }

// To limits a rule to packets to a subnet.
func (r Rule) To(p netip.Prefix) Rule { return r.address(16, 24, expr.CmpOpEq, p) }

// address compares what is in the header of IPv4 or IPv6 at an offset.
func (r Rule) address(offset4, offset6 uint32, op expr.CmpOp, p netip.Prefix) Rule {
	offset := offset4
	if p.Addr().Is6() {
		offset = offset6
	}
	size := uint32(p.Addr().BitLen() / 8)
	mask := net.CIDRMask(p.Bits(), p.Addr().BitLen())
	return r.with(
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: op, Register: reg, Data: p.Masked().Addr().AsSlice()},
	)
}

// Is4 limits a rule to IPv4, in a table of the family Inet.
func (r Rule) Is4() Rule { return r.meta(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV4) }

// Is6 limits a rule to IPv6, in a table of the family Inet.
func (r Rule) Is6() Rule { return r.meta(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV6) }

// Proto limits a rule to packets of an IP protocol.
func (r Rule) Proto(proto uint8) Rule { return r.meta(expr.MetaKeyL4PROTO, proto) }

func (r Rule) meta(key expr.MetaKey, value uint8) Rule {
	return r.with(&expr.Meta{Key: key, Register: reg}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{value}})
}

// NotSYN limits a rule for TCP to packets that do not open a connection.
func (r Rule) NotSYN() Rule {
	return r.with(
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: flagsOffset, Len: 1},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 1, Mask: []byte{flagSYN}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{0}},
	)
}

// Where TCP's header has its flags, and the one that opens connections.
const (
	flagsOffset = 13
	flagSYN     = 2
)

// ToLocal limits a rule to packets to an address of the node.
func (r Rule) ToLocal() Rule {
	return r.with(
		&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	)
}

// Established limits a rule to packets of connections that are known, and
// errors that belong to one.
func (r Rule) Established() Rule {
	return r.conntrack(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
}

// First limits a rule to packets that begin a connection, as far as is known:
// those of none that an earlier packet began.
func (r Rule) First() Rule {
	r = r.conntrack(expr.CtKeySTATUS, statusConfirmed)
	r.exprs[len(r.exprs)-1] = &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: make([]byte, 4)}
	return r
}

// Translated limits a rule to packets of connections whose destination was changed.
func (r Rule) Translated() Rule {
	return r.conntrack(expr.CtKeySTATUS, statusDNAT)
}

// Of the kernel's conntrack, IPS_CONFIRMED and IPS_DST_NAT.
const (
	statusConfirmed = 1 << 3
	statusDNAT      = 1 << 5
)

func (r Rule) conntrack(key expr.CtKey, bits uint32) Rule {
	return r.with(
		&expr.Ct{Key: key, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	)
}

// ByPort goes to the chain that the map has for the packet's protocol and
// destination port, and goes on with the next rule if it has none.
func (r Rule) ByPort(m string) Rule {
	return r.ByKey(m, Protocol, DestPort)
}

// ByAddressAndPort does so with the destination address before them.
func (r Rule) ByAddressAndPort(m string) Rule {
	return r.ByKey(m, DestIPv4, Protocol, DestPort)
}

// ByKey does so with the parts given.
func (r Rule) ByKey(m string, parts ...Part) Rule {
	return r.load(parts).vmap(m)
}

// vmap looks up the key that is in the registers.
func (r Rule) vmap(m string) Rule {
	return r.with(&expr.Lookup{SourceRegister: reg, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: m})
}

// Translate changes the destination of a connection to one of the targets, by
// chance, the same for each. There must be one, and all must be alike: of one
// family, and either all with a port or none.
func (r Rule) Translate(targets []Target) Rule {
	if len(targets) == 1 {
		// The parts lie as in an entry of the map. Values are of 16 bytes at most.
		data := targets[0].pack()
		if len(data) > valueMax {
			r = r.with(&expr.Immediate{Register: word0 + valueMax/part, Data: data[valueMax:]})
			data = data[:valueMax]
		}
		r = r.with(&expr.Immediate{Register: reg, Data: data})
	} else {
		r = r.with(
			&expr.Numgen{Register: reg, Modulus: uint32(len(targets)), Type: unix.NFT_NG_RANDOM},
			&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true},
		)
		r.targets = targets
	}
	nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg}
	if targets[0].Address.Is6() {
		nat.Family = unix.NFPROTO_IPV6
	}
	if targets[0].Port != 0 {
		nat.RegProtoMin = word0 + uint32(targets[0].Address.BitLen()/32)
		nat.Specified = true
	}
	return r.with(nat)
}

// Redirect changes the destination of a connection to this machine itself.
func (r Rule) Redirect() Rule { return r.with(&expr.Redir{}) }

// SetMark sets the packet's mark.
func (r Rule) SetMark(mark uint32) Rule {
	return r.with(
		&expr.Immediate{Register: reg, Data: binaryutil.NativeEndian.PutUint32(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg},
	)
}

// Masquerade changes the source of a connection to the node's address.
func (r Rule) Masquerade() Rule { return r.with(&expr.Masq{}) }

// Accept ends this table's look at the packet at this hook.
func (r Rule) Accept() Rule { return r.with(&expr.Verdict{Kind: expr.VerdictAccept}) }

// Reset answers a packet of TCP with a reset, and drops it.
func (r Rule) Reset() Rule { return r.with(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}) }

// Drop drops the packet.
func (r Rule) Drop() Rule { return r.with(&expr.Verdict{Kind: expr.VerdictDrop}) }

// Jump goes through another chain and comes back.
func (r Rule) Jump(chain string) Rule {
	return r.with(&expr.Verdict{Kind: expr.VerdictJump, Chain: chain})
}

// with is a copy that has more statements: rules are values.
func (r Rule) with(more ...expr.Any) Rule {
	r.exprs = append(slices.Clip(r.exprs), more...)
	return r
}

// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

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
func (r Rule) From(p netip.Prefix) Rule { return r.address(12, p) }

// To limits a rule to packets to a subnet.
func (r Rule) To(p netip.Prefix) Rule { return r.address(16, p) }

func (r Rule) address(offset uint32, p netip.Prefix) Rule {
	mask := make([]byte, 4)
	binary.BigEndian.PutUint32(mask, ^uint32(0)<<(32-p.Bits()))
	return r.with(
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: p.Masked().Addr().AsSlice()},
	)
}

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

// Translated limits a rule to packets of connections whose destination was changed.
func (r Rule) Translated() Rule {
	return r.conntrack(expr.CtKeySTATUS, statusDNAT)
}

// statusDNAT is IPS_DST_NAT of the kernel's conntrack.
const statusDNAT = 1 << 5

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
	return r.with(portKey(word0)...).vmap(m)
}

// ByAddressAndPort does so with the destination address before them.
func (r Rule) ByAddressAndPort(m string) Rule {
	return r.with(&expr.Payload{DestRegister: word0, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}).
		with(portKey(word0 + 1)...).vmap(m)
}

func portKey(first uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: first},
		&expr.Payload{DestRegister: first + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

func (r Rule) vmap(m string) Rule {
	return r.with(&expr.Lookup{SourceRegister: reg, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: m})
}

// Translate changes the destination of a connection to one of the targets, by
// chance, the same for each. There must be one.
func (r Rule) Translate(targets []Target) Rule {
	if len(targets) == 1 {
		// One value holds both parts, as an entry of the map would.
		r = r.with(&expr.Immediate{Register: reg, Data: targets[0].pack()})
	} else {
		r = r.with(
			&expr.Numgen{Register: reg, Modulus: uint32(len(targets)), Type: unix.NFT_NG_RANDOM},
			&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true},
		)
		r.targets = targets
	}
	return r.with(&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4,
		RegAddrMin: reg, RegProtoMin: word0 + 1, Specified: true,
	})
}

// Masquerade changes the source of a connection to the node's address.
func (r Rule) Masquerade() Rule { return r.with(&expr.Masq{}) }

// Accept ends this table's look at the packet at this hook.
func (r Rule) Accept() Rule { return r.with(&expr.Verdict{Kind: expr.VerdictAccept}) }

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

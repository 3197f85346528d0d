// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// most is how many elements packets may add to a map.
const most = 1 << 18

// In limits a rule to packets whose parts are in a set.
func (r Rule) In(set string, parts ...Part) Rule {
	return r.load(parts).with(&expr.Lookup{SourceRegister: reg, SetName: set})
}

// Remember puts a packet's parts into a set that has a timeout, which begins anew.
func (r Rule) Remember(set string, parts ...Part) Rule {
	return r.load(parts).with(&expr.Dynset{SrcRegKey: reg, SetName: set, Operation: unix.NFT_DYNSET_OP_UPDATE})
}

func (r Rule) load(parts []Part) Rule {
	register := uint32(word0)
	for _, p := range parts {
		e, words := p.load(register)
		r, register = r.with(e), register+words
	}
	return r
}

// Pack packs the parts of a key or a value: addresses, hardware addresses,
// ports (uint16) and numbers of protocols (uint8).
func Pack(parts ...any) string {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case netip.Addr:
			b = append(b, p.AsSlice()...)
		case net.HardwareAddr:
			b = append(b, p...)
		case uint16:
			b = binary.BigEndian.AppendUint16(b, p)
		case uint8:
			b = append(b, p)
		default:
			panic(fmt.Sprintf("nft: %T in a key", p))
		}
		for len(b)%part != 0 {
			b = append(b, 0)
		}
	}
	return string(b)
}

// named finds types by their names, which must be right.
func named(types string) []nftables.SetDatatype {
	return nftables.ConcatSetTypeElements(nftables.SetDatatype{Name: types})
}

// kernelTyped is a set, or a map to values.
func kernelTyped(m Map, kt *nftables.Table, id uint32) *nftables.Set {
	s := &nftables.Set{
		Table: kt, ID: id, Name: m.Name, IsMap: m.Value != "", KeyType: concat(named(m.Key)...),
		HasTimeout: m.Timeout > 0, Dynamic: m.Timeout > 0, Timeout: m.Timeout,
	}
	if s.IsMap {
		s.DataType = concat(named(m.Value)...)
	}
	if s.Dynamic {
		s.Size = most
	}
	return s
}

// typed reports whether the kernel's set is not a map to chains.
func typed(s *nftables.Set) bool { return !s.IsMap || s.DataType.Name != "" }

func readTyped(s *nftables.Set, els []nftables.SetElement) Map {
	m := Map{Name: s.Name, Key: s.KeyType.Name, Value: s.DataType.Name, Timeout: s.Timeout}
	for _, e := range els {
		m.Elements = append(m.Elements, Element{Key: string(e.Key), Value: string(e.Val)})
	}
	return m
}

// typedText prints what a set or a map to values has before its elements.
func (m Map) typedText() string {
	if m.Timeout == 0 {
		return ""
	}
	types := m.Key
	if m.Value != "" {
		types += " : " + m.Value
	}
	return fmt.Sprintf("\t\ttype %s; flags dynamic,timeout; timeout %s;\n", types, m.Timeout)
}

func (m Map) kind() string {
	if m.Key != "" && m.Value == "" {
		return "set"
	}
	return "map"
}

func (m Map) elementText(e Element) string {
	switch {
	case m.Key == "":
		return fmt.Sprintf("%s : goto %s", keyText(e.Key), e.Chain)
	case m.Value == "":
		return partsText(m.Key, e.Key)
	}
	return partsText(m.Key, e.Key) + " : " + partsText(m.Value, e.Value)
}

// partsText reads packed parts of these types.
func partsText(types, packed string) string {
	var parts []string
	b := []byte(packed)
	for _, t := range named(types) {
		padded := (int(t.Bytes) + part - 1) / part * part
		if padded > len(b) {
			return fmt.Sprintf("%x", packed)
		}
		parts, b = append(parts, partText(t.Name, b[:t.Bytes])), b[padded:]
	}
	return strings.Join(parts, " . ")
}

func partText(kind string, b []byte) string {
	switch kind {
	case "ipv4_addr", "ipv6_addr":
		a, _ := netip.AddrFromSlice(b)
		return a.String()
	case "ether_addr":
		return net.HardwareAddr(b).String()
	case "inet_proto":
		return protoText(b[0])
	case "inet_service":
		return fmt.Sprint(binary.BigEndian.Uint16(b))
	}
	return fmt.Sprintf("%x", b)
}

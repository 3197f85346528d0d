// SPDX-License-Identifier: Apache-2.0

// Package nft writes tables of the kernel's packet filter.
//
// A [Table] is a value: what the table is to hold. It prints itself in the
// manner of the nft command, which is how tests and people read it, and
// [Conn.Read] reads the kernel's table back into such a value, so that what is
// wanted and what is there can be compared as text. [Conn.Apply] makes the
// kernel's table equal to a value, in one transaction: packets see the old
// table or the new one. Only the table named is touched.
//
// It covers the few statements that Skep uses; it is no general binding, and
// knows nothing of what the rules are for.
package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Family is the kind of packets that a table sees.
type Family uint8

// The families. Several tables may have one name, each in a family of its own.
const (
	IPv4 Family = iota
	IPv6
	Inet   // both
	Bridge // frames that pass a bridge, whatever is in them
)

// String is the family's name.
func (f Family) String() string {
	names := [...]string{"ip", "ip6", "inet", "bridge"}
	if int(f) < len(names) {
		return names[f]
	}
	return fmt.Sprintf("family%d", uint8(f))
}

// Table is a table of a family. Chains and maps are in order: a chain or map is
// listed before the rules that name it are reached.
type Table struct {
	Family Family
	Name   string
	Maps   []Map
	Chains []Chain
}

// Hook is where the kernel enters a chain.
type Hook struct {
	Type     string // nat, filter or route
	Point    Point
	Priority int32
}

// Point is a place in a packet's way through the kernel.
type Point uint32

// The points, as the kernel numbers them.
const (
	Prerouting Point = iota
	Input
	Forward
	Output
	Postrouting
)

// Chain is a list of rules. The policy of a chain with a hook is to accept.
type Chain struct {
	Name  string
	Hook  *Hook // nil for one that is only jumped to
	Rules []Rule
}

// Rule is a list of statements.
type Rule struct {
	exprs []expr.Any
	// targets is the anonymous map that the rule's lookup uses, if any.
	targets []Target
}

// Map leads from a key, of packed parts, to a chain; or, if it has a Key, to a
// value; or, if it has that but no Value, it is a set.
type Map struct {
	Name string
	// Key and Value are nft's names of the types of the parts, joined by " . ".
	Key, Value string
	// Timeout is how long what packets put into a set or a map to values stays.
	// It is 0 for those that only have the elements here.
	Timeout time.Duration
	// Width is the length of the keys in bytes; for maps to chains it tells what
	// they are of.
	Width    int
	Elements []Element
}

// Element sends packets with a key to a chain, or gives them a value.
type Element struct {
	Key   string // packed, see PortKey and DeviceKey
	Chain string
	Value string // packed, see Pack
}

// Target is an address and port to translate to. Port 0 leaves the port as it is.
type Target struct {
	Address netip.Addr
	Port    uint16
}

// Each part of a packed key takes a multiple of four bytes.
const part = 4

// The widths of keys: of a protocol and a port, alone or after an address.
const (
	WidthPort = 2 * part
	WidthIPv4 = 3 * part
	WidthIPv6 = 6 * part
	// WidthDevice is that of a device's name.
	WidthDevice = unix.IFNAMSIZ
)

// PortKey packs a key of protocol and port; if the address is valid it comes
// first. An address, protocol or port of zero stands for any, where a rule looks
// for that (see [Part]).
func PortKey(a netip.Addr, proto uint8, port uint16) string {
	var b []byte
	if a.IsValid() {
		b = append(b, a.AsSlice()...)
	}
	b = append(b, proto, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, port)
	return string(append(b, 0, 0))
}

// UnpackPortKey reads a key of protocol and port, without an address.
func UnpackPortKey(key string) (proto uint8, port uint16) {
	if len(key) != WidthPort {
		return 0, 0
	}
	return key[0], binary.BigEndian.Uint16([]byte(key[part:]))
}

// pack leaves a port of zero out.
func (t Target) pack() []byte {
	b := t.Address.AsSlice()
	if t.Port == 0 {
		return b
	}
	return append(binary.BigEndian.AppendUint16(b, t.Port), 0, 0)
}

func unpackTarget(b []byte) Target {
	a, ok := netip.AddrFromSlice(b)
	if ok || len(b) < part {
		return Target{Address: a}
	}
	a, _ = netip.AddrFromSlice(b[:len(b)-part])
	return Target{a, binary.BigEndian.Uint16(b[len(b)-part:])}
}

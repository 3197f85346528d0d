// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"net/netip"
	"strconv"
)

const (
	reverse4 = ".in-addr.arpa"
	reverse6 = ".ip6.arpa"
)

// reverse is the address that a name in lower case is the reverse name of.
func reverse(name []byte) (netip.Addr, bool) {
	if digits, ok := bytes.CutSuffix(name, []byte(reverse4)); ok {
		return reverseIPv4(digits)
	}
	if digits, ok := bytes.CutSuffix(name, []byte(reverse6)); ok {
		return reverseIPv6(digits)
	}
	return netip.Addr{}, false
}

func reverseIPv4(digits []byte) (netip.Addr, bool) {
	var b [4]byte
	for i := range b {
		part, rest, more := bytes.Cut(digits, []byte("."))
		n, err := strconv.ParseUint(string(part), 10, 8)
		if err != nil || more != (i < 3) {
			return netip.Addr{}, false
		}
		b[3-i], digits = byte(n), rest
	}
	return netip.AddrFrom4(b), true
}

func reverseIPv6(digits []byte) (netip.Addr, bool) {
	const nibbles = 32
	var b [16]byte
	if len(digits) != 2*nibbles-1 {
		return netip.Addr{}, false
	}
	for i := range nibbles {
		n := bytes.IndexByte([]byte("0123456789abcdef"), digits[2*i])
		if n < 0 || i > 0 && digits[2*i-1] != '.' {
			return netip.Addr{}, false
		}
		b[15-i/2] |= byte(n) << (4 * (i % 2))
	}
	return netip.AddrFrom16(b).Unmap(), true
}

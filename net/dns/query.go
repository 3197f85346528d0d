// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// The form of a message (RFC 1035, 4.1).
const (
	headerLen   = 12
	maxLabel    = 63
	maxName     = 255
	maxText     = 253 // of a name as people write it, without the dot at its end
	maxMessage  = 65535
	minimumSize = 512 // what every client takes over UDP
	optLen      = 11  // of an OPT record without options
)

// Bits of the header's second word.
const (
	flagResponse  = 1 << 15
	flagTruncated = 1 << 9
	flagRecurse   = 1 << 8 // wanted
	flagRecursion = 1 << 7 // available
	flagCheck     = 1 << 4 // checking disabled
	opcodeMask    = 0xf << 11
)

// query is a packet of a client that was understood.
type query struct {
	packet []byte
	flags  uint16
	// name is in lower case and has no dot at its end; the root's is empty.
	name []byte
	// labels is how many the name has; odd: one of them has a dot in it, so that
	// the text in name means something else.
	labels int
	odd    bool
	kind   uint16
	class  uint16
	end    int // of the question in the packet
	// edns: the client sent an OPT record, and takes answers of size bytes over UDP.
	edns    bool
	version uint8
	dnssec  bool
	size    int

	text [maxText]byte
}

// parse understands a packet. What is not answered at all (what is too short,
// or an answer itself) has dropped true; what is answered with an error only,
// its code. Then the question is not set: end is the header's, unless it could
// be read.
func (q *query) parse(packet []byte) (rcode int, dropped bool) {
	*q = query{packet: packet, end: headerLen, size: minimumSize}
	if len(packet) < headerLen {
		return 0, true
	}
	q.flags = binary.BigEndian.Uint16(packet[2:])
	if q.flags&flagResponse != 0 {
		return 0, true
	}
	if q.flags&opcodeMask != dns.OpcodeQuery {
		return dns.RcodeNotImplemented, false
	}
	if binary.BigEndian.Uint16(packet[4:]) != 1 {
		return dns.RcodeFormatError, false
	}
	end, ok := q.question(headerLen)
	if !ok {
		return dns.RcodeFormatError, false
	}
	q.end = end
	if !q.additional() {
		return dns.RcodeFormatError, false
	}
	if q.version != 0 {
		return dns.RcodeBadVers, false
	}
	return dns.RcodeSuccess, false
}

// question reads the one question. Its name has no pointers: there is nothing
// before it to point to.
func (q *query) question(at int) (end int, ok bool) {
	n := 0
	for {
		if at >= len(q.packet) {
			return 0, false
		}
		length := int(q.packet[at])
		at++
		if length == 0 {
			break
		}
		if length > maxLabel || at+length > len(q.packet) || n+length+1 > maxText {
			return 0, false
		}
		if n > 0 {
			q.text[n] = '.'
			n++
		}
		n += q.label(q.text[n:], q.packet[at:at+length])
		at += length
		q.labels++
	}
	if at+4 > len(q.packet) {
		return 0, false
	}
	q.name = q.text[:n]
	q.kind = binary.BigEndian.Uint16(q.packet[at:])
	q.class = binary.BigEndian.Uint16(q.packet[at+2:])
	return at + 4, true
}

func (q *query) label(to, from []byte) int {
	for i, c := range from {
		switch {
		case c == '.':
			q.odd = true
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		}
		to[i] = c
	}
	return len(from)
}

// additional looks for the OPT record behind the question. False: the packet
// ends too early, or has two.
func (q *query) additional() bool {
	rest := q.packet[q.end:]
	count := 0
	for at := 6; at < headerLen; at += 2 {
		count += int(binary.BigEndian.Uint16(q.packet[at:]))
	}
	for range count {
		n := nameLen(rest)
		const fixed = 10 // kind, class, lifetime, length
		if n < 0 || len(rest) < n+fixed {
			return false
		}
		r := rest[n:]
		length := int(binary.BigEndian.Uint16(r[8:]))
		if len(r) < fixed+length {
			return false
		}
		if binary.BigEndian.Uint16(r) == dns.TypeOPT {
			if q.edns {
				return false
			}
			q.edns = true
			q.size = max(minimumSize, int(binary.BigEndian.Uint16(r[2:])))
			q.version = r[5]
			q.dnssec = r[6]&0x80 != 0
		}
		rest = r[fixed+length:]
	}
	return true
}

// nameLen is how long a name is as it is written, pointers included; -1 if it
// does not end.
func nameLen(b []byte) int {
	at := 0
	for at < len(b) {
		length := int(b[at])
		switch {
		case length == 0:
			return at + 1
		case length >= 0xc0:
			return at + 2
		case length > maxLabel:
			return -1
		}
		at += 1 + length
	}
	return -1
}

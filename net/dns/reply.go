// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"github.com/miekg/dns"
)

// reply begins an answer to q in out: the header, and the question as it came,
// for some clients compare the case of its letters.
func (q *query) reply(out []byte, rcode int) []byte {
	out = append(out[:0], q.packet[:q.end]...)
	flags := q.flags&(opcodeMask|flagRecurse|flagCheck) | flagResponse | flagRecursion | uint16(rcode)&0xf
	binary.BigEndian.PutUint16(out[2:], flags)
	clear(out[4:headerLen])
	if q.end > headerLen {
		out[5] = 1
	}
	return out
}

// finish ends an answer: with the OPT record, if the client sent one.
func (q *query) finish(out []byte, rcode int) []byte {
	if !q.edns {
		return out
	}
	out[11]++
	dnssec := byte(0)
	if q.dnssec {
		dnssec = 0x80
	}
	out = append(out, 0, 0, byte(dns.TypeOPT))
	out = binary.BigEndian.AppendUint16(out, maxUDP)
	return append(out, byte(rcode>>4), 0, dnssec, 0, 0, 0)
}

// fail is an answer without records.
func (q *query) fail(out []byte, rcode int) []byte {
	return q.finish(q.reply(out, rcode), rcode)
}

// room is how many bytes the records may take of an answer of at most limit.
func (q *query) room(limit int) int {
	room := limit - q.end
	if q.edns {
		room -= optLen
	}
	return room
}

// pointer is a name that says: as in the question.
const pointer = 0xc000 | headerLen

// addresses answers with as many of the addresses as the limit lets through,
// in an order that chance decides.
func (q *query) addresses(out []byte, r *records, limit int) []byte {
	out = q.reply(out, dns.RcodeSuccess)
	room := q.room(limit)
	written, all := 0, true
	for _, family := range r.asked(q.kind) {
		n := 0
		out, n = appendAddresses(out, family, r.ttl, room)
		room -= n * recordLen(family)
		written += n
		all = all && n == len(family)
	}
	binary.BigEndian.PutUint16(out[6:], uint16(written))
	if !all && limit < maxMessage {
		out[2] |= flagTruncated >> 8
	}
	return q.finish(out, dns.RcodeSuccess)
}

// asked are the addresses that a question of this kind is for.
func (r *records) asked(kind uint16) [][]netip.Addr {
	switch kind {
	case dns.TypeA:
		return [][]netip.Addr{r.four}
	case dns.TypeAAAA:
		return [][]netip.Addr{r.six}
	case dns.TypeANY:
		return [][]netip.Addr{r.four, r.six}
	}
	return nil
}

func recordLen(family []netip.Addr) int {
	const head = 12 // pointer, kind, class, lifetime, length
	if len(family) == 0 {
		return head
	}
	return head + family[0].BitLen()/8
}

// appendAddresses appends records and says how many there was room for. Which
// ones these are, and their order, is by chance.
func appendAddresses(out []byte, family []netip.Addr, ttl uint32, room int) (_ []byte, n int) {
	n = min(len(family), max(0, room/recordLen(family)))
	if n == 0 {
		return out, 0
	}
	first := 0
	if n > 1 || len(family) > 1 {
		first = rand.IntN(len(family))
	}
	begin, step := len(out), recordLen(family)
	for i := range n {
		out = appendAddress(out, family[(first+i)%len(family)], ttl)
	}
	records := out[begin:]
	rand.Shuffle(n, func(i, j int) {
		var t [12 + 16]byte
		a, b := records[i*step:(i+1)*step], records[j*step:(j+1)*step]
		copy(t[:], a)
		copy(a, b)
		copy(b, t[:step])
	})
	return out, n
}

func appendAddress(out []byte, a netip.Addr, ttl uint32) []byte {
	kind := dns.TypeA
	if a.Is6() {
		kind = dns.TypeAAAA
	}
	out = binary.BigEndian.AppendUint16(out, pointer)
	out = binary.BigEndian.AppendUint16(out, kind)
	out = binary.BigEndian.AppendUint16(out, dns.ClassINET)
	out = binary.BigEndian.AppendUint32(out, ttl)
	out = binary.BigEndian.AppendUint16(out, uint16(a.BitLen()/8))
	if a.Is4() {
		b := a.As4()
		return append(out, b[:]...)
	}
	b := a.As16()
	return append(out, b[:]...)
}

// holder answers a question for the name of an address.
func (q *query) holder(out []byte, h holder, limit int) []byte {
	var packed [maxName + 1]byte
	n, err := dns.PackDomainName(dns.Fqdn(h.name), packed[:], 0, nil, false)
	out = q.reply(out, dns.RcodeSuccess)
	if err != nil || 12+n > q.room(limit) {
		return q.finish(out, dns.RcodeSuccess) // nothing that could be written in a name
	}
	out[7] = 1
	out = binary.BigEndian.AppendUint16(out, pointer)
	out = binary.BigEndian.AppendUint16(out, dns.TypePTR)
	out = binary.BigEndian.AppendUint16(out, dns.ClassINET)
	out = binary.BigEndian.AppendUint32(out, h.ttl)
	out = binary.BigEndian.AppendUint16(out, uint16(n))
	return q.finish(append(out, packed[:n]...), dns.RcodeSuccess)
}

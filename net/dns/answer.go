// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"net/netip"

	"github.com/miekg/dns"
)

// view is what one client sees: the networks that it is on.
type view struct {
	networks []*index
	// search: the client appends domains to names that are not found.
	search bool
}

// answer answers what is known here, into out and with at most limit bytes.
// Without an answer, others are to be asked.
func (v *view) answer(q *query, out []byte, limit int) []byte {
	switch {
	case q.class != dns.ClassINET && q.class != dns.ClassANY,
		q.kind == dns.TypeAXFR, q.kind == dns.TypeIXFR, q.kind == dns.TypeMAILA, q.kind == dns.TypeMAILB:
		return q.fail(out, dns.RcodeNotImplemented)
	case q.odd:
		return nil
	}
	if a, ok := reverse(q.name); ok {
		return v.reverse(q, a, out, limit)
	}
	r, known := v.find(q.name, q.kind)
	switch {
	case r != nil:
		return q.addresses(out, r, limit)
	case known:
		return q.fail(out, dns.RcodeSuccess)
	case v.reserved(q):
		return q.fail(out, dns.RcodeNameError)
	}
	return nil
}

// find looks for a name on the client's networks in their order. The first that has addresses of the kind that is asked for
// answers. A name that is known may have none.
func (v *view) find(name []byte, kind uint16) (r *records, known bool) {
	for _, x := range v.networks {
		r := x.find(name)
		if r.has(kind) {
			return r, true
		}
		known = known || r != nil
	}
	return nil, known
}

func (r *records) has(kind uint16) bool {
	if r == nil {
		return false
	}
	for _, family := range r.asked(kind) {
		if len(family) > 0 {
			return true
		}
	}
	return false
}

// reverse answers for an address. What is on the client's networks or on the
// loopback device is nobody else's to know.
func (v *view) reverse(q *query, a netip.Addr, out []byte, limit int) []byte {
	inside := a.IsLoopback()
	for _, x := range v.networks {
		h, ok := x.holders[a]
		switch {
		case ok && (q.kind == dns.TypePTR || q.kind == dns.TypeANY):
			return q.holder(out, h, limit)
		case ok:
			return q.fail(out, dns.RcodeSuccess)
		}
		inside = inside || x.contains(a)
	}
	if inside {
		return q.fail(out, dns.RcodeNameError)
	}
	return nil
}

// reserved reports whether a name that is not known is nevertheless nobody
// else's to know: tasks.<service>, also with a network's name behind it, and,
// if the client has domains to append, a name of one label. Services have no
// dots in their names; so tasks.example.com is somebody's real name.
func (v *view) reserved(q *query) bool {
	if q.labels == 1 {
		return v.search
	}
	service, ok := bytes.CutPrefix(q.name, []byte(tasksPrefix))
	if !ok {
		return false
	}
	if q.labels == 2 {
		return true
	}
	for _, x := range v.networks {
		if short, ok := x.within(service); ok && bytes.IndexByte(short, '.') < 0 {
			return true
		}
	}
	return false
}

// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"math"
	"net/netip"
	"time"

	"github.com/containerd/errdefs"

	"skep/store/object"
)

// Book says which addresses of a network are held, and hands out others. It
// takes any address of any family: which ones belong to the network is for its
// keeper to say with each one that is taken.
type Book struct {
	// held counts the holders of each address. There is more than one only
	// where somebody else gave an address twice.
	held map[netip.Addr]int
	// resting holds released addresses and when they may be used again.
	resting map[netip.Addr]time.Time
	// queue is resting in the order of release, and what was in it since.
	queue []rest
	// last is what was handed out last, of IPv4 and of IPv6.
	last [2]netip.Addr
}

type rest struct {
	address netip.Addr
	until   time.Time
}

// NewBook is a book in which nothing is held.
func NewBook() *Book {
	return &Book{held: map[netip.Addr]int{}, resting: map[netip.Addr]time.Time{}}
}

// Hold notes one more holder of an address.
func (b *Book) Hold(a netip.Addr) {
	b.held[a]++
	delete(b.resting, a)
}

// Drop notes one holder less, as if it had never been one.
func (b *Book) Drop(a netip.Addr) {
	if b.held[a]--; b.held[a] <= 0 {
		delete(b.held, a)
	}
}

// Release notes one holder less. The last one's address rests; then Release
// reports true.
func (b *Book) Release(a netip.Addr, now time.Time) bool {
	b.Drop(a)
	if b.Held(a) {
		return false
	}
	for len(b.queue) > 0 && !now.Before(b.queue[0].until) {
		b.Rests(b.queue[0].address, now)
		b.queue = b.queue[1:]
	}
	b.Rest(a, now.Add(Quarantine))
	return true
}

// Rest keeps an address that nobody holds out of use until then.
func (b *Book) Rest(a netip.Addr, until time.Time) {
	if !b.Held(a) && until.After(b.resting[a]) {
		b.resting[a] = until
		b.queue = append(b.queue, rest{a, until})
	}
}

// Inherit takes over what an earlier book of the same network knows of the
// past: what rests in it, and what it held and this one does not.
func (b *Book) Inherit(earlier *Book, now time.Time) {
	for a := range earlier.held {
		b.Rest(a, now.Add(Quarantine))
	}
	for a, until := range earlier.resting {
		if now.Before(until) {
			b.Rest(a, until)
		}
	}
	for i, a := range earlier.last {
		if a.IsValid() {
			b.last[i] = a
		}
	}
}

// Held reports whether an address has a holder.
func (b *Book) Held(a netip.Addr) bool { return b.held[a] > 0 }

// Resume makes the search for the next address of a's family begin behind a.
func (b *Book) Resume(a netip.Addr) { b.last[family(a)] = a }

// Rests reports whether an address is kept out of use.
func (b *Book) Rests(a netip.Addr, now time.Time) bool {
	until, ok := b.resting[a]
	if ok && !now.Before(until) {
		delete(b.resting, a)
		return false
	}
	return ok
}

// Wake is when the first address of the spans ends its rest; zero if none rests.
func (b *Book) Wake(spans []Span) (at time.Time) {
	for a, until := range b.resting {
		for _, s := range spans {
			if s.Contains(a) && (at.IsZero() || until.Before(at)) {
				at = until
			}
		}
	}
	return at
}

// Take hands out the next address of the spans, all of one family, that is
// neither held nor at rest, and holds it.
func (b *Book) Take(spans []Span, now time.Time) (netip.Addr, error) {
	// Among more addresses than are held or rest, one is free.
	left := uint64(len(b.held) + len(b.resting) + 1)
	total := uint64(0)
	for _, s := range spans {
		if n := s.Len(); n < math.MaxUint64-total {
			total += n
		} else {
			total = math.MaxUint64
		}
	}
	left = min(left, total)
	at, i := b.start(spans)
	for ; left > 0; left-- {
		if !b.Held(at) && !b.Rests(at, now) {
			b.Hold(at)
			b.Resume(at)
			return at, nil
		}
		at, i = after(spans, at, i)
	}
	return netip.Addr{}, object.Errorf(errdefs.ErrResourceExhausted, "no address is free")
}

// start is where the search begins: behind the last address, if that is one of
// the spans'.
func (b *Book) start(spans []Span) (netip.Addr, int) {
	if len(spans) == 0 {
		return netip.Addr{}, 0
	}
	last := b.last[family(spans[0].First)]
	for i, s := range spans {
		if s.Contains(last) {
			return after(spans, last, i)
		}
	}
	return spans[0].First, 0
}

// after is the address that follows a, which is one of the i-th span, and its span.
func after(spans []Span, a netip.Addr, i int) (netip.Addr, int) {
	if a != spans[i].Last {
		return a.Next(), i
	}
	i = (i + 1) % len(spans)
	return spans[i].First, i
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

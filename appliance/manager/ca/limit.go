package ca

import (
	"net/netip"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/time/rate"

	"skep/store/object"
)

const (
	perSource = 1  // requests per second
	burst     = 10 // requests at once
	strangers = 20 // requests per second of all who are not nodes yet
	// penalty is what a bad token costs on top, in requests.
	penalty = 9
	// maxSources is how many sources are remembered; when they are all in use,
	// strangers wait.
	maxSources = 4096
)

// limiter keeps anybody from asking too often, and all together too. It costs
// little: it stands before any arithmetic with keys.
type limiter[K comparable] struct {
	mu   sync.Mutex
	all  *rate.Limiter
	each map[K]*rate.Limiter
}

func newLimiter[K comparable](all *rate.Limiter) *limiter[K] {
	return &limiter[K]{all: all, each: map[K]*rate.Limiter{}}
}

// admit lets a request pass or refuses it.
func (l *limiter[K]) admit(from K, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	own := l.each[from]
	if own == nil {
		if len(l.each) >= maxSources && !l.prune(now) {
			return errBusy()
		}
		own = rate.NewLimiter(perSource, burst)
		l.each[from] = own
	}
	if !own.AllowN(now, 1) || !l.all.AllowN(now, 1) {
		return errBusy()
	}
	return nil
}

// punish makes a source wait.
func (l *limiter[K]) punish(from K, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if own := l.each[from]; own != nil {
		own.ReserveN(now, penalty)
	}
}

// prune forgets who could ask as often as a newcomer, and tells whether there
// was anybody.
func (l *limiter[K]) prune(now time.Time) bool {
	before := len(l.each)
	for k, own := range l.each {
		if own.TokensAt(now) >= burst {
			delete(l.each, k)
		}
	}
	return len(l.each) < before
}

func errBusy() error {
	return object.Errorf(errdefs.ErrResourceExhausted, "too many requests for certificates; try again in a while")
}

// network is the part of an address that counts as one source.
func network(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // all that have no address are one
	}
	return p
}

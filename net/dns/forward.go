// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Bounds on asking others.
const (
	maxUpstreams = 3
	maxAsking    = 1024 // questions at a time; more fail at once
	askTimeout   = 4 * time.Second
	// patience is how long one is waited for before the next is asked, too.
	patience = 1200 * time.Millisecond
	// slowFor is how long one that was silent is asked last.
	slowFor = 10 * time.Second
)

var (
	errNoUpstream = errors.New("there is no name server to ask")
	errBusy       = errors.New("too many questions at a time")
	errSilent     = errors.New("no answer in time")
)

// forwarder asks name servers elsewhere.
type forwarder struct {
	dial   dialer
	asking chan struct{} // one for each question

	mu   sync.Mutex
	slow map[upstream]time.Time // until when these are asked last
}

// upstream is a name server as it is reached from a namespace; empty: this process's.
type upstream struct {
	namespace string
	server    netip.AddrPort
}

func newForwarder() *forwarder {
	return &forwarder{dial: dialUpstream, asking: make(chan struct{}, maxAsking), slow: map[upstream]time.Time{}}
}

// attempt is what became of asking one.
type attempt struct {
	upstream upstream
	reply    []byte
	err      error
}

// ask passes a client's packet on, as it is, and returns the first answer. The
// servers are asked one after another: the next when one fails, or also when
// it is silent for some time. If all say that they cannot answer, the last
// that said so is the answer.
func (f *forwarder) ask(ctx context.Context, namespace string, servers []netip.AddrPort, packet []byte, stream bool) ([]byte, error) {
	if len(servers) == 0 {
		return nil, errNoUpstream
	}
	select {
	case f.asking <- struct{}{}:
		defer func() { <-f.asking }()
	default:
		return nil, errBusy
	}
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithTimeoutCause(ctx, askTimeout, errSilent)
	defer cancel()
	candidates := f.order(namespace, servers)
	results := make(chan attempt, len(candidates)) // nobody waits to be heard
	start := func(u upstream) {
		running.Go(func() {
			reply, err := f.exchange(ctx, u, packet, stream)
			results <- attempt{u, reply, err}
		})
	}
	return f.race(ctx, candidates, start, results)
}

// race starts attempts, one by one, until one has an answer.
func (f *forwarder) race(ctx context.Context, candidates []upstream, start func(upstream), results <-chan attempt) ([]byte, error) {
	hurry := time.NewTimer(patience)
	defer hurry.Stop()
	var waiting []upstream
	next := func() {
		if len(candidates) == 0 {
			return
		}
		waiting = append(waiting, candidates[0])
		start(candidates[0])
		candidates = candidates[1:]
		hurry.Reset(patience)
	}
	next()
	var refusal []byte
	var errs []error
	for len(waiting) > 0 {
		select {
		case <-ctx.Done():
			f.heard(upstream{}, waiting)
			return settle(refusal, append(errs, context.Cause(ctx)))
		case <-hurry.C:
			next()
		case a := <-results:
			if a.err != nil && ctx.Err() != nil {
				continue // the end of the time is what went wrong
			}
			waiting = slices.DeleteFunc(waiting, func(u upstream) bool { return u == a.upstream })
			if a.err == nil && !refuses(a.reply) {
				f.heard(a.upstream, waiting)
				return a.reply, nil
			}
			if a.err == nil {
				refusal = a.reply
			}
			errs = append(errs, a.err)
			next()
		}
	}
	return settle(refusal, errs)
}

// settle is the refusal, if there is one: it says more than that others did not answer.
func settle(refusal []byte, errs []error) ([]byte, error) {
	if refusal != nil {
		return refusal, nil
	}
	return nil, errors.Join(errs...)
}

// refuses reports whether another server may know better.
func refuses(reply []byte) bool {
	switch int(reply[3] & 0xf) {
	case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented:
		return true
	}
	return false
}

// order is who is asked, the slow ones last.
func (f *forwarder) order(namespace string, servers []netip.AddrPort) []upstream {
	out := make([]upstream, 0, maxUpstreams)
	for _, s := range servers[:min(len(servers), maxUpstreams)] {
		if u := (upstream{namespace, s}); !slices.Contains(out, u) {
			out = append(out, u)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	slow := func(u upstream) int {
		if f.slow[u].After(now) {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(out, func(x, y upstream) int { return cmp.Compare(slow(x), slow(y)) })
	return out
}

// heard notes who answered, if anybody, and who was silent meanwhile.
func (f *forwarder) heard(from upstream, silent []upstream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.slow, from)
	if len(silent) == 0 {
		return
	}
	now := time.Now()
	for u, until := range f.slow {
		if until.Before(now) {
			delete(f.slow, u)
		}
	}
	for _, u := range silent {
		f.slow[u] = now.Add(slowFor)
	}
}

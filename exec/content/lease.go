package content

import (
	"sync"

	"github.com/opencontainers/go-digest"
)

// Lease keeps digests from being removed while an image is put together: hold a
// digest first, look whether it is there second, and release the lease when
// the image is on record. Digests of layers may be held as well as those of
// blobs.
type Lease struct {
	s    *Store
	mu   sync.Mutex
	held map[digest.Digest]bool
	done bool
}

// Lease starts an empty lease.
func (s *Store) Lease() *Lease {
	return &Lease{s: s, held: map[digest.Digest]bool{}}
}

// Hold adds digests to the lease.
func (l *Lease) Hold(ds ...digest.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for _, d := range ds {
		if !l.held[d] && !l.done {
			l.held[d] = true
			l.s.leased[d]++
		}
	}
}

// Release ends the lease; it may be called again.
func (l *Lease) Release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.done = true
	for d := range l.held {
		if l.s.leased[d]--; l.s.leased[d] <= 0 {
			delete(l.s.leased, d)
		}
	}
	l.held = nil
}

// Unless calls remove unless somebody holds d, and holds off new leases
// meanwhile. It says whether remove was called.
func (s *Store) Unless(d digest.Digest, remove func() error) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leased[d] > 0 {
		return false, nil
	}
	return true, remove()
}

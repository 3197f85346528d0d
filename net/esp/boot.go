// SPDX-License-Identifier: Apache-2.0

package esp

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// Boot names the time since which no key for sending was lost. Keys are to be
// made for a boot and for no other: one that is begun anew would count its
// packets from the start, which the receiver takes for a replay, and which GCM
// does not forgive. So a state for sending that is gone stays gone until there
// are keys for the boot that began with its loss.
func (e *ESP) Boot() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.boot
}

// stateKey is what tells states apart.
type stateKey struct {
	dst netip.Addr
	spi uint32
}

func (s state) key() stateKey { return stateKey{s.dst, s.spi} }

// openBoot goes on with the boot of an earlier process, or begins one.
func (e *ESP) openBoot() error {
	b, err := os.ReadFile(e.cfg.File)
	if e.cfg.File == "" || errors.Is(err, fs.ErrNotExist) {
		return e.newBoot()
	}
	if err != nil {
		return fmt.Errorf("read boot: %w", err)
	}
	e.boot = strings.TrimSpace(string(b))
	return nil
}

func (e *ESP) newBoot() error {
	e.boot = rand.Text()
	if e.cfg.File == "" {
		return nil
	}
	if err := os.WriteFile(e.cfg.File, []byte(e.boot+"\n"), 0o600); err != nil {
		return fmt.Errorf("keep boot: %w", err)
	}
	return nil
}

// without is what is wanted but for the states for sending that the kernel had
// and has no more; lost are those whose loss is news.
func (e *ESP) without(have plan) (want plan, lost []state) {
	want = e.want
	gone := func(s state) bool {
		_, there := slices.BinarySearchFunc(have.states, s, state.compare)
		installed, known := e.sent[s.key()]
		if there || !known {
			return false
		}
		if installed {
			lost = append(lost, s)
		}
		return true
	}
	want.states = slices.DeleteFunc(slices.Clone(want.states), gone)
	return want, lost
}

// forget begins another boot if states were lost.
func (e *ESP) forget(lost []state) error {
	if len(lost) == 0 {
		return nil
	}
	for _, s := range lost {
		e.cfg.Logger.Warn("lost a key for sending; waiting for another", "peer", s.dst)
		e.sent[s.key()] = false
	}
	if err := e.newBoot(); err != nil {
		return err
	}
	if e.cfg.Lost != nil {
		e.cfg.Lost()
	}
	return nil
}

// note remembers the states for sending that the kernel has now, and of those
// that it lost the ones that are still wanted.
func (e *ESP) note(have plan) {
	sending := map[stateKey]bool{}
	for _, p := range e.want.policies {
		if p.spi != 0 {
			sending[stateKey{p.dst.Addr(), p.spi}] = true
		}
	}
	for k := range e.sent {
		if !sending[k] {
			delete(e.sent, k)
		}
	}
	for _, s := range have.states {
		if sending[s.key()] {
			e.sent[s.key()] = true
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

// Package overlay makes networks that span nodes: VXLAN, in which every node
// is told who is where.
//
// Each network has a network namespace of its own on each node that has to do
// with it, with a bridge, a VXLAN device and a port for each container. Who is
// on other nodes is programmed ([Overlay.Set]) and never learned; nothing is
// flooded, and containers can neither pretend to be others nor hear what others
// ask. All of it outlives the process: a new one on the same directory finds
// everything, and traffic does not notice.
//
// It does not decide who is on a network, and balances and encrypts nothing.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"

	"skep/net/link"
)

// Config is what an Overlay needs.
type Config struct {
	// RunDir keeps what ends with the machine, in overlay/: the namespaces
	// (netns), the networks and what is attached. It belongs on a tmpfs.
	RunDir string
	// Scope tells the nodes of one machine apart: six hexadecimal digits.
	Scope string
	// SoftwareChecksums is for machines whose network devices compute the
	// checksums within tunnels wrongly; it costs throughput.
	SoftwareChecksums bool
	Logger            *slog.Logger
}

// Overlay is the node's part of all networks.
type Overlay struct {
	log      *slog.Logger
	disk     records
	table    string
	software bool
	// host is the namespace in which the tunnels' sockets are.
	host *link.Conn

	// setting is the right to change which networks there are.
	setting chan struct{}

	repaired atomic.Uint64

	mu       sync.Mutex
	segments map[string]*segment       // guarded by mu; by the network's ID
	ends     map[string]map[string]end // guarded by mu; by the container's ID, then the network's
}

// Open opens the overlays of the namespace of the calling thread, and finds
// what an earlier process left. Traffic that goes through it goes on.
func Open(ctx context.Context, c Config) (*Overlay, error) {
	if !regexp.MustCompile(`^[0-9a-f]{6}$`).MatchString(c.Scope) {
		return nil, fmt.Errorf("open overlays: scope %q: not six hexadecimal digits", c.Scope)
	}
	o := &Overlay{
		log: c.Logger, table: "skep-" + c.Scope, software: c.SoftwareChecksums,
		disk:     records{filepath.Join(c.RunDir, "overlay")},
		setting:  make(chan struct{}, 1),
		segments: map[string]*segment{}, ends: map[string]map[string]end{},
	}
	o.setting <- struct{}{}
	var err error
	if o.host, err = link.Open(); err != nil {
		return nil, fmt.Errorf("open overlays: %w", err)
	}
	if err = o.recover(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open overlays: %w", err), o.Close())
	}
	return o, nil
}

// Close leaves everything in the kernel as it is. Nothing may be going on.
func (o *Overlay) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for _, s := range o.segments {
		errs = append(errs, s.close())
	}
	o.host.Close()
	return errors.Join(errs...)
}

// Destroy removes every network. It is for a node that is taken off a machine.
// The overlays may not be used after; those of a node that leaves its swarm are
// set to nothing.
func (o *Overlay) Destroy(ctx context.Context) error {
	if err := o.Set(ctx, nil); err != nil {
		return err
	}
	return o.disk.destroy()
}

// Namespace is where the node's part of a network is.
func (o *Overlay) Namespace(network string) (path string, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s, ok := o.segments[network]
	if !ok || !link.Pinned(s.path) {
		return "", false
	}
	return s.path, true
}

// Repaired is how many differences between what was wanted and what was there
// have been mended since Open.
func (o *Overlay) Repaired() uint64 { return o.repaired.Load() }

// begin waits until nobody else works on a network. The segment is nil if the
// network is not there.
func (o *Overlay) begin(ctx context.Context, network string) (*segment, error) {
	o.mu.Lock()
	s := o.segments[network]
	o.mu.Unlock()
	if s == nil {
		return nil, nil
	}
	select {
	case <-s.turn:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if s.gone {
		s.release()
		return nil, nil
	}
	return s, nil
}

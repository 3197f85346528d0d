// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"skep/net/link"
)

// Set makes the networks, and no others, be on this node, with the peers that
// they have. A network that is the same pointer as last time, and was made then,
// is as it was. What is wrong with one network does not keep others from being
// set; it is tried again the next time.
func (o *Overlay) Set(ctx context.Context, networks []*Network) error {
	select {
	case turn := <-o.setting:
		defer func() { o.setting <- turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	wanted := map[string]*Network{}
	for _, n := range networks {
		wanted[n.ID] = n
	}
	var errs []error
	// Those that go first: their tunnels' numbers may be used again.
	for _, id := range o.networks() {
		if wanted[id] == nil {
			errs = append(errs, o.removeNetwork(ctx, id))
		}
	}
	clash := clashes(networks)
	for _, n := range networks {
		err := n.check()
		if err == nil {
			err = clash[n.ID]
		}
		if err == nil {
			err = o.setNetwork(ctx, n)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("set network %s: %w", n.ID, err))
		}
	}
	return errors.Join(errs...)
}

// networks lists those that are here.
func (o *Overlay) networks() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Sorted(maps.Keys(o.segments))
}

func (o *Overlay) setNetwork(ctx context.Context, n *Network) error {
	s, err := o.begin(ctx, n.ID)
	if err != nil {
		return err
	}
	if s == nil {
		return o.addNetwork(ctx, n)
	}
	defer s.release()
	if s.net == n && s.whole && !s.dirty {
		return nil
	}
	if s.whole && !s.dirty && s.net.sameButPeers(n) {
		return o.setPeers(s, n)
	}
	return o.setWhole(ctx, s, n)
}

// setWhole makes a network whatever it was before. The record comes first: what
// has none is swept away by the next process.
func (o *Overlay) setWhole(ctx context.Context, s *segment, n *Network) error {
	s.net, s.whole, s.dirty = n, true, true
	if err := o.disk.saveNetwork(n); err != nil {
		return fmt.Errorf("save network: %w", err)
	}
	_, _, err := o.converge(ctx, s)
	return err
}

// addNetwork makes a network that is not here.
func (o *Overlay) addNetwork(ctx context.Context, n *Network) error {
	s := newSegment(n, o.disk.namespace(n.ID))
	o.mu.Lock()
	for _, other := range o.segments {
		if other.path == s.path {
			o.mu.Unlock()
			return fmt.Errorf("its ID begins as %s", other.id)
		}
	}
	<-s.turn
	o.segments[n.ID] = s
	o.mu.Unlock()
	defer s.release()
	return o.setWhole(ctx, s, n)
}

// setPeers programs what is different from what was programmed before.
func (o *Overlay) setPeers(s *segment, n *Network) error {
	ends := o.endsOf(s.id)
	k, few := changedPeers(s.net.Peers, n.Peers)
	s.net, s.dirty = n, true // until it is done
	if few {
		next, refused := planOnly(n, ends, k)
		if err := s.change(k, s.who.only(k), next); err != nil {
			return err
		}
		s.dirty = false
		return refused
	}
	next, refused := planWho(n, ends)
	set, drop := s.who.change(next)
	if err := s.program(set, drop, s.onHost(set), s.onHost(drop)); err != nil {
		return err
	}
	s.who, s.dirty = next, false
	return refused
}

// onHost are the entries that the bridge has too, if it is a host: it does not
// need to ask, and its neighbours are not forgotten where there are very many.
func (s *segment) onHost(entries []link.Entry) []link.Entry {
	if s.net.Router == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(entries), func(e link.Entry) bool { return e.Table != link.Neighbours })
}

// removeNetwork removes a network with all that is attached to it. The records
// go first: from then on the next process would sweep away what is left.
func (o *Overlay) removeNetwork(ctx context.Context, id string) error {
	s, err := o.begin(ctx, id)
	if err != nil || s == nil {
		return err
	}
	defer s.release()
	for _, e := range o.endsOf(id) {
		if err := o.disk.removeEnd(e); err != nil {
			return err
		}
	}
	if err := o.disk.removeNetwork(id); err != nil {
		return err
	}
	if err := s.raze(); err != nil {
		return err
	}
	s.gone = true
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.segments, id)
	for container, places := range o.ends {
		delete(places, id)
		if len(places) == 0 {
			delete(o.ends, container)
		}
	}
	return nil
}

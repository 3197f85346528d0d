// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Detach takes a container off networks, or off all of its own if none is named.
// One that it is not on is no error.
func (o *Overlay) Detach(ctx context.Context, id string, networks ...string) error {
	return o.detachAll(ctx, func(e end) bool {
		return e.ID == id && (len(networks) == 0 || slices.Contains(networks, e.Network))
	})
}

// Retain takes all containers off that are not among those.
func (o *Overlay) Retain(ctx context.Context, ids []string) error {
	kept := map[string]bool{}
	for _, id := range ids {
		kept[id] = true
	}
	return o.detachAll(ctx, func(e end) bool { return !kept[e.ID] })
}

func (o *Overlay) detachAll(ctx context.Context, which func(end) bool) error {
	var errs []error
	for _, id := range o.networks() {
		errs = append(errs, o.detachFrom(ctx, id, which))
	}
	return errors.Join(errs...)
}

func (o *Overlay) detachFrom(ctx context.Context, network string, which func(end) bool) error {
	if !slices.ContainsFunc(o.endsOf(network), which) {
		return nil
	}
	s, err := o.begin(ctx, network)
	if err != nil || s == nil {
		return err
	}
	defer s.release()
	gone := slices.DeleteFunc(o.endsOf(network), func(e end) bool { return !which(e) })
	if err := o.detach(s, gone...); err != nil {
		return fmt.Errorf("detach from network %s: %w", network, err)
	}
	return nil
}

// detach takes containers off a network. The records go first: from then on the
// next process would sweep away what is left, and so does Check.
func (o *Overlay) detach(s *segment, gone ...end) error {
	before := o.endsOf(s.id)
	var ports []string
	for _, e := range gone {
		if err := o.disk.removeEnd(e); err != nil {
			return err
		}
		ports = append(ports, e.Port)
	}
	o.mu.Lock()
	for _, e := range gone {
		delete(o.ends[e.ID], e.Network)
		if len(o.ends[e.ID]) == 0 {
			delete(o.ends, e.ID)
		}
	}
	o.mu.Unlock()
	if s.link == nil {
		return nil
	}
	after := o.endsOf(s.id)
	err := s.link.Remove(ports...)
	if err == nil {
		err = s.tell(before, after, gone...)
	}
	if err == nil {
		err = s.filter(planTable(after, o.table))
	}
	if err != nil {
		s.dirty = true
	}
	return err
}

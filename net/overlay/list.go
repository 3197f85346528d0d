// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"fmt"
	"maps"
	"slices"

	"github.com/moby/moby/api/types/container"
)

// Attached are the places of a container on networks, in order of these.
func (o *Overlay) Attached(id string) []Attachment {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []Attachment
	for _, network := range slices.Sorted(maps.Keys(o.ends[id])) {
		out = append(out, o.ends[id][network].Attachment)
	}
	return out
}

func (o *Overlay) find(id, network string) (end, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	e, ok := o.ends[id][network]
	return e, ok
}

// endsOf lists those on a network, in order of their ports.
func (o *Overlay) endsOf(network string) []end {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []end
	for _, places := range o.ends {
		if e, ok := places[network]; ok {
			out = append(out, e)
		}
	}
	return sorted(out)
}

// Stats are the counters of a container's devices by their names inside.
func (o *Overlay) Stats(id string) (map[string]container.NetworkStats, error) {
	out := map[string]container.NetworkStats{}
	for _, a := range o.Attached(id) {
		o.mu.Lock()
		s := o.segments[a.Network]
		o.mu.Unlock()
		if s == nil {
			continue
		}
		<-s.turn
		if s.link != nil {
			st, err := s.link.PeerStats(portName(id, a.Network))
			if err != nil {
				s.release()
				return nil, fmt.Errorf("read counters: %w", err)
			}
			out[a.Interface] = st
		}
		s.release()
	}
	return out, nil
}

// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"

	"github.com/containerd/errdefs"

	"skep/net/link"
	"skep/store/object"
)

// State is what the kernel has of a network.
type State struct {
	Namespace string
	// Programmed are the entries that are there and as they should be:
	// neighbours and forwards.
	Programmed int
	// Missing are those that are not, or are otherwise; Superfluous those that
	// nobody wants.
	Missing, Superfluous []link.Entry
	// Faults say what else is not as it should be.
	Faults []string
	// Text is all of it, in the manner of the ip, bridge and nft commands.
	Text string
}

// Inspect reads what the kernel has of a network, and changes nothing.
func (o *Overlay) Inspect(ctx context.Context, network string) (State, error) {
	s, err := o.begin(ctx, network)
	if err != nil {
		return State{}, err
	}
	if s == nil {
		return State{}, object.Errorf(errdefs.ErrNotFound, "network %s is not on this node", network)
	}
	defer s.release()
	ends := o.endsOf(s.id)
	people, _ := planWho(s.net, ends)
	have, err := s.observe(o.table, ends)
	if err != nil {
		return State{}, err
	}
	d := compare(planLayout(s.net, ends, o.table), people, s.whole, have)
	st := State{
		Namespace: s.path, Missing: append(d.set, d.hostSet...), Superfluous: append(d.drop, d.hostDrop...),
		Faults: d.words, Text: have.String(),
	}
	if !link.Pinned(s.path) {
		st.Faults = append(st.Faults, "the namespace is missing")
	}
	st.Programmed = len(people.at) + len(people.via) - len(d.set)
	return st, nil
}

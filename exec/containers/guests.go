package containers

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"skep/store/object"
)

// Guests gives containers that no service made their places on attachable
// networks of the swarm.
type Guests interface {
	// Attach asks for a place and waits until it has addresses. It is the
	// container's until it is released.
	Attach(ctx context.Context, r GuestRequest) (object.Overlay, error)
	// Release gives all places of a container back. It does not wait for it, and
	// one that has none is no error.
	Release(containerID string)
	// ReleaseOne gives back one place (the ID of the guest).
	ReleaseOne(containerID, place string)
	// Retain takes the places (IDs of guests) of the containers that an earlier
	// process left running for those in use: all others are given back.
	Retain(byContainer map[string][]string)
}

// GuestRequest is what a container wants of a network of the swarm.
type GuestRequest struct {
	ContainerID, Name string
	Network           string // its name or ID
	Aliases           []string
	// Wanted are addresses that it is to have; the rest is chosen.
	Wanted []netip.Addr
}

// userDefined tells whether a mode names a network that is not the node's own.
func userDefined(m container.NetworkMode) bool { return m != "" && m.IsUserDefined() }

// guestNetworks are the networks of the swarm that a user put the container on,
// as the user called them: that of its mode, then the others in order.
func (r *record) guestNetworks() []string {
	var names []string
	if userDefined(r.Host.NetworkMode) {
		names = append(names, string(r.Host.NetworkMode))
	}
	if r.Network == nil {
		return names
	}
	for _, name := range slices.Sorted(maps.Keys(r.Network.EndpointsConfig)) {
		if userDefined(container.NetworkMode(name)) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// asked is what the user wants on a network; never nil.
func (r *record) asked(name string) *network.EndpointSettings {
	if r.Network != nil {
		if s := r.Network.EndpointsConfig[name]; s != nil {
			return s
		}
	}
	return &network.EndpointSettings{}
}

// checkGuests refuses networks that the container cannot be on.
func (e *Engine) checkGuests(r *record) error {
	names := r.guestNetworks()
	if len(names) == 0 {
		return nil
	}
	if e.cfg.Guests == nil {
		return object.Errorf(errdefs.ErrNotFound, "network %s not found", names[0])
	}
	if m := r.Host.NetworkMode; m.IsHost() || m.IsNone() || m.IsContainer() {
		return invalid("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
	}
	for _, name := range names {
		if err := checkAsked(r.asked(name)); err != nil {
			return err
		}
	}
	return nil
}

// checkAsked refuses what networks of the swarm do not have.
func checkAsked(s *network.EndpointSettings) error {
	switch {
	case len(s.MacAddress) > 0:
		return object.Errorf(errdefs.ErrNotImplemented, "a container's MAC address on a network of the swarm cannot be chosen")
	case len(s.Links) > 0:
		return object.Errorf(errdefs.ErrNotImplemented, "links are not supported on networks of the swarm; containers find each other by name")
	case s.IPAMConfig != nil && len(s.IPAMConfig.LinkLocalIPs) > 0:
		return object.Errorf(errdefs.ErrNotImplemented, "link-local addresses are not supported on networks of the swarm")
	}
	return nil
}

// attachGuests asks for the container's places. What was given when a later one
// fails is released with the failed start.
func (e *Engine) attachGuests(ctx context.Context, r *record) ([]object.Overlay, error) {
	var places []object.Overlay
	for _, name := range r.guestNetworks() {
		if e.cfg.Guests == nil {
			return nil, object.Errorf(errdefs.ErrNotFound, "network %s not found", name)
		}
		o, err := e.cfg.Guests.Attach(ctx, guestRequest(r, name))
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(places, func(p object.Overlay) bool { return p.Network == o.Network }) {
			return nil, invalid("container is already connected to network %s", o.Name)
		}
		places = append(places, o)
	}
	return places, nil
}

func guestRequest(r *record, name string) GuestRequest {
	s := r.asked(name)
	q := GuestRequest{ContainerID: r.ID, Name: r.Name, Network: name, Aliases: slices.Clone(s.Aliases)}
	if host := r.Config.Hostname; host != "" && host != r.ID[:12] && !slices.Contains(q.Aliases, host) {
		q.Aliases = append(q.Aliases, host)
	}
	if s.IPAMConfig != nil {
		for _, a := range []netip.Addr{s.IPAMConfig.IPv4Address, s.IPAMConfig.IPv6Address} {
			if a.IsValid() {
				q.Wanted = append(q.Wanted, a)
			}
		}
	}
	return q
}

// releaseGuests gives a container's places back.
func (e *Engine) releaseGuests(id string) {
	if e.cfg.Guests != nil {
		e.cfg.Guests.Release(id)
	}
}

// retainGuests says which places are in use when the engine opens.
func (e *Engine) retainGuests(running []string) {
	if e.cfg.Guests == nil {
		return
	}
	used := map[string][]string{}
	for _, id := range running {
		r := e.byID[id].rec()
		if len(r.guestNetworks()) == 0 {
			continue // a task's are the managers' own affair
		}
		at, _ := e.cfg.Networks.Attachment(id)
		for _, o := range at.Overlays {
			used[id] = append(used[id], o.Task)
		}
	}
	e.cfg.Guests.Retain(used)
}

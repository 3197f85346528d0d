package containers

import (
	"context"
	"errors"
	"maps"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"skep/store/object"
)

// ConnectNetwork puts a container on a network of the swarm: at once if it runs,
// or else from its next start on.
func (e *Engine) ConnectNetwork(ctx context.Context, ref, name string, s *network.EndpointSettings) error {
	return e.rewire(ctx, ref, func(r *record) error {
		if r.places()[name] {
			return object.Errorf(errdefs.ErrConflict, "container %s is already connected to network %s", r.Name, name)
		}
		r.connect(name, s)
		return e.checkGuests(r)
	})
}

// DisconnectNetwork takes a container off a network of the swarm. One that runs
// keeps its way out.
func (e *Engine) DisconnectNetwork(ctx context.Context, ref, name string) error {
	return e.rewire(ctx, ref, func(r *record) error {
		if !r.places()[name] {
			return object.Errorf(errdefs.ErrNotFound, "container %s is not connected to network %s", r.Name, name)
		}
		r.disconnect(name)
		return nil
	})
}

// rewire changes what networks a container is to be on, and if it runs, is on.
func (e *Engine) rewire(ctx context.Context, ref string, change func(r *record) error) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	if err = c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	old := c.rec()
	at, connected := e.cfg.Networks.Attachment(c.id)
	switch {
	case c.isRemoved():
		return object.Errorf(errdefs.ErrNotFound, "No such container: %s", ref)
	case len(old.Extra.Overlays) > 0:
		return object.Errorf(errdefs.ErrConflict, "container %s is a service's; change the networks of the service", old.Name)
	case !c.status().Running:
		connected = false
	case old.Host.NetworkMode.IsContainer() || old.Host.NetworkMode.IsHost():
		return object.Errorf(errdefs.ErrInvalidArgument, "container sharing network namespace with another container or host cannot be connected to any other network")
	case connected && at.Network == "none":
		return object.Errorf(errdefs.ErrInvalidArgument, "container cannot be connected to multiple networks with one of the networks in private (none) mode")
	}
	r := old
	if err = change(&r); err != nil {
		return err
	}
	if err = e.saveRecord(&r); err != nil {
		return err
	}
	var places []object.Overlay
	if connected {
		// It is carried through even if whoever asked for it goes away.
		if places, err = e.replug(context.WithoutCancel(ctx), &r, at); err != nil {
			return errors.Join(err, e.saveRecord(&old))
		}
	}
	c.mu.Lock()
	c.record.Network, c.record.Host.NetworkMode = r.Network, r.Host.NetworkMode
	c.mu.Unlock()
	s := c.update(func(s *status) { s.Overlays = places })
	return e.saveState(c.id, &s)
}

// places are the networks of the swarm that the container is to be on.
func (r *record) places() map[string]bool {
	all := map[string]bool{}
	for _, name := range r.guestNetworks() {
		all[name] = true
	}
	return all
}

// connect adds a network, which becomes that of the mode of a container on none.
// The record's maps are others' too: they are replaced.
func (r *record) connect(name string, s *network.EndpointSettings) {
	n := &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{}}
	if r.Network != nil {
		maps.Copy(n.EndpointsConfig, r.Network.EndpointsConfig)
	}
	if s == nil {
		s = &network.EndpointSettings{}
	}
	if r.Host.NetworkMode.IsNone() && len(r.guestNetworks()) == 0 {
		r.Host.NetworkMode = container.NetworkMode(name)
	}
	n.EndpointsConfig[name] = s
	r.Network = n
}

// disconnect removes a network. A container that loses that of its mode has the
// next one for it; with the last one it is on none.
func (r *record) disconnect(name string) {
	n := &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{}}
	if r.Network != nil {
		maps.Copy(n.EndpointsConfig, r.Network.EndpointsConfig)
	}
	delete(n.EndpointsConfig, name)
	r.Network = n
	if string(r.Host.NetworkMode) != name {
		return
	}
	r.Host.NetworkMode = "none"
	for _, next := range r.guestNetworks() {
		r.Host.NetworkMode = container.NetworkMode(next)
		return
	}
}

package engine

import (
	"context"
	"maps"
	"net/http"
	"net/netip"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"skep/admin"
	"skep/store"
	"skep/store/object"
)

func (a *API) networkCreate(w http.ResponseWriter, r *http.Request) error {
	req, err := decode[network.CreateRequest](r)
	switch {
	case err != nil:
		return err
	case req.Name == "":
		return invalid("network name cannot be empty")
	case object.Predefined(req.Name) || req.Name == "default":
		return object.Errorf(errdefs.ErrPermissionDenied, "%s is a pre-defined network and cannot be created", req.Name)
	case req.ConfigOnly || req.ConfigFrom != nil && req.ConfigFrom.Network != "":
		return unbuilt("networks that only hold a configuration are")
	}
	switch req.Driver {
	case "overlay":
	case "", "bridge":
		return unbuilt("bridge networks other than the node's own are")
	case "macvlan", "ipvlan", "host", "null":
		return unbuilt(req.Driver + " networks are")
	default:
		return object.Errorf(errdefs.ErrNotFound, "plugin %q not found", req.Driver)
	}
	n, err := swarmNetwork(req)
	if err != nil {
		return err
	}
	if err := a.addNetwork(r.Context(), n); err != nil {
		return err
	}
	admin.NameObject(r.Context(), n.ID)
	return writeJSON(w, http.StatusCreated, network.CreateResponse{ID: n.ID})
}

// addNetwork puts a network into the swarm, if it goes with what is there.
func (a *API) addNetwork(ctx context.Context, n *object.Network) error {
	own, err := a.Networks.List(ctx)
	if err != nil {
		return err
	}
	for _, other := range own {
		if other.Name == n.Spec.Name {
			return object.Errorf(errdefs.ErrAlreadyExists, "network with name %s already exists", n.Spec.Name)
		}
	}
	err = a.change(ctx, func(s *store.Snapshot, tx *store.Tx) error {
		if err = checkNetwork(s, n); err != nil {
			return err
		}
		tx.Create(n)
		return nil
	})
	if errdefs.IsUnavailable(err) && !a.Swarm.Info(ctx).ControlAvailable {
		// As the peer has it; to anything else that only managers do, it
		// answers otherwise.
		return object.Errorf(errdefs.ErrPermissionDenied, "%v", err)
	}
	return err
}

// swarmNetwork is the network that a client asks for.
func swarmNetwork(req network.CreateRequest) (*object.Network, error) {
	if req.Scope != "" && req.Scope != "swarm" {
		return nil, invalid("overlay networks are of scope swarm")
	}
	if req.EnableIPv4 != nil && !*req.EnableIPv4 {
		return nil, invalid("IPv4 cannot be disabled in a Swarm scoped network")
	}
	n := &object.Network{}
	n.ID = object.NewID()
	n.Spec = swarm.NetworkSpec{
		Annotations:         swarm.Annotations{Name: req.Name, Labels: labels(req.Labels)},
		DriverConfiguration: &swarm.Driver{Name: req.Driver, Options: req.Options},
		IPv6Enabled:         req.EnableIPv6 != nil && *req.EnableIPv6,
		Internal:            req.Internal, Attachable: req.Attachable, Ingress: req.Ingress,
		Scope: "swarm",
	}
	if req.IPAM != nil {
		if err := fillIPAM(n, *req.IPAM, req.EnableIPv6); err != nil {
			return nil, err
		}
	}
	return n, object.ValidateNetwork(n)
}

// fillIPAM takes over what a client says of addresses. Who gives an IPv6 subnet
// wants IPv6, unless it says otherwise: stack files can say it in no other way.
func fillIPAM(n *object.Network, ipam network.IPAM, enable *bool) error {
	if ipam.Driver != "" && ipam.Driver != "default" {
		return object.Errorf(errdefs.ErrNotFound, "plugin %q not found", ipam.Driver)
	}
	o := &swarm.IPAMOptions{Driver: swarm.Driver{Name: "default", Options: ipam.Options}}
	n.Spec.IPAMOptions = o
	for _, c := range ipam.Config {
		if c.Subnet.Addr().Is6() {
			if enable != nil && !*enable {
				return invalid("subnet %s needs IPv6, which is disabled for the network", c.Subnet)
			}
			n.Spec.IPv6Enabled = true
		}
		o.Configs = append(o.Configs, swarm.IPAMConfig{Subnet: c.Subnet, Range: c.IPRange, Gateway: c.Gateway})
		if len(c.AuxAddress) > 0 && n.Auxiliary == nil {
			n.Auxiliary = map[string]netip.Addr{}
		}
		maps.Copy(n.Auxiliary, c.AuxAddress)
	}
	return nil
}

// checkNetwork refuses a network that does not go with those that are there.
func checkNetwork(s *store.Snapshot, n *object.Network) error {
	vni, numbered, err := n.WantedVNI()
	if err != nil {
		return err
	}
	for other := range s.Networks.All() {
		switch {
		case other.PendingDelete:
		case n.Spec.Ingress && other.Spec.Ingress:
			return object.Errorf(errdefs.ErrAlreadyExists, "ingress network (%s) is already present", other.ID)
		case other.Spec.Name == n.Spec.Name:
			return object.Errorf(errdefs.ErrAlreadyExists, "network with name %s already exists", n.Spec.Name)
		}
		if numbered && other.VNI == vni {
			return invalid("VXLAN ID %d is in use by network %s", vni, other.Spec.Name)
		}
		if n.Spec.IPAMOptions == nil {
			continue
		}
		for _, c := range n.Spec.IPAMOptions.Configs {
			if subnet := overlapping(other, c.Subnet); subnet.IsValid() {
				return invalid("invalid pool request: Pool overlaps with other one on this address space: %s is in use by network %s", subnet, other.Spec.Name)
			}
		}
	}
	return nil
}

// overlapping is the subnet that a network has, or asks for, of the addresses of another.
func overlapping(n *object.Network, subnet netip.Prefix) netip.Prefix {
	for _, o := range []*swarm.IPAMOptions{n.IPAMOptions, n.Spec.IPAMOptions} {
		if o == nil {
			continue
		}
		for _, c := range o.Configs {
			if c.Subnet.Overlaps(subnet) {
				return c.Subnet
			}
		}
	}
	return netip.Prefix{}
}

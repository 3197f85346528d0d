package engine

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"skep/admin"
	"skep/admin/filters"
	"skep/store"
	"skep/store/object"
)

func (a *API) networkRoutes() []admin.Route {
	return []admin.Route{
		a.read("GET /networks", a.networkList),
		a.read("GET /networks/{id}", a.networkInspect),
		a.write(admin.Operator, "POST /networks/create", a.networkCreate),
		a.write(admin.Operator, "POST /networks/prune", a.networkPrune),
		a.write(admin.Operator, "POST /networks/{id}/connect", a.networkConnect),
		a.write(admin.Operator, "POST /networks/{id}/disconnect", a.networkDisconnect),
		a.write(admin.Operator, "DELETE /networks/{id}", a.networkRemove),
	}
}

// someNetwork is a network of this node or, if swarm is set, of the swarm.
type someNetwork struct {
	network.Inspect
	swarm *object.Network
}

// networks are those of the swarm, as far as this node knows them, and its own.
// The snapshot is nil on a node that is no manager.
func (a *API) networks(ctx context.Context) (all []someNetwork, s *store.Snapshot, err error) {
	own, err := a.Networks.List(ctx)
	if err != nil {
		return nil, nil, err
	}
	_, reads := ctx.Value(readKey{}).(http.ResponseWriter)
	if s, err = a.state(ctx); err != nil && (!errdefs.IsUnavailable(err) || !reads && a.Swarm.Info(ctx).ControlAvailable) {
		return nil, nil, err
	}
	if err == nil {
		for n := range s.Networks.All() {
			if !n.PendingDelete {
				all = append(all, someNetwork{network.Inspect{Network: showNetwork(n)}, n})
			}
		}
	}
	for _, n := range own {
		known := slices.ContainsFunc(all, func(o someNetwork) bool { return o.ID == n.ID })
		if !known { // as is one of the swarm's that this node's containers are on
			all = append(all, someNetwork{Inspect: n})
		}
	}
	return all, s, nil
}

func (a *API) networkList(w http.ResponseWriter, r *http.Request) error {
	f, err := filterBy(r, "dangling", "driver", "id", "label", "name", "scope", "type")
	if err != nil {
		return err
	}
	for _, kind := range f.Values("type") {
		if kind != "custom" && kind != "builtin" {
			return invalid("invalid filter: 'type'='%s'", kind)
		}
	}
	dangling, err := f.Bool("dangling", false)
	if err != nil {
		return err
	}
	all, s, err := a.networks(r.Context())
	if err != nil {
		return err
	}
	var users map[string]bool
	if f.Has("dangling") && s != nil {
		users = usedNetworks(s)
	}
	list := []network.Summary{}
	for _, n := range all {
		// Networks that cannot be removed are never dangling.
		unused := !object.Predefined(n.Name) && !n.Ingress && len(n.Containers) == 0 && !users[n.ID]
		if matchNetwork(f, n.Network) && (!f.Has("dangling") || dangling == unused) {
			list = append(list, network.Summary{Network: networkShape(n.Inspect).Network})
		}
	}
	return writeJSON(w, http.StatusOK, list)
}

func matchNetwork(f filters.Filters, n network.Network) bool {
	kind := "custom"
	if object.Predefined(n.Name) {
		kind = "builtin"
	}
	return f.Exact("driver", n.Driver) && f.Prefix("id", n.ID) && f.Contains("name", n.Name) &&
		f.Exact("scope", n.Scope) && f.Exact("type", kind) && f.Labels("label", n.Labels)
}

// networkShape fills in what clients expect not to be null, and leaves out
// what came with 1.52.
func networkShape(n network.Inspect) network.Inspect {
	n.Labels, n.Options, n.Containers = orEmpty(n.Labels), orEmpty(n.Options), orEmpty(n.Containers)
	if n.IPAM.Driver == "" {
		n.IPAM.Driver = "default"
	}
	n.Status = nil
	return n
}

func (a *API) networkInspect(w http.ResponseWriter, r *http.Request) error {
	n, s, err := a.findNetwork(r.Context(), r.PathValue("id"), param(r, "scope"))
	if err != nil {
		return err
	}
	if n.swarm != nil {
		describeNetwork(s, &n.Inspect, n.swarm, a.Swarm.Info(r.Context()).NodeID)
		if flag(r, "verbose") {
			n.Services = networkServices(s, n.swarm)
		}
	}
	return writeJSON(w, http.StatusOK, networkShape(n.Inspect))
}

// findNetwork looks a network up by ID, name, or the beginning of an ID, in
// this order.
func (a *API) findNetwork(ctx context.Context, ref, scope string) (someNetwork, *store.Snapshot, error) {
	all, s, err := a.networks(ctx)
	if err != nil {
		return someNetwork{}, nil, err
	}
	n, err := pickNetwork(all, ref, scope)
	return n, s, err
}

func pickNetwork(all []someNetwork, ref, scope string) (someNetwork, error) {
	var found []someNetwork
	for _, fits := range []func(n someNetwork) bool{
		func(n someNetwork) bool { return n.ID == ref },
		func(n someNetwork) bool { return n.Name == ref },
		func(n someNetwork) bool { return ref != "" && strings.HasPrefix(n.ID, ref) },
	} {
		for _, n := range all {
			// Services may use the networks that every node has.
			if fits(n) && (scope == "" || scope == n.Scope || scope == "swarm" && object.Predefined(n.Name)) {
				found = append(found, n)
			}
		}
		if len(found) > 0 {
			break
		}
	}
	switch len(found) {
	case 0:
		return someNetwork{}, object.Errorf(errdefs.ErrNotFound, "network %s not found", ref)
	case 1:
		return found[0], nil
	}
	return someNetwork{}, invalid("network %s is ambiguous (%d matches found)", ref, len(found))
}

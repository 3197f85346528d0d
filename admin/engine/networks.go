package engine

import (
	"context"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"skep/admin"
	"skep/admin/filters"
	"skep/store/object"
)

func (a *API) networkRoutes() []admin.Route {
	return []admin.Route{
		a.read("GET /networks", a.networkList),
		a.read("GET /networks/{id}", a.networkInspect),
		a.write(admin.Operator, "POST /networks/create", a.networkCreate),
		a.write(admin.Operator, "POST /networks/prune", a.networkPrune),
		a.write(admin.Operator, "POST /networks/{id}/connect", a.networkConnect),
		a.write(admin.Operator, "POST /networks/{id}/disconnect", a.networkConnect),
		a.write(admin.Operator, "DELETE /networks/{id}", a.networkRemove),
	}
}

// predefined says whether a network is there from the start on every node.
func predefined(name string) bool {
	return name == "bridge" || name == "host" || name == "none"
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
	all, err := a.Networks.List(r.Context())
	if err != nil {
		return err
	}
	list := []network.Summary{}
	for _, n := range all {
		if matchNetwork(f, dangling, n) {
			list = append(list, network.Summary{Network: networkShape(n).Network})
		}
	}
	return writeJSON(w, http.StatusOK, list)
}

func matchNetwork(f filters.Filters, dangling bool, n network.Inspect) bool {
	kind := "custom"
	if predefined(n.Name) {
		kind = "builtin"
	}
	// Networks that cannot be removed are never dangling.
	unused := kind == "custom" && len(n.Containers) == 0
	return f.Exact("driver", n.Driver) && f.Prefix("id", n.ID) && f.Contains("name", n.Name) &&
		f.Exact("scope", n.Scope) && f.Exact("type", kind) && f.Labels("label", n.Labels) &&
		(!f.Has("dangling") || dangling == unused)
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
	n, err := a.findNetwork(r.Context(), r.PathValue("id"), param(r, "scope"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, networkShape(n))
}

// findNetwork looks a network up by ID, name, or the beginning of an ID, in
// this order.
func (a *API) findNetwork(ctx context.Context, ref, scope string) (network.Inspect, error) {
	all, err := a.Networks.List(ctx)
	if err != nil {
		return network.Inspect{}, err
	}
	var found []network.Inspect
	for _, fits := range []func(n network.Inspect) bool{
		func(n network.Inspect) bool { return n.ID == ref },
		func(n network.Inspect) bool { return n.Name == ref },
		func(n network.Inspect) bool { return ref != "" && strings.HasPrefix(n.ID, ref) },
	} {
		for _, n := range all {
			// Services may use the networks that every node has.
			if fits(n) && (scope == "" || scope == n.Scope || scope == "swarm" && predefined(n.Name)) {
				found = append(found, n)
			}
		}
		if len(found) > 0 {
			break
		}
	}
	switch len(found) {
	case 0:
		return network.Inspect{}, object.Errorf(errdefs.ErrNotFound, "network %s not found", ref)
	case 1:
		return found[0], nil
	}
	return network.Inspect{}, invalid("network %s is ambiguous (%d matches found)", ref, len(found))
}

func (a *API) networkCreate(_ http.ResponseWriter, r *http.Request) error {
	req, err := decode[network.CreateRequest](r)
	switch {
	case err != nil:
		return err
	case req.Name == "":
		return invalid("network name cannot be empty")
	case predefined(req.Name):
		return object.Errorf(errdefs.ErrPermissionDenied, "%s is a pre-defined network and cannot be created", req.Name)
	}
	switch req.Driver {
	case "", "bridge":
		return unbuilt("bridge networks other than the node's own are")
	case "overlay":
		return unbuilt("overlay networks are")
	case "macvlan", "ipvlan", "host", "null":
		return unbuilt(req.Driver + " networks are")
	}
	return object.Errorf(errdefs.ErrNotFound, "plugin %q not found", req.Driver)
}

// networkConnect also answers disconnect: containers stay on the network that
// they were created on.
func (a *API) networkConnect(_ http.ResponseWriter, r *http.Request) error {
	if _, err := a.findNetwork(r.Context(), r.PathValue("id"), ""); err != nil {
		return err
	}
	return unbuilt("changing the networks of a container is")
}

func (a *API) networkRemove(_ http.ResponseWriter, r *http.Request) error {
	n, err := a.findNetwork(r.Context(), r.PathValue("id"), "")
	if err != nil {
		return err
	}
	if predefined(n.Name) {
		return object.Errorf(errdefs.ErrPermissionDenied, "%s is a pre-defined network and cannot be removed", n.Name)
	}
	return unbuilt("removing networks is")
}

// networkPrune has nothing to remove: the node's own networks stay.
func (a *API) networkPrune(w http.ResponseWriter, r *http.Request) error {
	if _, err := filterBy(r, "label", "label!", "until"); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, network.PruneReport{})
}

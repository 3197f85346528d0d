package engine

import (
	"context"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"skep/store/object"
)

func (a *API) networkConnect(w http.ResponseWriter, r *http.Request) error {
	req, err := decode[network.ConnectRequest](r)
	if err != nil {
		return err
	}
	names, err := a.attachable(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if err = a.Containers.ConnectNetwork(r.Context(), req.Container, names[0], req.EndpointConfig); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (a *API) networkDisconnect(w http.ResponseWriter, r *http.Request) error {
	req, err := decode[network.DisconnectRequest](r)
	if err != nil {
		return err
	}
	names, err := a.attachable(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	for _, name := range names {
		// The container may have been created by any of the names.
		if err = a.Containers.DisconnectNetwork(r.Context(), req.Container, name); !errdefs.IsNotFound(err) {
			break
		}
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// attachable are the names of a network of the swarm that containers may be put
// on by hand. A worker knows none of them: what it is told is found out when the
// container starts.
func (a *API) attachable(ctx context.Context, ref string) ([]string, error) {
	n, s, err := a.findNetwork(ctx, ref, "")
	switch {
	case errdefs.IsNotFound(err) && s == nil && a.Swarm.Info(ctx).NodeID != "":
		return []string{ref}, nil
	case err != nil:
		return nil, err
	case n.swarm == nil:
		return nil, unbuilt("changing a container's place on the node's own networks is")
	case !n.Attachable:
		return nil, object.Errorf(errdefs.ErrPermissionDenied, "network %s not manually attachable", n.Name)
	}
	return []string{n.Name, n.ID}, nil
}

package engine

import (
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"

	"skep/admin"
	"skep/store/object"
)

const inspectPattern = "GET /containers/{id}/json"

// reachableRoutes are those about one container that go to its node. None of
// them makes, stops or changes a container: that is the orchestrator's.
func (a *API) reachableRoutes(wrap func(pattern string, h handler) handler) []admin.Route {
	read := func(pattern string, h handler) admin.Route { return a.read(pattern, wrap(pattern, h)) }
	enter := func(pattern string, h handler) admin.Route { return a.write(admin.Admin, pattern, wrap(pattern, h)) }
	const wait = "POST /containers/{id}/wait"
	return []admin.Route{
		read(inspectPattern, a.containerInspect),
		read("GET /containers/{id}/top", a.containerTop),
		read("GET /containers/{id}/stats", a.containerStats),
		a.wait(wait, wrap(wait, a.containerWait)),
		stream(enter("POST /containers/{id}/attach", a.containerAttach)),
		enter("POST /containers/{id}/resize", a.containerResize),
		enter("POST /containers/{id}/exec", a.execCreate),
		stream(enter("POST /exec/{id}/start", a.execStart)),
		enter("POST /exec/{id}/resize", a.execResize),
		read("GET /exec/{id}/json", a.execInspect),
	}
}

func isExec(pattern string) bool { return strings.Contains(pattern, " /exec/{id}/") }

func becomesStream(pattern string) bool {
	return strings.HasSuffix(pattern, "/attach") || strings.HasSuffix(pattern, "/exec/{id}/start")
}

// enters tells whether a route leads into a container.
func enters(pattern string) bool {
	return becomesStream(pattern) || strings.HasSuffix(pattern, "/exec") || strings.HasSuffix(pattern, "/resize")
}

// PeerRoutes are what managers may do to the containers of this node's tasks,
// and to no others, and what they ask of its networks. They are for a mux of
// their own, to which only managers have access.
func (a *API) PeerRoutes() []admin.Route {
	return append(a.reachableRoutes(a.forTasks), a.read(checkPattern, a.ownCheck))
}

// FromManager is the principal of a manager's request by [API.PeerRoutes]. What
// it says of itself is for the record: that it is a manager is known before.
func FromManager(r *http.Request) admin.Principal {
	return admin.Principal{
		Name:      "manager " + r.Header.Get(managerHeader),
		Transport: "swarm",
		Detail:    r.Header.Get(callerHeader),
		Role:      admin.Admin,
	}
}

// forTasks is h for the containers of tasks only.
func (a *API) forTasks(pattern string, h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := a.admit(r, pattern); err != nil {
			// A reply that comes before the request's end may be lost: the
			// connection ends with it.
			_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, maxBody))
			return err
		}
		if becomesStream(pattern) {
			w = chunked{w}
		}
		return h(w, r)
	}
}

// admit refuses what other nodes may not ask for, and finds what they call by
// the names of all nodes.
func (a *API) admit(r *http.Request, pattern string) error {
	ctx, ref := r.Context(), r.PathValue("id")
	if isExec(pattern) {
		p, err := a.locateExec(ctx, ref)
		if err != nil {
			return err
		}
		r.SetPathValue("id", p.ref)
		e, err := a.Containers.InspectExec(ctx, p.ref)
		if err != nil {
			return err
		}
		ref = e.ContainerID
	}
	if err := a.mustBeOfTask(ctx, ref); err != nil {
		return err
	}
	if a.LocalExecOnly && enters(pattern) {
		return object.Errorf(errdefs.ErrPermissionDenied, "the node of container %s lets nobody into its containers from other nodes (admin.local_exec_only)", ref)
	}
	return nil
}

// mustBeOfTask hides what is no task's container.
func (a *API) mustBeOfTask(ctx context.Context, ref string) error {
	c, err := a.Containers.Inspect(ctx, ref, false)
	if err != nil {
		return err
	}
	if c.Config == nil || c.Config.Labels[taskLabel] == "" {
		return object.Errorf(errdefs.ErrNotFound, "No such container: %s", ref)
	}
	return nil
}

package engine

import (
	"net/http"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"

	"skep/admin"
)

func (a *API) systemRoutes() []admin.Route {
	return []admin.Route{
		a.read("GET /_ping", a.ping),
		a.read("GET /version", a.version),
		a.read("GET /info", a.info),
		a.read("GET /events", a.events),
		a.read("GET /plugins", a.plugins),
		a.write(admin.Operator, "POST /auth", a.login),
	}
}

func (a *API) ping(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	h.Set("Builder-Version", "2")
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Swarm", swarmHeader(a.Swarm.Info(r.Context())))
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return nil
	}
	_, err := w.Write([]byte("OK"))
	return err
}

// swarmHeader is the node's part in the swarm, by which the command line hides
// commands.
func swarmHeader(s swarm.Info) string {
	switch {
	case s.LocalNodeState != swarm.LocalNodeStateActive:
		return string(s.LocalNodeState)
	case s.ControlAvailable:
		return "active/manager"
	}
	return "active/worker"
}

func (a *API) version(w http.ResponseWriter, r *http.Request) error {
	v, err := a.Host.Version(r.Context())
	if err != nil {
		return err
	}
	v.APIVersion, v.MinAPIVersion = versionString(maxVersion), versionString(minVersion)
	if len(v.Components) == 0 {
		v.Components = []system.ComponentVersion{{
			Name:    "Engine",
			Version: v.Version,
			Details: map[string]string{
				"ApiVersion":    v.APIVersion,
				"MinAPIVersion": v.MinAPIVersion,
				"Arch":          v.Arch,
				"Os":            v.Os,
				"BuildTime":     v.BuildTime,
				"GitCommit":     v.GitCommit,
				"GoVersion":     v.GoVersion,
				"KernelVersion": v.KernelVersion,
				"Experimental":  "false",
			},
		}}
	}
	return writeJSON(w, http.StatusOK, v)
}

func (a *API) info(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	info, err := a.Host.Info(ctx)
	if err != nil {
		return err
	}
	containers, err := a.Containers.List(ctx, true, false)
	if err != nil {
		return err
	}
	info.Containers = len(containers)
	for _, c := range containers {
		switch c.State {
		case container.StateRunning, container.StateRestarting:
			info.ContainersRunning++
		case container.StatePaused:
			info.ContainersPaused++
		default:
			info.ContainersStopped++
		}
	}
	images, err := a.Images.List(ctx)
	if err != nil {
		return err
	}
	info.Images = len(images)
	info.NEventsListener = a.Events.Readers()
	info.Swarm = a.swarmInfo(ctx)
	// Clients show these only.
	info.Warnings = append(info.Warnings, info.Swarm.Warnings...)
	return writeJSON(w, http.StatusOK, info)
}

func (a *API) plugins(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, []struct{}{})
}

func (a *API) login(w http.ResponseWriter, r *http.Request) error {
	auth, err := decode[registry.AuthConfig](r)
	if err != nil {
		return err
	}
	answer, err := a.Images.Login(r.Context(), auth)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, answer)
}

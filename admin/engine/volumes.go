package engine

import (
	"context"
	"net/http"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/volume"

	"skep/admin"
)

func (a *API) volumeRoutes() []admin.Route {
	return []admin.Route{
		a.read("GET /volumes", a.volumeList),
		a.read("GET /volumes/{name}", a.volumeInspect),
		a.write(admin.Operator, "POST /volumes/create", a.volumeCreate),
		a.write(admin.Operator, "POST /volumes/prune", a.volumePrune),
		a.write(admin.Operator, "PUT /volumes/{name}", refuse("updating volumes is")),
		a.write(admin.Operator, "DELETE /volumes/{name}", a.volumeRemove),
	}
}

func (a *API) volumeList(w http.ResponseWriter, r *http.Request) error {
	f, err := filterBy(r, "dangling", "driver", "label", "name")
	if err != nil {
		return err
	}
	dangling, err := f.Bool("dangling", false)
	if err != nil {
		return err
	}
	list, err := a.Volumes.List(r.Context(), false)
	if err != nil {
		return err
	}
	var used map[string]int64
	if f.Has("dangling") {
		if used, err = a.volumeUsers(r.Context()); err != nil {
			return err
		}
	}
	answer := volume.ListResponse{Volumes: []volume.Volume{}, Warnings: []string{}}
	for _, v := range list {
		if f.Contains("name", v.Name) && f.Exact("driver", v.Driver) && f.Labels("label", v.Labels) &&
			(!f.Has("dangling") || dangling == (used[v.Name] == 0)) {
			answer.Volumes = append(answer.Volumes, v)
		}
	}
	return writeJSON(w, http.StatusOK, answer)
}

// volumeUsers counts the containers that mount each volume.
func (a *API) volumeUsers(ctx context.Context) (map[string]int64, error) {
	list, err := a.Containers.List(ctx, true, false)
	if err != nil {
		return nil, err
	}
	users := map[string]int64{}
	for _, c := range list {
		for _, m := range c.Mounts {
			if m.Type == mount.TypeVolume {
				users[m.Name]++
			}
		}
	}
	return users, nil
}

func (a *API) volumeInspect(w http.ResponseWriter, r *http.Request) error {
	v, err := a.Volumes.Inspect(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, v)
}

func (a *API) volumeCreate(w http.ResponseWriter, r *http.Request) error {
	req, err := decode[volume.CreateRequest](r)
	if err != nil {
		return err
	}
	if req.ClusterVolumeSpec != nil {
		return unbuilt("cluster volumes are")
	}
	if err = allowHost(r.Context(), hostVolume(req)); err != nil {
		return err
	}
	v, err := a.Volumes.Create(r.Context(), req)
	if err != nil {
		return err
	}
	admin.NameObject(r.Context(), v.Name)
	return writeJSON(w, http.StatusCreated, v)
}

func (a *API) volumeRemove(w http.ResponseWriter, r *http.Request) error {
	if err := a.Volumes.Remove(r.Context(), r.PathValue("name"), flag(r, "force")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// volumePrune removes unused volumes; those with a name only when asked, which
// clients before 1.42 cannot.
func (a *API) volumePrune(w http.ResponseWriter, r *http.Request) error {
	f, err := filterBy(r, "all", "label", "label!")
	if err != nil {
		return err
	}
	named, err := f.Bool("all", minorOf(r) < 42)
	if err != nil {
		return err
	}
	report, err := a.Volumes.Prune(r.Context(), named, func(v volume.Volume) bool { return !labelled(f, v.Labels) })
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, report)
}

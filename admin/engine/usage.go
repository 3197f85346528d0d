package engine

import (
	"context"
	"net/http"
	"slices"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"skep/admin"
)

func (a *API) usageRoutes() []admin.Route {
	return []admin.Route{
		a.read("GET /system/df", a.diskUsage),
		a.write(admin.Operator, "POST /build/prune", a.buildPrune),
	}
}

func (a *API) diskUsage(w http.ResponseWriter, r *http.Request) error {
	types := r.URL.Query()["type"]
	for _, t := range types {
		switch system.DiskUsageObject(t) {
		case system.ContainerObject, system.ImageObject, system.VolumeObject, system.BuildCacheObject:
		default:
			return invalid("unknown object type: %s", t)
		}
	}
	wants := func(t system.DiskUsageObject) bool {
		return len(types) == 0 || minorOf(r) < 42 || slices.Contains(types, string(t))
	}
	ctx := r.Context()
	var u usageBefore152
	containers, err := a.Containers.List(ctx, true, wants(system.ContainerObject))
	if err != nil {
		return err
	}
	if wants(system.ContainerObject) {
		u.Containers = []container.Summary{}
		for _, c := range containers {
			u.Containers = append(u.Containers, summaryShape(c, minorOf(r)))
		}
	}
	if wants(system.ImageObject) {
		if u.LayersSize, err = a.Images.DiskUsage(ctx); err != nil {
			return err
		}
		if u.Images, err = a.imageUsage(ctx, containers); err != nil {
			return err
		}
	}
	if wants(system.VolumeObject) {
		if u.Volumes, err = a.volumeUsage(ctx); err != nil {
			return err
		}
	}
	if wants(system.BuildCacheObject) {
		u.BuildCache = []build.CacheRecord{}
		if minorOf(r) < 42 {
			u.BuilderSize = new(int64)
		}
	}
	return writeJSON(w, http.StatusOK, u)
}

// imageUsage lists the images with the number of containers that use each.
func (a *API) imageUsage(ctx context.Context, containers []container.Summary) ([]image.Summary, error) {
	list, err := a.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	for i := range list {
		s := &list[i]
		s.Containers = 0
		for _, c := range containers {
			if c.ImageID == s.ID {
				s.Containers++
			}
		}
		s.SharedSize = max(s.SharedSize, 0)
	}
	return listed(list), nil
}

func (a *API) volumeUsage(ctx context.Context) ([]volume.Volume, error) {
	list, err := a.Volumes.List(ctx, true)
	if err != nil {
		return nil, err
	}
	users, err := a.volumeUsers(ctx)
	if err != nil {
		return nil, err
	}
	for i := range list {
		u := volume.UsageData{Size: -1}
		if list[i].UsageData != nil {
			u = *list[i].UsageData
		}
		u.RefCount = users[list[i].Name]
		list[i].UsageData = &u
	}
	return listed(list), nil
}

// buildPrune has nothing to remove, but "docker system prune" asks for it.
func (a *API) buildPrune(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, build.CachePruneReport{})
}

package engine

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/moby/api/types/container"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/admin"
	"skep/store/object"
)

func (a *API) containerList(w http.ResponseWriter, r *http.Request) error {
	args, err := filterBy(r, containerKeys()...)
	if err != nil {
		return err
	}
	limit, err := integer(r, "limit", 0)
	if err != nil {
		return err
	}
	f, err := a.newContainerFilter(r.Context(), args)
	if err != nil {
		return err
	}
	all := flag(r, "all") || limit > 0 || f.allStates()
	list, err := a.Containers.List(r.Context(), all, flag(r, "size"))
	if err != nil {
		return err
	}
	if refs := args.Values("ancestor"); len(refs) > 0 {
		if f.ancestors, err = a.descendants(r.Context(), refs, list); err != nil {
			return err
		}
	}
	if list, err = a.selectContainers(r.Context(), list, f); err != nil {
		return err
	}
	if limit > 0 && len(list) > limit {
		list = list[:limit]
	}
	for i := range list {
		list[i] = summaryShape(list[i], minorOf(r))
	}
	return writeJSON(w, http.StatusOK, listed(list))
}

// selectContainers are those that pass the filter, the youngest first.
func (a *API) selectContainers(ctx context.Context, list []container.Summary, f *containerFilter) ([]container.Summary, error) {
	selected := []container.Summary{}
	for _, c := range list {
		if !f.matches(c) {
			continue
		}
		if len(f.exited) > 0 {
			ok, err := a.exitedWith(ctx, c.ID, f.exited)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
		}
		selected = append(selected, c)
	}
	slices.SortStableFunc(selected, func(x, y container.Summary) int { return cmp.Compare(y.Created, x.Created) })
	return selected, nil
}

// exitedWith says whether the container ended with one of the codes. The list
// does not tell the code. A container that went away meanwhile did not.
func (a *API) exitedWith(ctx context.Context, id string, codes []int) (bool, error) {
	c, err := a.Containers.Inspect(ctx, id, false)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	ended := c.State != nil && !c.State.Running && c.State.Status != container.StateCreated
	return ended && slices.Contains(codes, c.State.ExitCode), nil
}

func (a *API) containerInspect(w http.ResponseWriter, r *http.Request) error {
	c, err := a.Containers.Inspect(r.Context(), r.PathValue("id"), flag(r, "size"))
	if err != nil {
		return err
	}
	var execs []string
	for _, id := range c.ExecIDs {
		execs = append(execs, a.execName(r.Context(), c.ID, id))
	}
	c.ExecIDs = execs
	return writeJSON(w, http.StatusOK, containerShape(c, minorOf(r)))
}

func (a *API) containerCreate(w http.ResponseWriter, r *http.Request) error {
	req, err := decode[container.CreateRequest](r)
	if err != nil {
		return err
	}
	if req.Config == nil {
		return invalid("config cannot be empty in order to create a container")
	}
	if req.HostConfig == nil {
		req.HostConfig = &container.HostConfig{}
	}
	if err = allowHost(r.Context(), hostAccess(req.HostConfig)); err != nil {
		return err
	}
	adaptCreate(&req, minorOf(r))
	if err = a.checkPlatform(r.Context(), req.Image, param(r, "platform")); err != nil {
		return err
	}
	created, err := a.Containers.Create(r.Context(), param(r, "name"), req)
	if err != nil {
		return a.notTheImage(r.Context(), req.Image, err)
	}
	admin.NameObject(r.Context(), created.ID)
	created.Warnings = listed(created.Warnings)
	return writeJSON(w, http.StatusCreated, created)
}

// notTheImage turns what was not found into a bad request, unless it is the
// image: clients take 404 for that, pull it, and tell of the pull instead.
func (a *API) notTheImage(ctx context.Context, ref string, err error) error {
	if !errors.Is(err, errdefs.ErrNotFound) {
		return err
	}
	if _, missing := a.Images.Inspect(ctx, ref); missing != nil {
		return err
	}
	return invalid("%v", err)
}

// adaptCreate drops what the client's version did not have, and replaces what
// clients send to mean that nothing was chosen.
func adaptCreate(req *container.CreateRequest, minor int) {
	h := req.HostConfig
	if h.MemorySwappiness != nil && *h.MemorySwappiness == -1 {
		h.MemorySwappiness = nil
	}
	if h.PidsLimit != nil && (minor < 40 || *h.PidsLimit <= 0) {
		h.PidsLimit = nil
	}
	if h.OomKillDisable != nil && !*h.OomKillDisable {
		h.OomKillDisable = nil
	}
	if minor < 40 {
		h.IpcMode = cmp.Or(h.IpcMode, container.IPCModeShareable)
	}
	if minor < 44 && req.Healthcheck != nil {
		req.Healthcheck.StartInterval = 0
	}
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = container.RestartPolicyDisabled
	}
}

// checkPlatform refuses an image that is here, but for another platform. The
// text starts as that of a missing image, so that clients pull the right one.
func (a *API) checkPlatform(ctx context.Context, ref, platform string) error {
	if platform == "" || ref == "" {
		return nil
	}
	want, err := parsePlatform(platform)
	if err != nil {
		return err
	}
	i, err := a.Images.Inspect(ctx, ref)
	if err != nil {
		return err
	}
	have := ocispec.Platform{OS: i.Os, Architecture: i.Architecture, Variant: i.Variant}
	if !platforms.Only(want).Match(have) {
		return object.Errorf(errdefs.ErrNotFound,
			"image with reference %s was found but does not provide the specified platform (%s)", ref, platform)
	}
	return nil
}

// verb is a request that names a container and is answered with an empty 204.
func verb(do func(ctx context.Context, r *http.Request, ref string) error) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := do(r.Context(), r, r.PathValue("id")); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
}

func (a *API) containerStart(ctx context.Context, r *http.Request, ref string) error {
	if param(r, "checkpoint") != "" {
		return object.Errorf(errdefs.ErrNotImplemented, "checkpoints are not supported")
	}
	return a.Containers.Start(ctx, ref)
}

func (a *API) containerStop(ctx context.Context, r *http.Request, ref string) error {
	timeout, err := timeoutParam(r)
	if err != nil {
		return err
	}
	return a.Containers.Stop(ctx, ref, param(r, "signal"), timeout)
}

func (a *API) containerRestart(ctx context.Context, r *http.Request, ref string) error {
	timeout, err := timeoutParam(r)
	if err != nil {
		return err
	}
	return a.Containers.Restart(ctx, ref, param(r, "signal"), timeout)
}

func (a *API) containerKill(ctx context.Context, r *http.Request, ref string) error {
	return a.Containers.Kill(ctx, ref, param(r, "signal"))
}

func (a *API) containerPause(ctx context.Context, _ *http.Request, ref string) error {
	return a.Containers.Pause(ctx, ref)
}

func (a *API) containerUnpause(ctx context.Context, _ *http.Request, ref string) error {
	return a.Containers.Unpause(ctx, ref)
}

func (a *API) containerRename(ctx context.Context, r *http.Request, ref string) error {
	name := param(r, "name")
	if name == "" {
		return invalid("Neither old nor new names may be empty")
	}
	return a.Containers.Rename(ctx, ref, name)
}

func (a *API) containerRemove(ctx context.Context, r *http.Request, ref string) error {
	if flag(r, "link") {
		return object.Errorf(errdefs.ErrNotImplemented, "links between containers are not supported")
	}
	return a.Containers.Remove(ctx, ref, flag(r, "force"), flag(r, "v"))
}

func (a *API) containerResize(w http.ResponseWriter, r *http.Request) error {
	height, width, err := sizeParams(r)
	if err != nil {
		return err
	}
	return a.Containers.Resize(r.Context(), r.PathValue("id"), height, width)
}

func (a *API) containerTop(w http.ResponseWriter, r *http.Request) error {
	top, err := a.Containers.Top(r.Context(), r.PathValue("id"), param(r, "ps_args"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, top)
}

// containerPrune removes the containers that do not run. One that is started
// or removed meanwhile is passed over.
func (a *API) containerPrune(w http.ResponseWriter, r *http.Request) error {
	args, err := filterBy(r, "until", "label", "label!")
	if err != nil {
		return err
	}
	until, err := untilFilter(args, time.Now())
	if err != nil {
		return err
	}
	list, err := a.Containers.List(r.Context(), true, true)
	if err != nil {
		return err
	}
	var report container.PruneReport
	for _, c := range list {
		stopped := c.State == container.StateCreated || c.State == container.StateExited || c.State == container.StateDead
		if !stopped || !until.IsZero() && !time.Unix(c.Created, 0).Before(until) || !labelled(args, c.Labels) {
			continue
		}
		err := a.Containers.Remove(r.Context(), c.ID, false, false)
		if errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, errdefs.ErrConflict) {
			continue
		}
		if err != nil {
			return err
		}
		report.ContainersDeleted = append(report.ContainersDeleted, c.ID)
		report.SpaceReclaimed += uint64(max(c.SizeRw, 0))
	}
	return writeJSON(w, http.StatusOK, report)
}

// sizeParams is a terminal's size.
func sizeParams(r *http.Request) (height, width uint, err error) {
	for _, p := range []struct {
		name string
		to   *uint
	}{{"h", &height}, {"w", &width}} {
		n, err := strconv.ParseUint(param(r, p.name), 10, 16)
		if err != nil {
			return 0, 0, invalid("invalid resize %s %q", map[string]string{"h": "height", "w": "width"}[p.name], param(r, p.name))
		}
		*p.to = uint(n)
	}
	return height, width, nil
}

// timeoutParam is how long to wait before a container is killed; negative is
// forever, which the runtime knows as such.
func timeoutParam(r *http.Request) (*time.Duration, error) {
	text := param(r, "t")
	if text == "" {
		return nil, nil
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return nil, invalid("invalid timeout %q", text)
	}
	return new(time.Duration(n) * time.Second), nil
}

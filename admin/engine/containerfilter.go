package engine

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"skep/admin/filters"
)

// containerKeys are the filters of the list of containers.
func containerKeys() []string {
	return []string{
		"ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation",
		"label", "name", "network", "publish", "since", "status", "volume",
	}
}

// taskLabel is on the containers that run a task of a service.
const taskLabel = "com.docker.swarm.task.id"

// containerFilter decides about one container. It is made once for a list.
type containerFilter struct {
	args      filters.Filters
	names     []*regexp.Regexp
	ids       []*regexp.Regexp
	ports     map[string][]portRange // by filter key
	exited    []int
	ancestors map[string]bool // image IDs
	isTask    *bool
	// before and since are containers' times of creation.
	before, since *int64
}

// allStates says whether the filter asks for containers that do not run.
func (f *containerFilter) allStates() bool {
	return f.args.Has("status") || len(f.exited) > 0
}

// newContainerFilter checks the filter's values and looks up what they refer to.
func (a *API) newContainerFilter(ctx context.Context, args filters.Filters) (*containerFilter, error) {
	f := &containerFilter{args: args, ports: map[string][]portRange{}}
	f.names, f.ids = patterns(args.Values("name")), patterns(args.Values("id"))
	for _, s := range args.Values("status") {
		if err := container.ValidateContainerState(container.ContainerState(s)); err != nil {
			return nil, invalid("invalid filter 'status=%s'", s)
		}
	}
	for _, s := range args.Values("health") {
		if err := container.ValidateHealthStatus(container.HealthStatus(s)); err != nil {
			return nil, invalid("invalid filter 'health=%s'", s)
		}
	}
	for _, s := range args.Values("exited") {
		code, err := strconv.Atoi(s)
		if err != nil {
			return nil, invalid("invalid filter 'exited=%s'", s)
		}
		f.exited = append(f.exited, code)
	}
	for _, key := range []string{"publish", "expose"} {
		for _, s := range args.Values(key) {
			p, err := parsePortRange(s)
			if err != nil {
				return nil, invalid("invalid filter '%s=%s'", key, s)
			}
			f.ports[key] = append(f.ports[key], p)
		}
	}
	if args.Has("is-task") {
		want, err := args.Bool("is-task", false)
		if err != nil {
			return nil, err
		}
		f.isTask = &want
	}
	var err error
	if f.before, err = a.created(ctx, args.Values("before")); err != nil {
		return nil, err
	}
	if f.since, err = a.created(ctx, args.Values("since")); err != nil {
		return nil, err
	}
	return f, nil
}

// created is when the last of the containers was created, or nil.
func (a *API) created(ctx context.Context, refs []string) (*int64, error) {
	var at *int64
	for _, ref := range refs {
		c, err := a.Containers.Inspect(ctx, ref, false)
		if err != nil {
			return nil, err
		}
		t, err := time.Parse(time.RFC3339Nano, c.Created)
		if err != nil {
			return nil, err
		}
		at = new(t.Unix())
	}
	return at, nil
}

// descendants are the images among ids that are one of refs or stand on its layers.
func (a *API) descendants(ctx context.Context, refs []string, list []container.Summary) (map[string]bool, error) {
	ids := map[string]bool{}
	for _, ref := range refs {
		base, err := a.Images.Inspect(ctx, ref)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, c := range list {
			if ids[c.ImageID] {
				continue
			}
			ids[c.ImageID] = c.ImageID == base.ID
			if i, err := a.Images.Inspect(ctx, c.ImageID); err == nil && len(base.RootFS.Layers) > 0 {
				n := len(base.RootFS.Layers)
				ids[c.ImageID] = ids[c.ImageID] || len(i.RootFS.Layers) >= n && slices.Equal(i.RootFS.Layers[:n], base.RootFS.Layers)
			}
		}
	}
	return ids, nil
}

// matches leaves exited and health to the caller where the summary is silent.
func (f *containerFilter) matches(c container.Summary) bool {
	switch {
	case f.before != nil && c.Created >= *f.before,
		f.since != nil && c.Created <= *f.since,
		!anyMatch(f.ids, c.ID),
		!anyMatch(f.names, names(c)...),
		!f.args.Exact("status", string(c.State)),
		!f.args.Exact("health", string(health(c))),
		!f.args.Exact("network", networksOf(c)...),
		!f.args.Exact("volume", mountsOf(c)...),
		!f.args.Labels("label", c.Labels),
		f.ancestors != nil && !f.ancestors[c.ImageID],
		!f.matchPorts(c):
		return false
	}
	_, isTask := c.Labels[taskLabel]
	return f.isTask == nil || *f.isTask == isTask
}

// patterns are regular expressions; a value that is none stands for itself.
func patterns(values []string) []*regexp.Regexp {
	res := make([]*regexp.Regexp, len(values))
	for i, v := range values {
		re, err := regexp.Compile(v)
		if err != nil {
			re = regexp.MustCompile(regexp.QuoteMeta(v))
		}
		res[i] = re
	}
	return res
}

func anyMatch(res []*regexp.Regexp, have ...string) bool {
	return len(res) == 0 || slices.ContainsFunc(have, func(s string) bool {
		return slices.ContainsFunc(res, func(re *regexp.Regexp) bool { return re.MatchString(s) })
	})
}

// names are a container's names with and without the slash in front.
func names(c container.Summary) (all []string) {
	for _, n := range c.Names {
		all = append(all, n, strings.TrimPrefix(n, "/"))
	}
	return all
}

func health(c container.Summary) container.HealthStatus {
	if c.Health == nil {
		return container.NoHealthcheck
	}
	return c.Health.Status
}

func networksOf(c container.Summary) (all []string) {
	if c.NetworkSettings == nil {
		return []string{c.HostConfig.NetworkMode}
	}
	for name, e := range c.NetworkSettings.Networks {
		all = append(all, name)
		if e != nil {
			all = append(all, e.NetworkID)
		}
	}
	return all
}

func mountsOf(c container.Summary) (all []string) {
	for _, m := range c.Mounts {
		all = append(all, m.Destination)
		if m.Name != "" {
			all = append(all, m.Name)
		} else {
			all = append(all, m.Source)
		}
	}
	return all
}

// portRange is a filter's "80", "80/udp" or "80-90/tcp".
type portRange struct {
	first, last uint16
	protocol    string
}

func parsePortRange(s string) (portRange, error) {
	ports, protocol, ok := strings.Cut(s, "/")
	if !ok {
		protocol = "tcp"
	}
	from, to, ok := strings.Cut(ports, "-")
	if !ok {
		to = from
	}
	first, err := strconv.ParseUint(from, 10, 16)
	if err != nil {
		return portRange{}, err
	}
	last, err := strconv.ParseUint(to, 10, 16)
	if err != nil || last < first {
		return portRange{}, errors.Join(err, strconv.ErrRange)
	}
	return portRange{uint16(first), uint16(last), strings.ToLower(protocol)}, nil
}

func (f *containerFilter) matchPorts(c container.Summary) bool {
	for key, want := range f.ports {
		if !slices.ContainsFunc(c.Ports, func(p container.PortSummary) bool {
			return (key == "expose" || p.PublicPort != 0) && slices.ContainsFunc(want, func(r portRange) bool {
				return p.Type == r.protocol && r.first <= p.PrivatePort && p.PrivatePort <= r.last
			})
		}) {
			return false
		}
	}
	return true
}

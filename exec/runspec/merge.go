package runspec

import (
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"skep/store/object"
)

// Merge fills in from the image what the request leaves open.
func Merge(req container.Config, img dockerspec.DockerOCIImageConfig) (container.Config, error) {
	c := req
	if c.User == "" {
		c.User = img.User
	}
	if c.WorkingDir == "" {
		c.WorkingDir = img.WorkingDir
	}
	if c.StopSignal == "" {
		c.StopSignal = img.StopSignal
	}
	if len(c.Shell) == 0 {
		c.Shell = img.Shell
	}
	c.Env = mergeEnv(img.Env, req.Env)
	c.Labels = overlay(img.Labels, req.Labels)
	c.Volumes = overlay(img.Volumes, req.Volumes)
	c.ExposedPorts = maps.Clone(req.ExposedPorts)
	for text := range img.ExposedPorts {
		p, err := network.ParsePort(text)
		if err != nil {
			return c, object.Errorf(errdefs.ErrInvalidArgument, "image exposes port %q: %w", text, err)
		}
		if c.ExposedPorts == nil {
			c.ExposedPorts = network.PortSet{}
		}
		c.ExposedPorts[p] = struct{}{}
	}
	c.Healthcheck = mergeHealth(req.Healthcheck, img.Healthcheck)
	// A new entrypoint does not get the image's command.
	if len(c.Entrypoint) == 0 {
		if len(c.Cmd) == 0 {
			c.Cmd = img.Cmd
		}
		if c.Entrypoint == nil {
			c.Entrypoint = img.Entrypoint
		}
	}
	if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" {
		c.Entrypoint = nil
	}
	if len(c.Entrypoint)+len(c.Cmd) == 0 {
		return c, object.Errorf(errdefs.ErrInvalidArgument, "no command specified")
	}
	return c, nil
}

// Command is the container's whole command line.
func Command(c *container.Config) []string {
	return append(slices.Clone(c.Entrypoint), c.Cmd...)
}

func overlay[V any](under, over map[string]V) map[string]V {
	if len(under) == 0 {
		return maps.Clone(over)
	}
	out := maps.Clone(under)
	maps.Copy(out, over)
	return out
}

func mergeHealth(req, img *container.HealthConfig) *container.HealthConfig {
	if req == nil || img == nil {
		if req == nil {
			return img
		}
		return req
	}
	h := *req
	if len(h.Test) == 0 {
		h.Test = img.Test
	}
	if h.Interval == 0 {
		h.Interval = img.Interval
	}
	if h.Timeout == 0 {
		h.Timeout = img.Timeout
	}
	if h.StartPeriod == 0 {
		h.StartPeriod = img.StartPeriod
	}
	if h.StartInterval == 0 {
		h.StartInterval = img.StartInterval
	}
	if h.Retries == 0 {
		h.Retries = img.Retries
	}
	return &h
}

// mergeEnv keeps the order of under and appends what is new. An entry without
// "=" takes its variable away.
func mergeEnv(under, over []string) []string {
	out := slices.Clone(under)
	for _, e := range over {
		name, _, set := strings.Cut(e, "=")
		at := slices.IndexFunc(out, func(o string) bool { return strings.HasPrefix(o, name+"=") })
		switch {
		case !set && at >= 0:
			out = slices.Delete(out, at, at+1)
		case set && at >= 0:
			out[at] = e
		case set:
			out = append(out, e)
		}
	}
	return out
}

package engine

import (
	"context"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/volume"

	"skep/admin"
	"skep/store/object"
)

// allowHost refuses what reaches through a container to the machine to callers
// who may not run the machine: with a host mount or a device anyone is root.
func allowHost(ctx context.Context, what string) error {
	if what == "" || admin.Caller(ctx).Role >= admin.Admin {
		return nil
	}
	return object.Errorf(errdefs.ErrPermissionDenied, "access denied: %s gives access to the host and is for %s", what, admin.Admin)
}

// hostAccess names the first part of a container's configuration by which it
// would get at the machine, or is empty.
func hostAccess(h *container.HostConfig) string {
	switch {
	case h.Privileged:
		return "a privileged container"
	case len(h.Devices)+len(h.DeviceCgroupRules)+len(h.DeviceRequests) > 0:
		return "a device"
	case len(h.CapAdd) > 0:
		return "an added capability"
	case len(h.SecurityOpt) > 0:
		return "a security option"
	case h.MaskedPaths != nil || h.ReadonlyPaths != nil:
		return "a choice of masked paths"
	case h.NetworkMode.IsHost() || h.PidMode.IsHost() || h.IpcMode.IsHost() || h.UTSMode.IsHost() ||
		h.UsernsMode.IsHost() || h.CgroupnsMode.IsHost():
		return "a namespace of the host"
	case h.CgroupParent != "":
		return "a cgroup of the host"
	case len(h.VolumesFrom) > 0:
		return "the mounts of another container"
	}
	for _, b := range h.Binds {
		if strings.HasPrefix(b, "/") {
			return "a mount of a host's directory"
		}
	}
	for _, m := range h.Mounts {
		if m.Type == mount.TypeBind {
			return "a mount of a host's directory"
		}
		if v := m.VolumeOptions; v != nil && v.DriverConfig != nil && len(v.DriverConfig.Options) > 0 {
			return "a volume with mount options"
		}
	}
	return ""
}

// hostService is hostAccess for services.
func hostService(spec swarm.ServiceSpec) string {
	for _, n := range spec.TaskTemplate.Networks {
		if n.Target == "host" {
			return "a namespace of the host"
		}
	}
	c := spec.TaskTemplate.ContainerSpec
	if c == nil {
		return ""
	}
	if p := c.Privileges; p != nil && (p.Seccomp != nil || p.AppArmor != nil || p.SELinuxContext != nil) {
		return "a security option"
	}
	return hostAccess(&container.HostConfig{CapAdd: c.CapabilityAdd, Mounts: c.Mounts})
}

// hostVolume is hostAccess for volumes: their options are those of a mount.
func hostVolume(req volume.CreateRequest) string {
	if len(req.DriverOpts) > 0 {
		return "a volume with mount options"
	}
	return ""
}

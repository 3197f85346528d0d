package runspec

import (
	"maps"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"skep/store/object"
)

// Generate makes a container's specification. Its process has no user yet:
// only the root file system knows the names; see exec/doors. Warnings are
// about what was asked for and is not possible on this node.
func Generate(in *Input) (_ *specs.Spec, warnings []string, err error) {
	warn := func(text string) { warnings = append(warnings, text) }
	if err = in.supported(); err != nil {
		return nil, nil, err
	}
	proc, err := in.process()
	if err != nil {
		return nil, nil, err
	}
	res, err := in.resources(warn)
	if err != nil {
		return nil, nil, err
	}
	proc.OOMScoreAdj = in.oomScore(warn)
	s := &specs.Spec{
		Version:    specs.Version,
		Process:    proc,
		Root:       &specs.Root{Path: in.Place.Rootfs, Readonly: in.Host.ReadonlyRootfs},
		Hostname:   Hostname(in.ID, &in.Config),
		Domainname: in.Config.Domainname,
		Mounts:     in.mounts(),
		Linux: &specs.Linux{
			CgroupsPath: in.Place.Cgroup,
			Namespaces:  in.namespaces(),
			Resources:   res,
			Sysctl:      in.sysctls(),
		},
	}
	if in.Host.UTSMode.IsHost() {
		s.Hostname, s.Domainname = "", ""
	}
	for _, d := range in.Place.Devices {
		s.Linux.Devices = append(s.Linux.Devices, d.Node)
	}
	return s, warnings, in.secure(s)
}

// supported refuses what would otherwise be silently not done.
func (in *Input) supported() error {
	h := &in.Host
	for what, asked := range map[string]bool{
		"sharing a PID namespace with a container":  h.PidMode.IsContainer(),
		"sharing an IPC namespace with a container": h.IpcMode.IsContainer(),
		"links":                                 len(h.Links) > 0,
		"volumes of other containers":           len(h.VolumesFrom) > 0,
		"device requests":                       len(h.DeviceRequests) > 0,
		"storage options":                       len(h.StorageOpt) > 0,
		"limits of a block device's rate":       len(h.BlkioDeviceReadBps)+len(h.BlkioDeviceWriteBps)+len(h.BlkioDeviceReadIOps)+len(h.BlkioDeviceWriteIOps)+len(h.BlkioWeightDevice) > 0,
		"rules for devices":                     len(h.DeviceCgroupRules) > 0,
		"an initial umask":                      h.Umask != nil,
		"a cgroup parent other than the node's": h.CgroupParent != "",
		"a runtime other than the node's":       h.Runtime != "" && h.Runtime != "runc",
		"real-time scheduling":                  h.CPURealtimePeriod != 0 || h.CPURealtimeRuntime != 0,
	} {
		if asked {
			return object.Errorf(errdefs.ErrNotImplemented, "%s: not supported by this node", what)
		}
	}
	if h.UTSMode.IsHost() && in.Config.Hostname != "" {
		return object.Errorf(errdefs.ErrInvalidArgument, "conflicting options: hostname and the UTS mode")
	}
	return nil
}

func (in *Input) namespaces() []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	if in.Place.Netns != "" {
		list = append(list, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: in.Place.Netns})
	}
	if !in.Host.UTSMode.IsHost() {
		list = append(list, specs.LinuxNamespace{Type: specs.UTSNamespace})
	}
	if !in.Host.IpcMode.IsHost() {
		list = append(list, specs.LinuxNamespace{Type: specs.IPCNamespace})
	}
	if !in.Host.PidMode.IsHost() {
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	if !in.Host.CgroupnsMode.IsHost() {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return list
}

func (in *Input) sysctls() map[string]string {
	all := map[string]string{}
	if in.Place.Netns != "" {
		all["net.ipv4.ip_unprivileged_port_start"] = "0"
		all["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	maps.Copy(all, in.Host.Sysctls)
	return all
}

package runspec

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	initTarget = "/sbin/docker-init" // as in exec/shim
	defaultShm = 64 << 20
)

func (in *Input) mounts() []specs.Mount {
	shm := cmp.Or(in.Host.ShmSize, defaultShm)
	sys, cgroup := "ro", "ro"
	if in.Host.Privileged {
		sys, cgroup = "rw", "rw"
	}
	list := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", sys}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{cgroup, "nosuid", "noexec", "nodev"}},
	}
	if in.Host.IpcMode.IsHost() {
		for _, dir := range []string{"/dev/mqueue", "/dev/shm"} {
			list = append(list, specs.Mount{Destination: dir, Type: "bind", Source: dir, Options: []string{"rbind", "nosuid", "noexec", "nodev"}})
		}
	} else {
		list = append(list, specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}})
		if !in.Host.IpcMode.IsNone() {
			list = append(list, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shm)}})
		}
	}
	for _, f := range [][2]string{
		{"/etc/resolv.conf", in.Place.Resolv}, {"/etc/hostname", in.Place.Hostname}, {"/etc/hosts", in.Place.Hosts},
	} {
		if f[1] != "" {
			list = append(list, specs.Mount{Destination: f[0], Type: "bind", Source: f[1], Options: []string{"rbind", "rprivate"}})
		}
	}
	if in.wantsInit() {
		list = append(list, specs.Mount{Destination: initTarget, Type: "bind", Source: in.Place.Init, Options: []string{"bind", "ro"}})
	}
	return in.userMounts(list)
}

// userMounts adds the user's mounts, parents before children; one at the place
// of a default mount or file replaces it.
func (in *Input) userMounts(list []specs.Mount) []specs.Mount {
	mine := slices.Clone(in.Place.Mounts)
	slices.SortStableFunc(mine, func(a, b Mount) int {
		return cmp.Compare(strings.Count(path.Clean(a.Target), "/"), strings.Count(path.Clean(b.Target), "/"))
	})
	for _, m := range mine {
		target := path.Clean(m.Target)
		list = slices.DeleteFunc(list, func(d specs.Mount) bool { return d.Destination == target })
		list = append(list, m.spec(target))
	}
	return list
}

func (m Mount) spec(target string) specs.Mount {
	opts := slices.Clone(m.Options)
	if m.Tmpfs {
		if len(opts) == 0 {
			opts = []string{"noexec", "nosuid", "nodev"}
		}
		if m.ReadOnly {
			opts = append(opts, "ro")
		}
		return specs.Mount{Destination: target, Type: "tmpfs", Source: "tmpfs", Options: opts}
	}
	if !slices.Contains(opts, "bind") && !slices.Contains(opts, "rbind") {
		opts = append(opts, "rbind")
	}
	if !slices.ContainsFunc(opts, propagation) {
		opts = append(opts, "rprivate")
	}
	if m.ReadOnly {
		opts = append(opts, "ro")
		if slices.Contains(opts, "rbind") {
			opts = append(opts, "rro")
		}
	}
	return specs.Mount{Destination: target, Type: "bind", Source: m.Source, Options: opts}
}

func propagation(opt string) bool {
	switch opt {
	case "private", "rprivate", "slave", "rslave", "shared", "rshared":
		return true
	}
	return false
}

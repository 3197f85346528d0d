package runspec

import (
	"cmp"
	"fmt"
	"path"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"

	"skep/store/object"
)

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Environment is the environment of a container's processes.
func Environment(c *container.Config, hostname string) []string {
	base := []string{searchPath, "HOSTNAME=" + hostname}
	if c.Tty {
		base = append(base, "TERM=xterm")
	}
	return mergeEnv(base, c.Env)
}

// ExecEnvironment is that of a process that is executed in a container.
func ExecEnvironment(env []string, terminal bool, more []string) []string {
	if terminal {
		env = mergeEnv([]string{"TERM=xterm"}, env)
	}
	return mergeEnv(env, more)
}

// Hostname is the name that the container has.
func Hostname(id string, c *container.Config) string {
	return cmp.Or(c.Hostname, id[:min(12, len(id))])
}

func (in *Input) process() (*specs.Process, error) {
	args := Command(&in.Config)
	if in.wantsInit() {
		args = append([]string{initTarget, "--"}, args...)
	}
	caps, err := in.capabilities()
	if err != nil {
		return nil, err
	}
	p := &specs.Process{
		Terminal:        in.Config.Tty,
		Args:            args,
		Env:             Environment(&in.Config, Hostname(in.ID, &in.Config)),
		Cwd:             path.Join("/", in.Config.WorkingDir),
		NoNewPrivileges: true,
		Capabilities: &specs.LinuxCapabilities{
			Bounding: caps, Permitted: caps, Effective: caps,
		},
	}
	if in.Config.Tty && in.Host.ConsoleSize != [2]uint{} {
		p.ConsoleSize = &specs.Box{Height: in.Host.ConsoleSize[0], Width: in.Host.ConsoleSize[1]}
	}
	for _, u := range in.Host.Ulimits {
		if u.Soft > u.Hard && u.Hard >= 0 {
			return nil, object.Errorf(errdefs.ErrInvalidArgument, "ulimit soft limit must be less than or equal to hard limit: %d > %d", u.Soft, u.Hard)
		}
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{
			Type: "RLIMIT_" + upper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard),
		})
	}
	return p, nil
}

func (in *Input) wantsInit() bool { return in.Host.Init != nil && *in.Host.Init && in.Place.Init != "" }

// oomScore is how soon the kernel kills the container when memory runs out.
func (in *Input) oomScore(warn func(string)) *int {
	score := in.Host.OomScoreAdj
	if score == 0 {
		return nil
	}
	if score < 0 && !in.Machine.Raise {
		warn(fmt.Sprintf("oom_score_adj %d is below what this node may set; it was left at 0", score))
		return nil
	}
	return &score
}

// defaultCapabilities are Docker's.
func defaultCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

func (in *Input) capabilities() ([]string, error) {
	if in.Host.Privileged {
		return in.Machine.Capabilities, nil
	}
	add, addAll, err := in.named("CapAdd", in.Host.CapAdd)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := in.named("CapDrop", in.Host.CapDrop)
	if err != nil {
		return nil, err
	}
	for _, c := range add {
		if !slices.Contains(in.Machine.Capabilities, c) {
			return nil, object.Errorf(errdefs.ErrInvalidArgument, "invalid CapAdd: this node itself does not have capability %q", c)
		}
	}
	caps := defaultCapabilities()
	switch {
	case addAll:
		caps = slices.Clone(in.Machine.Capabilities)
	case dropAll:
		caps = nil
	}
	if !addAll && !dropAll || addAll {
		caps = slices.DeleteFunc(caps, func(c string) bool { return slices.Contains(drop, c) })
	}
	for _, c := range add {
		if !slices.Contains(caps, c) {
			caps = append(caps, c)
		}
	}
	return caps, nil
}

// named reads the user's names of capabilities.
func (in *Input) named(field string, names []string) (caps []string, all bool, err error) {
	for _, n := range names {
		n = upper(n)
		if n == "ALL" {
			all = true
			continue
		}
		if len(n) < 4 || n[:4] != "CAP_" {
			n = "CAP_" + n
		}
		if !slices.Contains(in.Machine.Known, n) {
			return nil, false, object.Errorf(errdefs.ErrInvalidArgument, "invalid %s: unknown capability: %q", field, n)
		}
		caps = append(caps, n)
	}
	return caps, all, nil
}

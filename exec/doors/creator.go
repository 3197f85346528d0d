package doors

import (
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// create makes a container whose process is not started yet. It runs in a
// mount namespace that only the container will share.
func (j *Job) create() (*libcontainer.Container, error) {
	root := j.Root.Spec.Root.Path
	if err := mountRoot(root, j.Root); err != nil {
		return nil, err
	}
	if err := placeFiles(j.Root); err != nil {
		return nil, err
	}
	for _, c := range j.Root.CopyUp {
		if err := c.do(root); err != nil {
			return nil, err
		}
	}
	if err := j.findUser(root); err != nil {
		return nil, err
	}
	j.Root.Spec.Process = j.Process
	cfg, err := convert(j.ID, j.Root.Spec)
	if err != nil {
		return nil, err
	}
	return libcontainer.Create(j.StateRoot, j.ID, cfg)
}

// convert makes the runtime's configuration.
func convert(id string, spec *specs.Spec) (*configs.Config, error) {
	cfg, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: id, Spec: spec})
	if err != nil {
		return nil, fmt.Errorf("convert specification: %w", err)
	}
	return cfg, nil
}

func (j *Job) join() (*libcontainer.Container, error) {
	box, err := libcontainer.Load(j.StateRoot, j.ID)
	if err != nil {
		return nil, err
	}
	state, err := box.State()
	if err != nil {
		return nil, err
	}
	return box, j.findUser("/proc/" + strconv.Itoa(state.InitProcessPid) + "/root")
}

func (j *Job) findUser(root string) error {
	d, err := os.Open(root)
	if err != nil {
		return fmt.Errorf("look up user: %w", err)
	}
	defer d.Close()
	u, err := LookupUser(accounts{d}, j.User, j.Groups)
	if err != nil {
		return err
	}
	j.Process.User = u
	return nil
}

// accounts reads the files of a root that belongs to a stranger.
type accounts struct{ root *os.File }

func (a accounts) Passwd() io.Reader { return a.open("etc/passwd") }
func (a accounts) Group() io.Reader  { return a.open("etc/group") }

func (a accounts) open(path string) io.Reader {
	f, err := openIn(a.root, path, unix.O_RDONLY)
	if err != nil {
		return nil
	}
	// The file is closed with the process, which is short-lived.
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil
	}
	return f
}

// openIn opens a path below a root. Links in it, absolute ones too, are
// resolved as a process in that root would.
func openIn(root *os.File, path string, flags int) (*os.File, error) {
	fd, err := unix.Openat2(int(root.Fd()), path, &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NONBLOCK),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func process(p *specs.Process) (*libcontainer.Process, error) {
	lp := &libcontainer.Process{
		Args: p.Args, Env: p.Env, Cwd: p.Cwd,
		UID: int(p.User.UID), GID: int(p.User.GID),
	}
	for _, g := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(g))
	}
	if s := p.ConsoleSize; s != nil {
		lp.ConsoleHeight, lp.ConsoleWidth = uint16(s.Height), uint16(s.Width)
	}
	for _, l := range p.Rlimits {
		kind, ok := rlimit(l.Type)
		if !ok {
			return nil, fmt.Errorf("unknown limit %q", l.Type)
		}
		lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: kind, Soft: l.Soft, Hard: l.Hard})
	}
	if c := p.Capabilities; c != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding: c.Bounding, Effective: c.Effective, Permitted: c.Permitted,
			Inheritable: c.Inheritable, Ambient: c.Ambient,
		}
	}
	return lp, nil
}

func rlimit(name string) (int, bool) {
	kind, ok := map[string]int{
		"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
		"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
		"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
		"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
		"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
		"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
	}[name]
	return kind, ok
}

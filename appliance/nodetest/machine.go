package nodetest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// machine is what a node of a [Swarm] runs on while it has power: network,
// mount, pid, uts, ipc and cgroup namespaces of its own and a subtree of every
// cgroup hierarchy. One process, the first of the pid namespace, holds all of
// it and ends with the test, whatever becomes of that.
type machine struct {
	init   *exec.Cmd
	cord   io.Closer // the machine has power until this is closed
	pidfd  int
	ns     netns.NsHandle
	groups []cgroup
	// door is the way into the only hierarchy, if that is of version 2. It is
	// opened where all of it is seen: a process may not come in otherwise.
	door *os.File
}

// namespaces are those that a machine has of its own.
const namespaces = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP

// The first process. It enters its cgroups ($2 and further, up to --) before it
// makes the cgroup namespace, for that shows what is below them. Mounts of other
// nodes, which this namespace began as a copy of, are let go. In the second part
// $1 is the host name, and the hierarchies follow: each a directory and the
// options to mount it with; - is version 2 alone, at the top, where what has
// children with controllers has no processes.
const (
	bootMachine = `
mount --make-rprivate /
while read -r _ at _; do case $at in "$1"/skep-*) umount -l "$at" || :; esac; done </proc/self/mounts 2>/dev/null
shift
while [ "$1" != -- ]; do echo 0 >"$1/cgroup.procs"; shift; done
shift
exec unshare -C /bin/sh -ec "$@"`
	bootSecond = `
mount -t proc proc /proc
mount -t sysfs sysfs /sys
echo "$1" >/proc/sys/kernel/hostname
shift
[ "$1" = - ] || mount -t tmpfs cgroup /sys/fs/cgroup
while [ $# -gt 0 ]; do
	case $1,$2 in
	-,*) mount -t cgroup2 cgroup2 /sys/fs/cgroup; mkdir /sys/fs/cgroup/rig; echo 0 >/sys/fs/cgroup/rig/cgroup.procs ;;
	*,-) mkdir "/sys/fs/cgroup/$1"; mount -t cgroup2 cgroup2 "/sys/fs/cgroup/$1" ;;
	*) mkdir "/sys/fs/cgroup/$1"; mount -t cgroup -o "$2" cgroup "/sys/fs/cgroup/$1" ;;
	esac
	shift 2
done
mount -t tmpfs tmpfs /run
mkdir /run/netns
echo up
exec 3<&0
cat <&3 >/dev/null &
wait $! # takes the exit status of every orphan meanwhile
`
)

// powerOn makes a machine with a host name; id tells its cgroups from others'.
func powerOn(hostname, id string) (*machine, error) {
	groups, err := makeCgroups("skeptest-" + id)
	m := &machine{groups: groups, pidfd: -1, ns: netns.None()}
	if err == nil {
		err = m.boot(hostname)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("power on %s: %w", hostname, err), m.powerOff())
	}
	return m, nil
}

func (m *machine) boot(hostname string) error {
	args := []string{"-ec", bootMachine, "sh", strings.TrimRight(os.TempDir(), "/")}
	for _, g := range m.groups {
		args = append(args, g.dir)
	}
	args = append(args, "--", bootSecond, "sh", hostname)
	for _, g := range m.groups {
		args = append(args, g.name, g.options)
	}
	init := exec.Command("/bin/sh", args...)
	// The cgroup namespace is made once the cgroups are entered.
	init.SysProcAttr = &unix.SysProcAttr{Cloneflags: namespaces &^ unix.CLONE_NEWCGROUP}
	var errs strings.Builder
	init.Stderr = &errs
	cord, err := init.StdinPipe()
	if err != nil {
		return err
	}
	out, err := init.StdoutPipe()
	if err != nil {
		return err
	}
	if err = init.Start(); err != nil {
		return err
	}
	m.init, m.cord = init, cord
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		return errors.Join(m.powerOff(), errors.New(errs.String()))
	}
	if m.pidfd, err = unix.PidfdOpen(init.Process.Pid, 0); err != nil {
		return err
	}
	for _, g := range m.groups {
		if g.name == "-" {
			if m.door, err = os.OpenFile(filepath.Join(g.dir, "rig", "cgroup.procs"), os.O_WRONLY, 0); err != nil {
				return err
			}
		}
	}
	m.ns, err = netns.GetFromPid(init.Process.Pid)
	return err
}

// enter moves the calling thread, which must be locked, into the machine. What
// it starts is a process of the machine, though not yet of its cgroups.
func (m *machine) enter() error {
	// A thread that shares its working directory may not change its mounts.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	return unix.Setns(m.pidfd, namespaces)
}

// command is a program that is started in the machine's cgroups; it has the
// process that the command starts with.
func (m *machine) command(program string, args ...string) *exec.Cmd {
	if m.door != nil {
		cmd := exec.Command("/bin/sh", append([]string{"-ec", `echo 0 >&3; exec 3>&-; exec "$@"`, "sh", program}, args...)...)
		cmd.ExtraFiles = []*os.File{m.door}
		return cmd
	}
	line := []string{"-ec", `while [ "$1" != -- ]; do echo 0 >"$1/cgroup.procs"; shift; done; shift; exec "$@"`, "sh"}
	for _, g := range m.groups {
		line = append(line, "/sys/fs/cgroup/"+g.name)
	}
	return exec.Command("/bin/sh", append(append(line, "--", program), args...)...)
}

// mounts are the mount points in the machine.
func (m *machine) mounts(filter mountinfo.FilterFunc) ([]*mountinfo.Info, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", m.init.Process.Pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mountinfo.GetMountsFromReader(f, filter)
}

// powerOff ends every process of the machine at once; what they held in the
// kernel goes with them.
func (m *machine) powerOff() error {
	var errs []error
	if m.init != nil {
		// A frozen process does not end.
		_ = m.freeze(false)
		_ = m.init.Process.Kill()
		_ = m.cord.Close()
		_ = m.init.Wait()
		m.init = nil
	}
	if m.pidfd >= 0 {
		_ = unix.Close(m.pidfd)
		m.pidfd = -1
	}
	if m.door != nil {
		_ = m.door.Close()
		m.door = nil
	}
	if m.ns.IsOpen() {
		_ = m.ns.Close()
	}
	for _, g := range m.groups {
		errs = append(errs, g.remove())
	}
	return errors.Join(errs...)
}

// freeze stops every process of the machine, or lets it go on.
func (m *machine) freeze(on bool) error {
	for _, g := range m.groups {
		switch g.name {
		case "freezer":
			state := "THAWED"
			if on {
				state = "FROZEN"
			}
			return g.settle("freezer.state", state, state)
		case "-":
			if on {
				return g.settle("cgroup.freeze", "1", "frozen 1")
			}
			return g.settle("cgroup.freeze", "0", "frozen 0")
		}
	}
	return errors.New("there is no freezer")
}

// cgroup is a machine's subtree of one hierarchy.
type cgroup struct {
	dir string
	// name is the directory that the hierarchy is mounted on, - if it is the only
	// one; options are what it is mounted with, - for version 2.
	name, options string
}

// makeCgroups makes a cgroup in every hierarchy.
func makeCgroups(name string) ([]cgroup, error) {
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.FSType != "cgroup" && i.FSType != "cgroup2", false
	})
	if err != nil {
		return nil, err
	}
	var groups []cgroup
	for _, i := range infos {
		g := cgroup{dir: filepath.Join(i.Mountpoint, name), name: filepath.Base(i.Mountpoint), options: "-"}
		if i.FSType == "cgroup" {
			g.options = v1Options(i.VFSOptions)
		}
		if i.Mountpoint == "/sys/fs/cgroup" {
			g.name = "-"
			// Not all of them are there on every kernel.
			for _, c := range []string{"cpu", "cpuset", "memory", "pids", "io"} {
				_ = os.WriteFile(filepath.Join(i.Mountpoint, "cgroup.subtree_control"), []byte("+"+c), 0)
			}
		}
		if err := os.MkdirAll(g.dir, 0o755); err != nil {
			return groups, err
		}
		groups = append(groups, g)
		// Without them no process may enter.
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			if text, err := os.ReadFile(filepath.Join(i.Mountpoint, f)); err == nil && g.options != "-" {
				if err := os.WriteFile(filepath.Join(g.dir, f), text, 0); err != nil {
					return groups, err
				}
			}
		}
	}
	return groups, nil
}

// v1Options tells a hierarchy of version 1 from the others.
func v1Options(vfs string) string {
	options := strings.Split(vfs, ",")
	options = slices.DeleteFunc(options, func(o string) bool {
		return slices.Contains([]string{"rw", "ro", "xattr", "noprefix", "clone_children"}, o) || strings.HasPrefix(o, "release_agent=")
	})
	if strings.HasPrefix(options[0], "name=") {
		options = append([]string{"none"}, options...)
	}
	return strings.Join(options, ",")
}

// settle writes to a file of the cgroup and waits until the kernel has done it.
func (g cgroup) settle(file, value, want string) error {
	read := file
	if g.name == "-" {
		read = "cgroup.events"
	}
	for end := time.Now().Add(ready); ; time.Sleep(time.Millisecond) {
		if err := os.WriteFile(filepath.Join(g.dir, file), []byte(value), 0); err != nil {
			return err
		}
		text, err := os.ReadFile(filepath.Join(g.dir, read))
		if err != nil || strings.Contains(string(text), want) {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s stays %s", g.dir, text)
		}
	}
}

// remove removes the subtree, in which no process is any more.
func (g cgroup) remove() error {
	var dirs []string
	err := filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, dir := range slices.Backward(dirs) {
		err = errors.Join(err, removeCgroup(dir))
	}
	return err
}

// removeCgroup waits for the last of its processes to be gone from the lists.
func removeCgroup(dir string) error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		err := unix.Rmdir(dir)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
	}
}

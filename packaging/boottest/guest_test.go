package boottest_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// place is the variable that tells the test binary where it runs: it is empty
	// outside, "init" for the first process of the machine, and otherwise names
	// one of its stages.
	place = "SKEP_BOOTTEST"
	// program is the variable that names the stages of the machine, with commas.
	program = "SKEP_BOOTTEST_STAGES"
)

// stages are the places inside, with the cgroup that the node and its tests start in.
var stages = []struct {
	name, cgroup string
	without      []string // modules that the kernel has not
}{
	// The modules stay away, as nothing is loaded before.
	{"bare", "bare", []string{"vxlan", "ip_vs", "nft_numgen"}},
	// As a service manager starts it: in a cgroup of its own, below others.
	{"service", "system.slice/skep.service", nil},
	// As in a container: that cgroup is the root of all that can be seen, so it
	// must give up its processes before it can have children with controllers.
	{"delegated", "delegated", nil},
	// Several nodes, each in namespaces and cgroups of its own.
	{"swarm", "swarm", nil},
}

const (
	cgroupRoot = "/sys/fs/cgroup"
	// report is what the first process prints of each stage, for the tests outside.
	report = "BOOTTEST %s ended with %d"
)

func TestMain(m *testing.M) {
	switch os.Getenv(place) {
	case "init":
		firstProcess()
	case "delegated":
		// What is mounted shows the cgroups of another namespace.
		err := errors.Join(unix.Unmount(cgroupRoot, 0), unix.Mount("cgroup2", cgroupRoot, "cgroup2", 0, ""))
		if err != nil {
			panic(err)
		}
	}
	m.Run()
}

// firstProcess is the machine's init: it runs the stages and powers off.
func firstProcess() {
	err := setUp()
	for _, s := range stages {
		if err != nil {
			break
		}
		if !slices.Contains(strings.Split(os.Getenv(program), ","), s.name) {
			continue
		}
		var code int
		if err = renamed(s.without, ".ko", ".none"); err == nil {
			code, err = run(s.name, filepath.Join(cgroupRoot, s.cgroup))
		}
		if err = errors.Join(err, renamed(s.without, ".none", ".ko")); err == nil {
			fmt.Fprintf(os.Stdout, "\n"+report+"\n", s.name, code)
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stdout, "\nBOOTTEST failed: %v\n", err)
	}
	unix.Sync()
	panic(unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

func setUp() error {
	if err := leaveInitramfs(); err != nil {
		return err
	}
	for _, m := range []struct{ dir, kind, options string }{
		{"/proc", "proc", ""},
		{"/sys", "sysfs", ""},
		{"/dev", "devtmpfs", "mode=0755"},
		{"/dev/pts", "devpts", "mode=0620,ptmxmode=0666,gid=5"},
		{"/dev/shm", "tmpfs", ""},
		{"/run", "tmpfs", "mode=0755"},
		{cgroupRoot, "cgroup2", "nsdelegate,memory_recursiveprot"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	// As on most machines: what is mounted by one is seen by all.
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	controllers := []byte("+cpu +cpuset +io +memory +pids")
	if err := os.WriteFile(cgroupRoot+"/cgroup.subtree_control", controllers, 0); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// leaveInitramfs makes the root directory a mount on top of the first one,
// which pivot_root(2), and so every container, refuses to leave.
func leaveInitramfs() error {
	const dir = "/root"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/", dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind root: %w", err)
	}
	return errors.Join(unix.Chdir(dir), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/"))
}

// renamed gives the files of modules another name.
func renamed(modules []string, from, to string) error {
	return filepath.WalkDir("/lib/modules", func(path string, _ fs.DirEntry, err error) error {
		name := strings.TrimSuffix(filepath.Base(path), from)
		if err != nil || !strings.HasSuffix(path, from) || !slices.Contains(modules, name) {
			return err
		}
		return os.Rename(path, strings.TrimSuffix(path, from)+to)
	})
}

// run runs the tests of a stage, and is the parent of all orphans meanwhile.
func run(stage, cgroup string) (code int, err error) {
	if err := os.MkdirAll(cgroup, 0o755); err != nil {
		return 0, err
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	sys := &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if stage == "delegated" {
		sys.Unshareflags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	pid, err := syscall.ForkExec(self, []string{self, "-test.v", "-test.failfast"}, &syscall.ProcAttr{
		Env:   []string{place + "=" + stage, "PATH=/bin:/usr/bin:/usr/sbin:/sbin", "HOME=/tmp"},
		Files: []uintptr{0, 1, 2},
		Sys:   sys,
	})
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", stage, err)
	}
	for {
		var status syscall.WaitStatus
		ended, err := syscall.Wait4(-1, &status, 0, nil)
		if err != nil && !errors.Is(err, syscall.EINTR) {
			return 0, fmt.Errorf("wait for %s: %w", stage, err)
		}
		if ended == pid && (status.Exited() || status.Signaled()) {
			return max(status.ExitStatus(), 255*min(1, int(status.Signal())+1)), nil
		}
	}
}

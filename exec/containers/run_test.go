package containers_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/volume"
	"golang.org/x/sys/unix"

	"skep/exec/containers"
	"skep/store/object"
)

// What a container sees and may do, each with one script.
func TestRun(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	type req = *container.CreateRequest
	yes := true
	hostDir := t.TempDir()
	if err := os.WriteFile(filepath.Join(hostDir, "file"), []byte("of the node"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		script []string
		change func(req)
		code   int
		want   []string // parts of stdout
	}{
		{"exit code and streams", []string{"out", "hello", "err", "oops", "exit", "3"}, nil, 3, []string{"hello\n"}},
		{"capabilities", []string{"read", "/proc/self/status"}, nil, 0, []string{"CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "Seccomp:\t2", "NoNewPrivs:\t1"}},
		{"added capability", []string{"read", "/proc/self/status"}, func(r req) { r.HostConfig.CapAdd = []string{"net_admin"} }, 0, []string{"CapEff:\t00000000a80435fb"}},
		{"dropped capabilities", []string{"read", "/proc/self/status"}, func(r req) { r.HostConfig.CapDrop = []string{"ALL"}; r.HostConfig.CapAdd = []string{"CHOWN"} }, 0, []string{"CapEff:\t0000000000000001"}},
		{"system calls", []string{"unshare", "socket", "40", "socket", "38", "socket", "2", "mknod"}, nil, 0, []string{"unshare operation not permitted", "socket 40 false", "socket 38 false", "socket 2 true", "open open /sda: operation not permitted"}},
		{"masked and read-only paths", []string{"read", "/proc/kcore", "out", ".", "write", "/proc/sys/kernel/domainname", "x", "ls", "/sys/firmware"}, nil, 0, []string{".\n", "read-only file system"}},
		{"user by name", []string{"id"}, func(r req) { r.User = "alice" }, 0, []string{"1000 1001 [50 1001]"}},
		{"user by number", []string{"id"}, func(r req) { r.User = "7" }, 0, []string{"7 0 [0]"}},
		{"user, group, more groups", []string{"id"}, func(r req) { r.User = "alice:wheel"; r.HostConfig.GroupAdd = []string{"staff", "99"} }, 0, []string{"1000 10 [10 50 99]"}},
		{"environment", []string{"env"}, func(r req) { r.Env = []string{"A=b", "FROM=me"}; r.Hostname = "box" }, 0, []string{"A=b\n", "FROM=me\n", "HOSTNAME=box\n", "HOME=/root\n", "PATH=/usr/local/sbin"}},
		{"names", []string{"host", "read", "/etc/hostname", "read", "/etc/hosts", "read", "/etc/resolv.conf"}, func(r req) {
			r.Hostname = "box"
			r.HostConfig.ExtraHosts = []string{"db:10.9.9.9"}
			r.HostConfig.DNSSearch = []string{"example.org"}
		}, 0, []string{"box\nbox\n", "10.9.9.9\tdb", "10.1.2.3\tbox", "search example.org"}},
		{"working directory is made", []string{"cwd"}, func(r req) { r.WorkingDir = "/new/dir" }, 0, []string{"/new/dir\n"}},
		{"read-only root", []string{"write", "/file", "x"}, func(r req) { r.HostConfig.ReadonlyRootfs = true }, 0, []string{"read-only file system"}},
		{"tmpfs", []string{"write", "/t/file", "x", "read", "/t/file", "read", "/proc/self/mounts"}, func(r req) { r.HostConfig.Tmpfs = map[string]string{"/t": "size=64k,exec"} }, 0, []string{"xoverlay", "tmpfs /t tmpfs rw,nosuid,nodev", "size=64k"}},
		{"bind", []string{"read", "/b/file", "write", "/b/file", "y"}, func(r req) { r.HostConfig.Binds = []string{hostDir + ":/b:ro"} }, 0, []string{"of the node", "read-only file system"}},
		{"shared memory", []string{"read", "/proc/self/mounts"}, func(r req) { r.HostConfig.ShmSize = 1 << 20 }, 0, []string{"shm /dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k"}},
		{"ulimits", []string{"rlimit"}, func(r req) { r.HostConfig.Ulimits = []*units.Ulimit{{Name: "nofile", Soft: 64, Hard: 128}} }, 0, []string{" 128\n"}},
		{"sysctls", []string{"read", "/proc/sys/net/ipv4/ip_forward"}, func(r req) { r.HostConfig.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"} }, 0, []string{"1\n"}},
		{"first process is 1", []string{"orphan"}, nil, 0, []string{"zombies 1 pid 1"}},
		{"init", []string{"orphan", "exit", "5"}, func(r req) { r.HostConfig.Init = &yes }, 5, []string{"zombies 0 pid"}},
		{"memory limit", []string{"read", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "read", "/sys/fs/cgroup/memory.max"}, func(r req) { r.HostConfig.Memory = 64 << 20 }, 0, []string{"67108864"}},
		{"cpu limit", []string{"read", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "read", "/sys/fs/cgroup/cpu.max"}, func(r req) { r.HostConfig.NanoCPUs = 5e8 }, 0, []string{"50000"}},
		{"pids limit", []string{"fork", "40"}, func(r req) { r.HostConfig.PidsLimit = new(int64(20)) }, 0, []string{"forked"}},
		{"oom score", []string{"read", "/proc/self/oom_score_adj"}, func(r req) { r.HostConfig.OomScoreAdj = 500 }, 0, []string{"500\n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := request(tt.script...)
			if tt.change != nil {
				tt.change(&r)
			}
			code, out, errs := run(t, e, r)
			if code != tt.code {
				t.Errorf("exit code %d, want %d; wrote %q, %q", code, tt.code, out, errs)
			}
			for _, part := range tt.want {
				if !strings.Contains(out, part) {
					t.Errorf("wrote %q, %q; want %q in it", out, errs, part)
				}
			}
			if tt.name == "pids limit" && strings.Contains(out, "forked 40") {
				t.Errorf("limit of 20 processes let 40 be")
			}
		})
	}
}

func TestRun_SecretsAreFilesInMemory(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	c, err := e.CreateWith(t.Context(), "", request(
		"read", "/run/secrets/key", "ls", "/run/secrets", "read", "/etc/app.conf", "write", "/run/secrets/key", "x", "read", "/proc/self/mounts"),
		containers.Extra{Files: []containers.File{
			{Target: "/run/secrets/key", Data: []byte("canary-7731\n"), UID: 5, GID: 6, Mode: 0o440},
			{Target: "/etc/app.conf", Data: []byte("conf\n"), Mode: 0o444},
		}})
	if err != nil {
		t.Fatal(err)
	}
	start(t, e, c.ID)
	wait(t, e, c.ID)
	out, _ := output(t, e, c.ID, object.LogQuery{Stdout: true, Tail: -1})
	for _, part := range []string{"canary-7731\n-r--r----- 5 6 key\nconf\n", "read-only file system", "tmpfs /run/secrets tmpfs ro,nosuid,nodev,noexec", "tmpfs /etc/app.conf tmpfs ro,nosuid,nodev,noexec"} {
		if !strings.Contains(out, part) {
			t.Errorf("container saw %q; want %q in it", out, part)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), c.ID) && !strings.Contains(string(mounts), "netns/"+c.ID) {
		t.Errorf("the node sees a mount of the container: %s, %v", mounts, err)
	}
	if found := grep(t, w.dir, "canary-7731", "logs"); len(found) > 0 {
		t.Errorf("the secret is in %v", found)
	}
}

// grep lists the files below dir that hold text, but for those in a directory named except.
func grep(t *testing.T, dir, text, except string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.Contains(path, "/"+except+"/") {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), text) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestRun_Volumes(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	r := request("read", "/data/from", "write", "/data/mine", "kept", "write", "/anon/x", "y")
	r.HostConfig.Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: "vol", Target: "/data"}}
	r.Volumes = map[string]struct{}{"/anon": {}}
	id := create(t, e, r)
	start(t, e, id)
	wait(t, e, id)
	if out, _ := output(t, e, id, object.LogQuery{Stdout: true, Tail: -1}); out != "the image" {
		t.Errorf("volume was not filled from the image: %q", out)
	}
	if err := w.vols.Remove(t.Context(), "vol", false); err == nil || !strings.HasPrefix(err.Error(), "remove vol: volume is in use - ["+id) {
		t.Errorf("removing a volume in use: %v", err)
	}
	r2 := request("read", "/v/mine", "read", "/v/sub/deep")
	r2.HostConfig.Binds = []string{"vol:/v"}
	if _, out, _ := run(t, e, r2); out != "keptdeep" {
		t.Errorf("second container read %q, want kept and deep", out)
	}
	list, err := e.List(t.Context(), true, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if err = e.Remove(t.Context(), c.ID, false, true); err != nil {
			t.Error(err)
		}
	}
	vols, err := w.vols.List(t.Context(), true)
	if err != nil || len(vols) != 1 || vols[0].Name != "vol" || vols[0].UsageData.Size == 0 {
		t.Errorf("left volumes %+v, %v; want only the named one", vols, err)
	}
	rep, err := w.vols.Prune(t.Context(), true, func(volume.Volume) bool { return false })
	if err != nil || !slices.Equal(rep.VolumesDeleted, []string{"vol"}) {
		t.Errorf("prune: %+v, %v", rep, err)
	}
}

func TestRun_MemoryLimitKills(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	r := request("eat", "200")
	r.HostConfig.Memory, r.HostConfig.MemorySwap = 32<<20, 32<<20
	id := create(t, e, r)
	start(t, e, id)
	if code := wait(t, e, id); code != 137 {
		t.Errorf("exit code %d, want 137", code)
	}
	i, err := e.Inspect(t.Context(), id, false)
	if err != nil || !i.State.OOMKilled {
		t.Errorf("OOMKilled is not set: %+v, %v", i.State, err)
	}
	eventually(t, "events", func() bool { return slices.Equal(w.actions(id), []string{"create", "start", "oom", "die"}) })
}

func TestRun_FailsToStart(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	tests := []struct {
		cmd, text string
		code      int
	}{
		{"/nope", `exec: "/nope": stat /nope: no such file or directory`, 127},
		{"nope", `exec: "nope": executable file not found in $PATH`, 127},
		{"/etc/passwd", `exec: "/etc/passwd": permission denied`, 126},
	}
	for _, tt := range tests {
		r := request()
		r.Entrypoint = []string{tt.cmd}
		id := create(t, e, r)
		err := e.Start(t.Context(), id)
		if err == nil || !strings.Contains(err.Error(), tt.text) || !strings.HasPrefix(err.Error(), "failed to create task for container: ") {
			t.Errorf("start %s: %v", tt.cmd, err)
		}
		i, err := e.Inspect(t.Context(), id, false)
		if err != nil || i.State.ExitCode != tt.code || i.State.Status != "created" || !strings.Contains(i.State.Error, tt.text) {
			t.Errorf("state after %s: %+v, %v", tt.cmd, i.State, err)
		}
		if err := e.Remove(t.Context(), id, false, false); err != nil {
			t.Error(err)
		}
	}
}

func TestRun_LogIsWholeAndRotates(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	_, out, errs := run(t, e, request("count", "3000"))
	var want, wantErr strings.Builder
	for i := range 3000 {
		fmt.Fprintln(&want, "line", i, strings.Repeat("x", 60))
		fmt.Fprintln(&wantErr, "err", i)
	}
	if out != want.String() || errs != wantErr.String() {
		t.Errorf("log has %d and %d bytes, want %d and %d", len(out), len(errs), want.Len(), wantErr.Len())
	}
	r := request("count", "3000")
	r.HostConfig.LogConfig = container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "50k", "max-file": "3"}}
	id := create(t, e, r)
	start(t, e, id)
	wait(t, e, id)
	files, err := filepath.Glob(filepath.Join(w.dir, "containers", id, "logs", "log*"))
	if err != nil || len(files) != 3 {
		t.Errorf("kept %v, %v; want three files", files, err)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Size() > 50_000 {
			t.Errorf("%s has %d bytes, want at most 50k: %v", f, st.Size(), err)
		}
	}
	out, _ = output(t, e, id, object.LogQuery{Stdout: true, Tail: 2})
	if lines := strings.Split(want.String(), "\n"); out != lines[2998]+"\n"+lines[2999]+"\n" {
		t.Errorf("tail is %q", out)
	}
}

func TestRun_LogIsFollowed(t *testing.T) {
	e := newWorld(t).engine(t)
	r := request("tick", "200", "2", "raw", "end")
	r.HostConfig.LogConfig = container.LogConfig{Type: "local", Config: map[string]string{"max-size": "2k", "max-file": "4"}}
	id := create(t, e, r)
	start(t, e, id)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got strings.Builder
	for l, err := range e.Logs(ctx, id, object.LogQuery{Stdout: true, Follow: true, Tail: -1}) {
		if err != nil {
			t.Fatal(err)
		}
		got.Write(l.Text)
	}
	var want strings.Builder
	for i := range 200 {
		fmt.Fprintln(&want, "tick", i)
	}
	want.WriteString("end")
	if got.String() != want.String() || ctx.Err() != nil {
		t.Errorf("followed %d bytes, want %d; %v", got.Len(), want.Len(), ctx.Err())
	}
}

func mounts(kind mount.Type, source, target string) []mount.Mount {
	return []mount.Mount{{Type: kind, Source: source, Target: target}}
}

func TestRun_Devices(t *testing.T) {
	e := newWorld(t).engine(t)
	r := request("ls", "/dev/net", "read", "/dev/gone")
	r.HostConfig.Devices = []container.DeviceMapping{{PathOnHost: "/dev/null", PathInContainer: "/dev/net/gone", CgroupPermissions: "r"}}
	if _, out, errs := run(t, e, r); !strings.Contains(out, "Dcrw-rw-rw- 0 0 gone") {
		t.Errorf("container saw %q, %q", out, errs)
	}
	r.HostConfig.Devices[0].PathOnHost = "/dev/nope"
	if _, err := e.Create(t.Context(), "", r); !errdefs.IsInvalidArgument(err) {
		t.Errorf("device that is not there: %v", err)
	}
}

// Images that try to lead the runtime out of the container. None of them
// starts with anything of the node in its hands.
func TestRun_HostileImages(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("of the node"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		image  func(root string) error
		change func(*container.CreateRequest)
		script []string
	}{
		{"a leaked descriptor as working directory", nil, func(r *container.CreateRequest) { r.WorkingDir = "/proc/self/fd/7" }, []string{"cwd", "read", "../../../../../" + secret}},
		{"/dev is a link", func(root string) error {
			return errors.Join(os.Remove(filepath.Join(root, "dev")), os.Symlink(filepath.Dir(secret), filepath.Join(root, "dev")))
		}, nil, []string{"read", "/dev/secret"}},
		{"/proc is a link", func(root string) error {
			return errors.Join(os.Remove(filepath.Join(root, "proc")), os.Symlink("/tmp", filepath.Join(root, "proc")))
		}, nil, []string{"read", secret}},
		{"/etc/passwd is a link out", func(root string) error {
			return errors.Join(os.Remove(filepath.Join(root, "etc/passwd")), os.Symlink("../../../../../.."+secret, filepath.Join(root, "etc/passwd")))
		}, func(r *container.CreateRequest) { r.User = "of the node" }, []string{"out", "started"}},
		{"/etc/passwd is a pipe", func(root string) error {
			return errors.Join(os.Remove(filepath.Join(root, "etc/passwd")), unix.Mkfifo(filepath.Join(root, "etc/passwd"), 0o644))
		}, func(r *container.CreateRequest) { r.User = "alice" }, []string{"out", "started"}},
		{"a volume's place is a link out", func(root string) error {
			return os.Symlink(filepath.Dir(secret), filepath.Join(root, "vol"))
		}, func(r *container.CreateRequest) { r.HostConfig.Binds = []string{"some:/vol"} }, []string{"read", "/vol/secret", "ls", "/vol"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			e := w.engine(t)
			if tt.image != nil {
				if err := tt.image(w.root); err != nil {
					t.Fatal(err)
				}
			}
			r := request(tt.script...)
			if tt.change != nil {
				tt.change(&r)
			}
			id := create(t, e, r)
			if err := e.Start(t.Context(), id); err != nil {
				t.Log("refused:", err)
				return
			}
			wait(t, e, id)
			out, errs := output(t, e, id, object.LogQuery{Stdout: true, Stderr: true, Tail: -1})
			t.Logf("wrote %q, %q", out, errs)
			if strings.Contains(out, "of the node") || strings.Contains(out, "started") {
				t.Errorf("container got %q", out)
			}
		})
	}
}

// More layers than mount(2) can be told of in one page.
func TestRun_ManyLayers(t *testing.T) {
	w := newWorld(t)
	for i := range 120 {
		dir := filepath.Join(w.dir, fmt.Sprintf("layer-with-a-name-that-takes-its-place-%03d", i))
		w.more = append(w.more, dir)
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "top"), []byte(fmt.Sprint(i)), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	code, out, errs := run(t, w.engine(t), request("read", "/top", "read", "/data/from"))
	if code != 0 || out != "0the image" {
		t.Errorf("container of 121 layers: %d, %q, %q", code, out, errs)
	}
}

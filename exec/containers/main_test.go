package containers_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"skep/exec/containers"
	"skep/exec/doors"
	"skep/exec/images"
	"skep/exec/volumes"
	"skep/store/object"
)

func TestMain(m *testing.M) {
	if code, taken := doors.Door(); taken {
		os.Exit(code) //nolint:forbidigo // this is the main of a creator
	}
	if dir := os.Getenv("SKEP_TEST_NODE"); dir != "" {
		panic(node(dir))
	}
	m.Run()
	os.RemoveAll(buildDir())
}

func buildDir() string { return filepath.Join(os.TempDir(), "skep-built-"+strconv.Itoa(os.Getpid())) }

// world is a node's place: what outlives an engine.
type world struct {
	dir, root string
	more      []string // layers above root
	nets      *networks
	guests    *guests // nil: there are no networks of a swarm
	vols      *volumes.Store
	sealer    sealer

	mu     sync.Mutex
	events []events.Message
}

// built holds what the tests run: guest in the containers, and the
// runtime program as the shims' binary.
// SKEP_TEST_BUILT is where they are on a machine that has no Go.
var built = sync.OnceValues(func() (dir string, err error) {
	if dir = os.Getenv("SKEP_TEST_BUILT"); dir != "" {
		return dir, nil
	}
	dir = buildDir()
	for name, args := range map[string][]string{
		"./testdata/guest": {"CGO_ENABLED=0"},
		"../doors/runtime": {"CGO_ENABLED=1", "-tags", "seccomp netgo osusergo", "-ldflags", "-s -w -linkmode external -extldflags -static"},
	} {
		args = append(args, "-o", filepath.Join(dir, filepath.Base(name), "skep"), name)
		cmd := exec.Command("go", append([]string{"build"}, args[1:]...)...)
		cmd.Env = append(os.Environ(), args[0])
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w: %s", name, err, out)
		}
	}
	return dir, nil
})

func need(tb testing.TB) {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("containers need root")
	}
	if _, err := os.Stat("/sys/fs/cgroup"); err != nil {
		tb.Skip("containers need cgroups")
	}
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	need(tb)
	// The name of the directory is part of names in the kernel: it is unique.
	dir, err := os.MkdirTemp("", "skep") //nolint:usetesting // see above
	if err != nil {
		tb.Fatal(err)
	}
	w, err := openWorld(dir)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := w.nets.Retain(context.Background(), nil); err != nil {
			tb.Error(err)
		}
		w.removeCgroup(tb)
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	bin := binary(tb, "guest")
	for path, text := range map[string]string{
		"etc/passwd":    "root:x:0:0::/root:/bin/sh\nalice:x:1000:1001::/home/alice:/bin/sh\n7:x:8:8::/:\n",
		"etc/group":     "root:x:0:\nstaff:x:50:alice\nwheel:x:10:\n",
		"data/from":     "the image",
		"data/sub/deep": "deep",
	} {
		at := filepath.Join(w.root, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(text), 0o644)); err != nil {
			tb.Fatal(err)
		}
	}
	for _, d := range []string{"tmp", "proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(w.root, d), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	if err := errors.Join(
		os.Link(bin, filepath.Join(w.root, "guest")),
		os.Mkdir(filepath.Join(w.dir, "bin"), 0o755),
		os.Link(binary(tb, "runtime"), filepath.Join(w.dir, "bin", "skep")),
	); err != nil {
		tb.Fatal(err)
	}
	return w
}

func binary(tb testing.TB, name string) string {
	tb.Helper()
	dir, err := built()
	if err != nil {
		tb.Fatal(err)
	}
	return filepath.Join(dir, name, "skep")
}

func openWorld(dir string) (*world, error) {
	w := &world{dir: dir, root: filepath.Join(dir, "image"), sealer: sealer{keys: "a"}}
	w.nets = &networks{dir: filepath.Join(dir, "netns")}
	var err error
	w.vols, err = volumes.Open(volumes.Config{Dir: filepath.Join(dir, "volumes"), Logger: slog.New(slog.DiscardHandler)})
	return w, errors.Join(err, os.MkdirAll(w.root, 0o755), os.MkdirAll(w.nets.dir, 0o755))
}

func (w *world) config(out *slog.Logger) containers.Config {
	c := containers.Config{
		Dir: filepath.Join(w.dir, "containers"), RunDir: filepath.Join(w.dir, "run"), Exe: filepath.Join(w.dir, "bin", "skep"),
		CgroupParent: w.cgroup(), Images: w, Networks: w.nets, Volumes: w.vols, Sealer: &w.sealer,
		Publish: func(m events.Message) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, m)
		},
		Logger: out,
	}
	if w.guests != nil {
		c.Guests = w.guests
	}
	return c
}

func (w *world) cgroup() string { return "/skep-test-" + filepath.Base(w.dir) }

func (w *world) removeCgroup(tb testing.TB) {
	tb.Helper()
	parents, err := filepath.Glob("/sys/fs/cgroup/*" + w.cgroup())
	if err != nil {
		tb.Fatal(err)
	}
	parents = append(parents, "/sys/fs/cgroup"+w.cgroup())
	for _, p := range parents {
		if left, err := filepath.Glob(p + "/*/cgroup.procs"); err != nil || len(left) > 0 {
			tb.Errorf("left cgroups %v, %v", left, err)
		}
		if err := cgroups.RemovePath(p); err != nil {
			tb.Error(err)
		}
	}
}

// Rootfs makes the world a store of images, with one image.
func (w *world) Rootfs(_ context.Context, ref string) (images.Rootfs, error) {
	id := "sha256:" + strings.Repeat("ab", 32)
	if ref != "guest" && ref != id {
		return images.Rootfs{}, fmt.Errorf("no image %q", ref)
	}
	cfg := dockerspec.DockerOCIImageConfig{}
	cfg.Entrypoint = []string{"/guest"}
	cfg.Env = []string{"FROM=image"}
	return images.Rootfs{ID: id, Config: cfg, Lower: append(slices.Clone(w.more), w.root)}, nil
}

// engine runs an engine until the test ends, and then removes its containers.
func (w *world) engine(tb testing.TB) *containers.Engine {
	tb.Helper()
	e, stop := w.open(tb)
	tb.Cleanup(func() {
		list, err := e.List(context.Background(), true, false)
		if err != nil {
			tb.Error(err)
		}
		for _, c := range list {
			if err := e.Remove(context.Background(), c.ID, true, true); err != nil {
				tb.Error(err)
			}
		}
		stop()
	})
	return e
}

// open runs an engine until stop is called.
func (w *world) open(tb testing.TB) (e *containers.Engine, stop func()) {
	tb.Helper()
	log := slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	e, err := containers.Open(context.Background(), w.config(log))
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	return e, func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	}
}

func (w *world) actions(id string) (list []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.events {
		if m.Actor.ID == id {
			list = append(list, string(m.Action))
		}
	}
	return list
}

// request is a container of the guest with a script.
func request(script ...string) container.CreateRequest {
	return container.CreateRequest{
		Config:     &container.Config{Image: "guest", Cmd: script},
		HostConfig: &container.HostConfig{NetworkMode: "none"},
	}
}

func create(tb testing.TB, e *containers.Engine, req container.CreateRequest) string {
	tb.Helper()
	c, err := e.Create(context.Background(), "", req)
	if err != nil {
		tb.Fatal(err)
	}
	return c.ID
}

func start(tb testing.TB, e *containers.Engine, id string) {
	tb.Helper()
	if err := e.Start(context.Background(), id); err != nil {
		tb.Fatal(err)
	}
}

func wait(tb testing.TB, e *containers.Engine, id string) int {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	f, err := e.Wait(ctx, id, container.WaitConditionNotRunning)
	if err != nil {
		tb.Fatal(err)
	}
	r, err := f(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	return int(r.StatusCode)
}

// run runs a container to its end and returns what it wrote.
func run(tb testing.TB, e *containers.Engine, req container.CreateRequest) (code int, stdout, stderr string) {
	tb.Helper()
	id := create(tb, e, req)
	start(tb, e, id)
	code = wait(tb, e, id)
	stdout, stderr = output(tb, e, id, object.LogQuery{Stdout: true, Stderr: true, Tail: -1})
	return code, stdout, stderr
}

func output(tb testing.TB, e *containers.Engine, id string, q object.LogQuery) (stdout, stderr string) {
	tb.Helper()
	var out, errs bytes.Buffer
	for l, err := range e.Logs(tb.Context(), id, q) {
		if err != nil {
			tb.Fatal(err)
		}
		if l.Stderr {
			errs.Write(l.Text)
		} else {
			out.Write(l.Text)
		}
	}
	return out.String(), errs.String()
}

// eventually waits until a condition holds.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	tb.Fatalf("%s: it did not happen", what)
}

// networks gives every endpoint an empty namespace.
type networks struct {
	dir string
	// refuse is why an endpoint cannot be connected; nil means that all can.
	refuse    func(object.Endpoint) error
	mu        sync.Mutex
	all       map[string]object.Attachment
	withdrawn map[string]time.Time
}

func (n *networks) Connect(_ context.Context, e object.Endpoint) (object.Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.all == nil {
		n.all = map[string]object.Attachment{}
	}
	if at, ok := n.all[e.ID]; ok {
		return at, nil
	}
	if n.refuse != nil {
		if err := n.refuse(e); err != nil {
			return object.Attachment{}, err
		}
	}
	path := filepath.Join(n.dir, e.ID)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return object.Attachment{}, err
	}
	err := make(chan error)
	go func() { // the thread is not given back: it is in the namespace
		runtime.LockOSThread()
		if e := unix.Unshare(unix.CLONE_NEWNET); e != nil {
			err <- e
			return
		}
		err <- unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	}()
	if err := <-err; err != nil {
		return object.Attachment{}, err
	}
	at := object.Attachment{Endpoint: e, Namespace: path, Address: "10.1.2.3/24", Gateway: "10.1.2.1", MAC: "02:42:0a:01:02:03"}
	n.all[e.ID] = dress(at)
	return n.all[e.ID], nil
}

// dress adds what is made on networks of the swarm.
func dress(at object.Attachment) object.Attachment {
	at.Overlays, at.Nameserver, at.Search, at.Options = nil, nil, nil, nil
	for i, o := range at.Endpoint.Overlays {
		o.Name = cmp.Or(o.Name, "name-of-"+o.Network)
		at.Overlays = append(at.Overlays, object.OverlayAttachment{
			Overlay: o, EndpointID: "endpoint-" + o.Network, Interface: fmt.Sprint("eth", i), MAC: "02:42:0a:00:01:05",
			Gateways: []netip.Addr{netip.MustParseAddr("10.0.1.1"), netip.MustParseAddr("fd00::1")},
		})
		at.Nameserver, at.Search, at.Options = []string{"127.0.0.11"}, []string{"example.com"}, []string{"ndots:0"}
	}
	return at
}

// Rewire changes the overlays alone.
func (n *networks) Rewire(_ context.Context, e object.Endpoint) (object.Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refuse != nil {
		if err := n.refuse(e); err != nil {
			return object.Attachment{}, err
		}
	}
	at := n.all[e.ID]
	at.Endpoint.Overlays = e.Overlays
	n.all[e.ID] = dress(at)
	return n.all[e.ID], nil
}

func (n *networks) Disconnect(_ context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.all, id)
	path := filepath.Join(n.dir, id)
	_ = unix.Unmount(path, unix.MNT_DETACH)
	return os.RemoveAll(path)
}

// Withdraw notes when it was asked for.
func (n *networks) Withdraw(_ context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.withdrawn == nil {
		n.withdrawn = map[string]time.Time{}
	}
	n.withdrawn[id] = time.Now()
	return errors.New("not any more")
}

func (n *networks) Retain(ctx context.Context, ids []string) error {
	keep := map[string]bool{}
	for _, id := range ids {
		keep[id] = true
	}
	list, err := os.ReadDir(n.dir)
	if err != nil {
		return err
	}
	for _, d := range list {
		if !keep[d.Name()] {
			err = errors.Join(err, n.Disconnect(ctx, d.Name()))
			continue
		}
		n.mu.Lock()
		if n.all == nil {
			n.all = map[string]object.Attachment{}
		}
		if _, ok := n.all[d.Name()]; !ok {
			n.all[d.Name()] = object.Attachment{Endpoint: object.Endpoint{ID: d.Name()}, Namespace: filepath.Join(n.dir, d.Name())}
		}
		n.mu.Unlock()
	}
	return err
}

func (n *networks) Attachment(id string) (object.Attachment, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	at, ok := n.all[id]
	return at, ok
}

// sealer seals with keys that are told by one byte; the first is active.
type sealer struct{ keys string }

func (sealer) aead(key byte) cipher.AEAD {
	sum := sha256.Sum256([]byte{key})
	block, err := aes.NewCipher(sum[:])
	if err != nil {
		panic(err)
	}
	a, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return a
}

func (s *sealer) Seal(domain string, plain []byte) []byte {
	nonce := make([]byte, 12)
	rand.Read(nonce)
	return s.aead(s.keys[0]).Seal(append([]byte{s.keys[0]}, nonce...), nonce, plain, []byte(domain))
}

func (s *sealer) Open(domain string, sealed []byte) ([]byte, error) {
	if len(sealed) < 13 || !strings.Contains(s.keys, string(sealed[:1])) {
		return nil, errors.New("too short, or an unknown key")
	}
	return s.aead(sealed[0]).Open(nil, sealed[1:13], sealed[13:], []byte(domain))
}

func (s *sealer) Current(sealed []byte) bool { return len(sealed) > 0 && sealed[0] == s.keys[0] }

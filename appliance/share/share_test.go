package share_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"

	"skep/appliance/share"
	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/exec/images"
)

func TestShare_ImageOfOneNodeIsEveryNodes(t *testing.T) {
	s := newSwarm(t)
	w1, w2, w3 := s.add("w1"), s.add("w2"), s.add("w3")
	p := paint(t, "app:1", 100_000, 3<<20)
	w1.load(t, p)
	s.tell()
	w2.pull(t, p.ref("app"))
	w2.whole(t, p, p.ref("app"))
	s.tell()
	s.gone("w1")
	w3.pull(t, p.ref("app"))
	w3.whole(t, p, p.ref("app"))
	s.tell()
	s.gone("w2")
	m1 := s.nodes["m1"] // the manager gets what a worker has ...
	m1.pull(t, p.ref("app"))
	m1.whole(t, p, p.ref("app"))
	s.tell()
	s.gone("w3")
	s.add("w4").pull(t, p.ref("app")) // ... and gives it on from its own store
}

func TestShare_TagIsAskedOfTheRegistryFirst(t *testing.T) {
	s := newSwarm(t)
	w1, w2 := s.add("w1"), s.add("w2")
	p := paint(t, "app:1", 1000)
	w1.load(t, p)
	s.tell()
	var told []string
	err := w2.Pull(t.Context(), "app:1", "", nil, func(m jsonstream.Message) { told = append(told, m.Status) })
	if err != nil {
		t.Fatal(err)
	}
	w2.whole(t, p, "app:1")
	if !strings.Contains(strings.Join(told, "\n"), "Pulling from other nodes of the swarm") {
		t.Errorf("told %q", told)
	}
	if err := w2.Pull(t.Context(), "nowhere:1", "", nil, nil); !errors.Is(err, errNoRegistry) {
		t.Errorf("of an image that nobody has: %v", err)
	}
}

func TestShare_BrokenTransferGoesOnAtAnotherNode(t *testing.T) {
	const size, after = 4 << 20, 1 << 20
	s := newSwarm(t)
	w1, w2, w3 := s.add("w1"), s.add("w2"), s.add("w3")
	p := paint(t, "app:1", size)
	w1.load(t, p)
	w2.load(t, p)
	s.tell()
	// Whichever is asked for the layer breaks off once.
	broken := cut(after, 1)
	s.disturb("w1", broken)
	s.disturb("w2", broken)
	w3.pull(t, p.ref("app"))
	w3.whole(t, p, p.ref("app"))
	if s.times("w1", p.layers[0]) != 1 || s.times("w2", p.layers[0]) != 1 {
		t.Errorf("asked %d and %d times", s.times("w1", p.layers[0]), s.times("w2", p.layers[0]))
	}
}

func TestShare_BrokenTransferGoesOnAtTheSameNode(t *testing.T) {
	s := newSwarm(t)
	w1, w2 := s.add("w1"), s.add("w2")
	p := paint(t, "app:1", 4<<20)
	w1.load(t, p)
	s.tell()
	s.disturb("w1", cut(1<<20, 2))
	w2.pull(t, p.ref("app"))
	w2.whole(t, p, p.ref("app"))
	if n := s.times("w1", p.layers[0]); n != 3 {
		t.Errorf("asked %d times, want the layer in three parts", n)
	}
}

// TestShare_NewLeaderIsGivenTime breaks a transfer off because another manager
// leads, who does not know yet what the nodes have.
func TestShare_NewLeaderIsGivenTime(t *testing.T) {
	s := newSwarm(t)
	w1, w2, w3 := s.add("w1"), s.add("w2"), s.add("w3")
	p := paint(t, "app:1", 4<<20)
	w1.load(t, p)
	s.tell()
	s.expected.Store(4)
	told := make(chan struct{}, 1)
	tellLater := func() {
		time.AfterFunc(time.Second, func() {
			s.tell()
			told <- struct{}{}
		})
	}
	forget := sync.OnceFunc(func() {
		for id, n := range s.nodes {
			s.dir.Forget(id)
			n.told = nil
		}
		s.dir.Set("m1", &wire.Holdings{Complete: true})
		tellLater()
	})
	broken := cut(1<<20, 1)
	s.disturb("w1", func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				if e := recover(); e != nil {
					forget()
					panic(e)
				}
			}()
			broken(h).ServeHTTP(w, r)
		})
	})
	w2.pull(t, p.ref("app"))
	w2.whole(t, p, p.ref("app"))
	<-told

	s.dir.Forget("w1")
	w1.told = nil
	tellLater()
	if _, err := w3.Distribution(t.Context(), "app:1", nil); err != nil {
		t.Errorf("what a tag means: %v", err)
	}
	<-told
}

// TestShare_NodeThatIsGoneIsAskedOnce is about the time in which a session's end
// is not known yet.
func TestShare_NodeThatIsGoneIsAskedOnce(t *testing.T) {
	s := newSwarm(t)
	w1, w2, w3 := s.add("w1"), s.add("w2"), s.add("w3")
	p := paint(t, "app:1", 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000)
	w1.load(t, p)
	w2.load(t, p)
	s.tell()
	delete(s.nodes, "w1")
	w3.pull(t, p.ref("app"))
	w3.whole(t, p, p.ref("app"))
	if n := s.missed.Load(); n > 4 { // as many as are on their way at a time
		t.Errorf("the node that is gone was asked %d times", n)
	}
}

func TestShare_WrongBytesAreRefusedAndAnotherNodeIsAsked(t *testing.T) {
	s := newSwarm(t)
	w1, w2 := s.add("w1"), s.add("w2")
	p := paint(t, "app:1", 1000, 2000, 300_000, 4000, 5000, 6000)
	w1.load(t, p)
	w2.load(t, p)
	s.tell()
	s.disturb("w1", flip)
	for _, id := range []string{"w3", "w4", "w5"} {
		n := s.add(id)
		n.pull(t, p.ref("app"))
		n.whole(t, p, p.ref("app"))
	}
	asked := 0
	for _, l := range append(p.layers, p.target) {
		asked += s.times("w1", l)
	}
	if asked == 0 {
		t.Error("the bad node was never asked")
	}
}

func TestShare_WrongBytesOnlyLeaveNothing(t *testing.T) {
	s := newSwarm(t)
	w1, w2 := s.add("w1"), s.add("w2")
	p := paint(t, "app:1", 300_000)
	w1.load(t, p)
	s.tell()
	s.disturb("w1", flip)
	if err := w2.Pull(t.Context(), p.ref("app"), "", nil, nil); !errors.Is(err, errNoRegistry) {
		t.Errorf("got %v, want the registry to be asked last", err)
	}
	if held, _ := w2.Holdings(); len(held) > 0 {
		t.Errorf("holds %v", held)
	}
	if left, _ := filepath.Glob(filepath.Join(w2.path, "blobs/sha256/*")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestShare_OneDownloadForManyTasks(t *testing.T) {
	s := newSwarm(t)
	w1, w2 := s.add("w1"), s.add("w2")
	p := paint(t, "app:1", 2<<20, 1<<20, 50_000)
	w1.load(t, p)
	s.tell()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := w2.Pull(t.Context(), p.ref("app"), "", nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w2.whole(t, p, p.ref("app"))
	for i, l := range p.layers {
		if n := s.times("w1", l); n != 1 {
			t.Errorf("layer %d was fetched %d times", i, n)
		}
	}
}

func TestShare_ImageMayGoWhileItIsRead(t *testing.T) {
	s := newSwarm(t)
	w1, w2 := s.add("w1"), s.add("w2")
	p := paint(t, "app:1", 4<<20)
	w1.load(t, p)
	s.tell()
	s.disturb("w1", func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(&pruner{ResponseWriter: w, prune: func() {
				if digest.Digest(r.PathValue("digest")) != p.layers[0] {
					return
				}
				if _, err := w1.Remove(context.WithoutCancel(r.Context()), "app:1", true, true); err != nil && !errdefs.IsNotFound(err) {
					t.Error(err)
				}
			}}, r)
		})
	})
	w2.pull(t, p.ref("app"))
	w2.whole(t, p, p.ref("app"))
	if held, _ := w1.Holdings(); len(held) > 0 {
		t.Error("the image was not removed meanwhile")
	}
}

// pruner does something before the first byte.
type pruner struct {
	http.ResponseWriter
	prune func()
	once  sync.Once
}

func (p *pruner) Write(b []byte) (int, error) {
	p.once.Do(p.prune)
	return p.ResponseWriter.Write(b)
}

func TestShare_LayerThatIsHereIsFetchedOnlyToGoOn(t *testing.T) {
	s := newSwarm(t)
	w1, w2 := s.add("w1"), s.add("w2")
	p := paint(t, "app:1", 1<<20)
	w1.load(t, p)
	w2.load(t, p)
	s.tell()
	w2.pull(t, p.ref("app"))
	if n := s.times("w1", p.layers[0]); n != 0 {
		t.Errorf("fetched %d times what was here", n)
	}
}

func TestShare_HelloOfAnotherVersion(t *testing.T) {
	s := newSwarm(t)
	binary := func(content string) func(*images.Config) {
		path := filepath.Join(t.TempDir(), "skep")
		if err := os.WriteFile(path, bytes.Repeat([]byte(content), 10_000), 0o755); err != nil {
			t.Fatal(err)
		}
		return func(c *images.Config) { c.Hello = func() string { return path } }
	}
	old, next := s.add("m2", binary("old")), s.add("w1", binary("new"))
	found, err := old.Distribution(t.Context(), "skep/hello", nil)
	if err != nil {
		t.Fatal(err)
	}
	s.tell()
	pinned := "skep/hello:latest@" + found.Descriptor.Digest.String()
	next.pull(t, pinned)
	for _, n := range []*node{old, next} {
		fs, err := n.Rootfs(t.Context(), pinned)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(fs.Lower[0], "skep"))
		if err != nil || !bytes.HasPrefix(b, []byte("oldold")) {
			t.Errorf("%s runs %.6q, %v", n.id, b, err)
		}
		fs.Release()
	}
	// The node that got it gives it on.
	s.tell()
	s.gone("m2")
	s.add("w2", binary("third")).pull(t, pinned)
}

func TestShare_DistributionAsksTheSwarmBeforeTheRegistry(t *testing.T) {
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		if strings.Contains(r.URL.Path, "/manifests/") {
			_, _ = io.WriteString(w, `{"schemaVersion":2,"manifests":[]}`)
		}
	}))
	defer registry.Close()
	host := strings.TrimPrefix(registry.URL, "http://")
	theirs := digest.FromString(`{"schemaVersion":2,"manifests":[]}`)
	s := newSwarm(t)
	reach := func(c *images.Config) { c.Transport = http.DefaultTransport }
	w1, m2 := s.add("w1"), s.add("m2", reach)
	p := paint(t, "app:1", 1000)
	w1.load(t, p)
	if err := w1.Tag(t.Context(), "app:1", host+"/app:1"); err != nil {
		t.Fatal(err)
	}
	s.tell()
	digestOf := func(ref string) digest.Digest {
		t.Helper()
		d, err := m2.Distribution(t.Context(), ref, nil)
		if err != nil {
			t.Fatal(err)
		}
		return d.Descriptor.Digest
	}
	if got := digestOf(host + "/app:1"); got != theirs {
		t.Errorf("a worker's word for a tag was believed though the registry answers: %s", got)
	}
	// The registry cannot say anything of this one.
	s.nodes["m2"] = nil
	delete(s.nodes, "m2")
	m2 = s.add("m2")
	if got := digestOf(host + "/app:1"); got != p.target {
		t.Errorf("got %s though no registry answers", got)
	}
	m2 = s.add("m2", reach)
	m3 := s.add("m3")
	m3.load(t, p)
	if err := m3.Tag(t.Context(), "app:1", host+"/app:1"); err != nil {
		t.Fatal(err)
	}
	s.tell()
	if got := digestOf(host + "/app:1"); got != p.target {
		t.Errorf("got %s, want what a manager has", got)
	}
	d, err := m2.Distribution(t.Context(), p.ref(host+"/app"), nil)
	if err != nil || len(d.Platforms) != 1 || d.Descriptor.MediaType == "" {
		t.Errorf("by digest: %+v, %v", d, err)
	}
}

func TestHandler_GivesOnlyBlobsOfImages(t *testing.T) {
	s := newSwarm(t)
	w1 := s.add("w1")
	p := paint(t, "app:1", 1000)
	w1.load(t, p)
	stray := digest.FromString("stray")
	if err := os.WriteFile(filepath.Join(w1.path, "blobs/sha256", stray.Encoded()), []byte("stray"), 0o600); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(share.Pattern, share.Handler(func() string { return "w1" }, w1))
	for _, tt := range []struct {
		name, method, path, ranges string
		status                     int
		length                     int
	}{
		{"manifest", "GET", "/blobs/" + p.target.String(), "", 200, -1},
		{"layer", "GET", "/blobs/" + p.layers[0].String(), "", 200, 2560},
		{"its size", "HEAD", "/blobs/" + p.layers[0].String(), "", 200, 0},
		{"its end", "GET", "/blobs/" + p.layers[0].String(), "bytes=2550-", 206, 10},
		{"beyond its end", "GET", "/blobs/" + p.layers[0].String(), "bytes=2560-", 416, -1},
		{"of no image", "GET", "/blobs/" + stray.String(), "", 404, -1},
		{"not here", "GET", "/blobs/" + digest.FromString("x").String(), "", 404, -1},
		{"no digest", "GET", "/blobs/refs.json", "", 404, -1},
		{"a path", "GET", "/blobs/..%2f..%2frefs.json", "", 404, -1},
		{"to write", "PUT", "/blobs/" + p.target.String(), "", 405, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), tt.method, tt.path, nil)
			r.Header.Set("Range", tt.ranges)
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, r)
			if w.Code != tt.status || tt.length >= 0 && w.Body.Len() != tt.length {
				t.Errorf("got %d and %d bytes, want %d and %d", w.Code, w.Body.Len(), tt.status, tt.length)
			}
		})
	}
}

func TestRelay_OfFollowerGivesOnlyItsOwn(t *testing.T) {
	s := newSwarm(t)
	m2, w1 := s.add("m2"), s.add("w1")
	mine, theirs := paint(t, "mine:1", 1000), paint(t, "theirs:1", 1000)
	m2.load(t, mine)
	w1.load(t, theirs)
	s.tell()
	r := share.NewRelay(share.RelayConfig{
		NodeID: func() string { return "m2" }, Local: m2, Leading: func() error { return &control.NotLeader{Leader: s.m1} }, Directory: s.dir,
		Connect: s.connect, From: caller, Logger: s.log,
	})
	mux := http.NewServeMux()
	mux.Handle(share.Pattern, r)
	for path, want := range map[string]int{
		"/blobs/" + mine.target.String():                                             200,
		"/blobs/" + theirs.target.String() + "?image=" + theirs.target.String():      421,
		"/blobs/" + mine.target.String() + "?avoid=m2&image=" + mine.target.String(): 421,
		"/blobs/sha256:x": 400,
	} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
		if w.Code != want {
			t.Errorf("%s: %d %s, want %d", path, w.Code, w.Body, want)
		}
	}
}

// TestRelay_OneNodeCannotTakeAllOfIt begins transfers that nobody reads.
func TestRelay_OneNodeCannotTakeAllOfIt(t *testing.T) {
	s := newSwarm(t)
	w1 := s.add("w1")
	p := paint(t, "app:1", 16<<20)
	w1.load(t, p)
	s.tell()
	greedy, modest := s.add("w2"), s.add("w3")
	ask := func(n *node) error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/blobs/"+p.layers[0].String()+"?image="+p.target.String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		// One connection's window would be full of what nobody reads.
		resp, err := n.dial().Do(t.Context(), s.m1, req)
		if err == nil {
			t.Cleanup(func() { _ = resp.Body.Close() })
		}
		return err
	}
	full := 0
	for range 20 {
		if err := ask(greedy); errdefs.IsResourceExhausted(err) {
			full++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if full != 14 {
		t.Errorf("%d of 20 were refused, want all but 6", full)
	}
	if err := ask(modest); err != nil {
		t.Errorf("another node: %v", err)
	}
}

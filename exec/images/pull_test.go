package images_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/moby/moby/api/types/jsonstream"

	"skep/exec/images"
	registries "skep/exec/registry"
)

func TestPull_UnpacksAndSpeaksLikeDocker(t *testing.T) {
	host := serve(t)
	img := image(t, runtime.GOARCH, layer(t, file{name: "etc/app", body: "one"}), layer(t, file{name: "bin/app", body: "two", mode: 0o755}))
	push(t, host+"/demo/app:1", img)
	n := open(t)
	ref := host + "/demo/app:1"

	var tr transcript
	if err := n.Pull(t.Context(), ref, "", nil, tr.add); err != nil {
		t.Fatal(err)
	}
	tr.has(t, "1: Pulling from demo/app")
	tr.has(t, ": Pulling fs layer")
	tr.has(t, ": Download complete")
	tr.has(t, ": Pull complete")
	tr.has(t, "Digest: "+digestOf(t, img))
	tr.has(t, "Status: Downloaded newer image for "+ref)

	fs, err := n.Rootfs(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Release()
	if got := read(t, fs, "etc/app") + read(t, fs, "bin/app"); got != "onetwo" {
		t.Errorf("files hold %q", got)
	}
	if !slices.Equal(fs.Config.Cmd, []string{"/bin/app"}) {
		t.Errorf("cmd = %q", fs.Config.Cmd)
	}
	config, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	if fs.ID != config.String() {
		t.Errorf("ID = %s, want that of the config, %s", fs.ID, config)
	}

	tr = transcript{}
	if err := n.Pull(t.Context(), ref, "", nil, tr.add); err != nil {
		t.Fatal(err)
	}
	tr.has(t, "Already exists")
	tr.has(t, "Status: Image is up to date for "+ref)
	if got, want := n.told(), []string{"pull " + host + "/demo/app", "pull " + host + "/demo/app"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
	n.tidy(t)

	n.reopen(t) // what is on record outlives the process
	for _, name := range []string{ref, host + "/demo/app@" + digestOf(t, img), fs.ID, fs.ID[7:19]} {
		again, err := n.Rootfs(t.Context(), name)
		if err != nil {
			t.Errorf("after reopening: %v", err)
			continue
		}
		again.Release()
	}
}

func TestPull_ChoosesThePlatform(t *testing.T) {
	host := serve(t)
	mine := image(t, runtime.GOARCH, layer(t, file{name: "arch", body: "mine"}))
	other := image(t, "s390x", layer(t, file{name: "arch", body: "other"}))
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: mine, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}},
	)
	push(t, host+"/multi", index)
	n := open(t)
	for _, tt := range []struct{ platform, want string }{{"", "mine"}, {"linux/s390x", "other"}} {
		if err := n.Pull(t.Context(), host+"/multi", tt.platform, nil, nil); err != nil {
			t.Fatal(err)
		}
		fs, err := n.Rootfs(t.Context(), host+"/multi")
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, fs, "arch"); got != tt.want {
			t.Errorf("platform %q: arch holds %q, want %q", tt.platform, got, tt.want)
		}
		fs.Release()
	}
	var b bytes.Buffer
	if err := n.Save(t.Context(), []string{host + "/multi"}, &b); err != nil {
		t.Fatal(err)
	}
	m := open(t)
	if err := m.Load(t.Context(), &b, nil); err != nil {
		t.Fatal(err)
	}
	if !m.Has(t, host+"/multi@"+digestOf(t, index)) {
		t.Error("the saved image lost the digest of its index")
	}
	list, err := n.List(t.Context())
	if err != nil || len(list) != 2 {
		t.Errorf("%d images (%v), want the first platform's kept beside the second's", len(list), err)
	}
	err = n.Pull(t.Context(), host+"/multi", "linux/riscv64", nil, nil)
	if !errors.Is(err, errdefs.ErrNotFound) || err.Error() != "no matching manifest for linux/riscv64 in the manifest list entries" {
		t.Errorf("unknown platform: %v", err)
	}
}

func TestPull_ExplainsWhatIsMissing(t *testing.T) {
	host := serve(t)
	push(t, host+"/app:1", image(t, runtime.GOARCH, layer(t, file{name: "a"})))
	n := open(t)
	for _, tt := range []struct{ ref, want string }{
		{host + "/app:2", "manifest for " + host + "/app:2 not found: manifest unknown: manifest unknown"},
		{host + "/nope:1", "pull access denied for " + host + "/nope, repository does not exist or may require 'docker login': denied: requested access to the resource is denied"},
	} {
		err := n.Pull(t.Context(), tt.ref, "", nil, nil)
		if err == nil || err.Error() != tt.want || !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("pull %s: %v\nwant %s", tt.ref, err, tt.want)
		}
	}
	if err := n.Pull(t.Context(), "UpperCase", "", nil, nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("bad reference: %v", err)
	}
	if _, err := n.Rootfs(t.Context(), "nope"); err == nil || err.Error() != "No such image: nope:latest" {
		t.Errorf("rootfs of what is not there: %v", err)
	}
}

func TestMirrorsAreAskedFirst(t *testing.T) {
	var asked atomic.Int32
	mirror := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/manifests/") {
				asked.Add(1)
			}
			h.ServeHTTP(w, r)
		})
	})
	push(t, mirror+"/library/app:1", image(t, runtime.GOARCH, layer(t, file{name: "a", body: "mirrored"})))
	asked.Store(0)
	n := open(t, func(c *images.Config) {
		c.Registries = []registries.Host{{Host: "docker.io", Mirrors: []string{"http://" + mirror}}}
	})
	if err := n.Pull(t.Context(), "app:1", "", nil, nil); err != nil {
		t.Fatal(err)
	}
	if asked.Load() == 0 {
		t.Error("the mirror was not asked")
	}
	fs, err := n.Rootfs(t.Context(), "docker.io/library/app:1")
	if err != nil {
		t.Fatal(err)
	}
	fs.Release()
}

func TestPlainHTTPIsOnlyForThisMachine(t *testing.T) {
	asked := false
	n := open(t, func(c *images.Config) {
		c.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.URL.Scheme == "http" {
				asked = true
			}
			return nil, errors.New("no TLS there")
		})
	})
	for _, ref := range []string{"10.0.0.1:5000/app", "registry.example/app", "box.local:5000/app"} {
		if err := n.Pull(t.Context(), ref, "", nil, nil); err == nil || asked {
			t.Errorf("pull %s: %v, plain HTTP used: %v", ref, err, asked)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestPull_TwiceAtOnceDownloadsOnce(t *testing.T) {
	var blobs atomic.Int32
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:") {
				blobs.Add(1)
			}
			h.ServeHTTP(w, r)
		})
	})
	big := strings.Repeat("0123456789abcdef", 1<<16)
	push(t, host+"/app:1", image(t, runtime.GOARCH, layer(t, file{name: "a", body: big}), layer(t, file{name: "b", body: big + "b"})))
	n := open(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := n.Pull(t.Context(), host+"/app:1", "", nil, func(jsonstream.Message) {}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := blobs.Load(); got > 2+4 { // the config may be read by each
		t.Errorf("%d blobs read for 2 layers and 4 configs", got)
	}
	n.tidy(t)
}

func TestPull_GoesOnWhereItBroke(t *testing.T) {
	var cut atomic.Int32
	var ranged atomic.Bool
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				ranged.Store(true)
			}
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:") && cut.Add(1) <= 3 {
				w = &cutter{ResponseWriter: w, left: 300}
			}
			h.ServeHTTP(w, r)
		})
	})
	body := make([]byte, 1<<20)
	for i := range body {
		body[i] = byte(i * i >> 8)
	}
	push(t, host+"/app:1", image(t, runtime.GOARCH, layer(t, file{name: "a", body: string(body)})))
	n := open(t)
	if err := n.Pull(t.Context(), host+"/app:1", "", nil, nil); err != nil {
		t.Fatal(err)
	}
	if !ranged.Load() {
		t.Error("no request for the rest of a blob")
	}
	n.tidy(t)
}

// cutter breaks the connection after some bytes.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

func TestPull_EndsWithItsContext(t *testing.T) {
	started := make(chan struct{})
	var once sync.Once
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				once.Do(func() { close(started) })
				<-r.Context().Done()
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	push(t, host+"/app:1", image(t, runtime.GOARCH, layer(t, file{name: "a"})))
	n := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	if err := n.Pull(ctx, host+"/app:1", "", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("pull: %v", err)
	}
	n.tidy(t)
}

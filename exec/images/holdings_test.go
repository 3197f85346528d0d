package images_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"runtime"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"skep/exec/images"
	"skep/store/object"
)

// held are the names of what a node holds whole; an image without one is its digest.
func held(n *node) (names []string) {
	holdings, _ := n.Holdings()
	for _, h := range holdings {
		if len(h.Names) == 0 {
			names = append(names, h.Target.Digest.String())
		}
		names = append(names, h.Names...)
	}
	slices.Sort(names)
	return names
}

func TestHoldings_ChangeWithNews(t *testing.T) {
	n := open(t)
	archive := saved(t, "app:1", image(t, runtime.GOARCH, layer(t, file{name: "f"})))
	for _, tt := range []struct {
		name string
		do   func() error
		want []string
	}{
		{"load", func() error { return n.Load(t.Context(), bytes.NewReader(archive), nil) }, []string{"docker.io/library/app:1"}},
		{"tag", func() error { return n.Tag(t.Context(), "app:1", "reg.example/b:2") }, []string{"docker.io/library/app:1", "reg.example/b:2"}},
		{"untag", func() error {
			_, err := n.Remove(t.Context(), "app:1", false, true)
			return err
		}, []string{"reg.example/b:2"}},
		{"remove", func() error {
			_, err := n.Remove(t.Context(), "reg.example/b:2", false, true)
			return err
		}, nil},
	} {
		before, news := n.Holdings()
		select {
		case <-news:
			t.Fatalf("news before %s", tt.name)
		default:
		}
		if err := tt.do(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-news:
		default:
			t.Errorf("no news of %s", tt.name)
		}
		if got := held(n); !slices.Equal(got, tt.want) {
			t.Errorf("after %s: %q, want %q (before: %v)", tt.name, got, tt.want, before)
		}
	}
}

// TestHoldings_AreWhole has the same layer in two forms: from the compressed one
// the other can be made, and not the other way round.
func TestHoldings_AreWhole(t *testing.T) {
	host := serve(t)
	files := []file{{name: "f", body: "the layer"}}
	packed := image(t, runtime.GOARCH, layer(t, files...))
	plain := image(t, runtime.GOARCH)
	tar := tarOf(t, files...)
	plain, err := mutate.AppendLayers(plain, static.NewLayer(tar, types.OCIUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	push(t, host+"/packed:1", packed)
	push(t, host+"/plain:1", plain)
	for _, tt := range []struct{ pulled, want []string }{
		{[]string{"/packed:1", "/plain:1"}, []string{host + "/packed:1", host + "/plain:1"}},
		{[]string{"/plain:1", "/packed:1"}, []string{host + "/plain:1"}},
	} {
		n := open(t)
		for _, name := range tt.pulled {
			if err := n.Pull(t.Context(), host+name, "", nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		if got := held(n); !slices.Equal(got, tt.want) {
			t.Errorf("%v: holds %q, want %q", tt.pulled, got, tt.want)
		}
		f, err := n.Blob(t.Context(), digest.FromBytes(tar))
		if err != nil {
			t.Errorf("%v: the plain layer: %v", tt.pulled, err)
			continue
		}
		got, err := digest.FromReader(f)
		_ = f.Close()
		if err != nil || got != digest.FromBytes(tar) {
			t.Errorf("%v: the plain layer is %s, %v", tt.pulled, got, err)
		}
		if _, err := n.Prune(t.Context(), false, nil); err != nil {
			t.Error(err)
		}
		n.empty(t)
		if _, err := n.Blob(t.Context(), digest.FromBytes(tar)); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("after prune: %v", err)
		}
	}
}

// neighbour is another node's store as a source.
type neighbour struct {
	*node
	asked []digest.Digest
}

func (n *neighbour) Resolve(_ context.Context, name string) (images.Found, error) {
	holdings, _ := n.Holdings()
	for _, h := range holdings {
		if slices.Contains(h.Names, name) {
			return images.Found{Descriptor: h.Target, Platforms: h.Platforms}, nil
		}
	}
	return images.Found{}, object.Errorf(errdefs.ErrNotFound, "no %s", name)
}

func (n *neighbour) Blob(ctx context.Context, q images.Query) (images.Part, error) {
	f, err := n.node.Blob(ctx, q.Digest)
	if err != nil || len(q.Avoid) > 0 {
		return images.Part{}, object.Errorf(errdefs.ErrNotFound, "no %s", q.Digest)
	}
	n.asked = append(n.asked, q.Digest)
	fi, err := f.Stat()
	return images.Part{Body: f, From: "neighbour", Size: fi.Size()}, err
}

func beside(n *neighbour, registry http.RoundTripper) func(*images.Config) {
	return func(c *images.Config) { c.Source, c.Transport = n, registry }
}

type nothing struct{}

func (nothing) RoundTrip(*http.Request) (*http.Response, error) { return nil, errors.New("down") }

func TestPull_OfIndexFromNeighbour(t *testing.T) {
	host := serve(t)
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{
			Add:        image(t, "s390x", layer(t, file{name: "other"})),
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}},
		},
		mutate.IndexAddendum{
			Add:        image(t, runtime.GOARCH, layer(t, file{name: "mine"})),
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}},
		},
	)
	push(t, host+"/multi:1", index)
	first := &neighbour{node: open(t)}
	if err := first.Pull(t.Context(), host+"/multi:1", "", nil, nil); err != nil {
		t.Fatal(err)
	}
	pinned := host + "/multi@" + digestOf(t, index)
	n := open(t, beside(first, nothing{}))
	if err := n.Pull(t.Context(), pinned, "", nil, nil); err != nil {
		t.Fatal(err)
	}
	if !n.Has(t, pinned) || len(held(n)) != 1 {
		t.Errorf("holds %q", held(n))
	}
	d, platforms, err := n.Resolve(t, pinned)
	if err != nil || d != digestOf(t, index) || len(platforms) != 2 {
		t.Errorf("distribution: %s %v %v", d, platforms, err)
	}
	if err := n.Pull(t.Context(), pinned, "linux/s390x", nil, nil); err == nil {
		t.Error("pulled a platform that nobody has")
	}
	if !n.Has(t, pinned) {
		t.Error("the failed pull took the image away")
	}
}

// TestPull_FromNeighbourCanGoOn fetches the blob of a layer that is unpacked
// already from another form, because no registry has it.
func TestPull_FromNeighbourCanGoOn(t *testing.T) {
	files := []file{{name: "f", body: "the layer"}}
	plain, err := mutate.AppendLayers(image(t, runtime.GOARCH), static.NewLayer(tarOf(t, files...), types.OCIUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	packed := image(t, runtime.GOARCH, layer(t, files...))
	first := &neighbour{node: open(t)}
	if err := first.Load(t.Context(), bytes.NewReader(saved(t, "packed:1", packed)), nil); err != nil {
		t.Fatal(err)
	}
	n := open(t, beside(first, nothing{}))
	if err := n.Load(t.Context(), bytes.NewReader(saved(t, "plain:1", plain)), nil); err != nil {
		t.Fatal(err)
	}
	if err := n.Pull(t.Context(), "packed:1", "", nil, nil); err != nil {
		t.Fatal(err)
	}
	want := []string{"docker.io/library/packed:1", "docker.io/library/plain:1"}
	if got := held(n); !slices.Equal(got, want) {
		t.Errorf("holds %q, want %q", got, want)
	}
	asked := len(first.asked)
	if err := n.Pull(t.Context(), "packed:1", "", nil, nil); err != nil || len(first.asked) > asked+1 {
		t.Errorf("pulled again: %v, asked for %v", err, first.asked[asked:])
	}
	if err := n.Pull(t.Context(), "none:1", "", nil, nil); err == nil || err.Error() == "no none:1" {
		t.Errorf("want the registry's error, got %v", err)
	}
	n.tidy(t)
}

package directory_test

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/appliance/manager/directory"
	"skep/appliance/wire"
	"skep/store/object"
)

func open() *directory.Directory {
	return directory.New(directory.Config{
		Manager: func(node string) bool { return strings.HasPrefix(node, "m") },
		Nodes:   func() int { return 2 },
		Logger:  slog.New(slog.DiscardHandler),
	})
}

func id(n int) digest.Digest { return digest.FromString(fmt.Sprint(n)) }

// image is the n-th image under names of docker.io/library.
func image(n int, names ...string) wire.Image {
	i := wire.Image{Descriptor: ocispec.Descriptor{Digest: id(n), Size: int64(n), MediaType: ocispec.MediaTypeImageIndex}}
	for _, name := range names {
		i.Names = append(i.Names, "docker.io/library/"+name)
	}
	return i
}

func has(images ...wire.Image) *wire.Holdings { return &wire.Holdings{Complete: true, Images: images} }

func TestLookup(t *testing.T) {
	low, high := 1, 2
	if id(low) > id(high) {
		low, high = high, low
	}
	for _, tt := range []struct {
		name    string
		nodes   map[string]*wire.Holdings
		ask     string
		want    int // 0: nothing
		vouched bool
	}{
		{"nobody", nil, "app", 0, false},
		{"another tag", map[string]*wire.Holdings{"w1": has(image(1, "app:2"))}, "app", 0, false},
		{"a worker", map[string]*wire.Holdings{"w1": has(image(1, "app:latest"))}, "app", 1, false},
		{"a manager", map[string]*wire.Holdings{"m1": has(image(1, "app:latest"))}, "docker.io/library/app:latest", 1, true},
		{"most", map[string]*wire.Holdings{
			"w1": has(image(low, "app:1")), "w2": has(image(high, "app:1")), "w3": has(image(high, "app:1")),
		}, "app:1", high, false},
		{"the smaller of as many", map[string]*wire.Holdings{
			"w1": has(image(high, "app:1")), "w2": has(image(low, "app:1")),
		}, "app:1", low, false},
		{"a manager against more workers", map[string]*wire.Holdings{
			"w1": has(image(high, "app:1")), "w2": has(image(high, "app:1")), "m1": has(image(low, "app:1")),
		}, "app:1", low, true},
		{"a manager with another name", map[string]*wire.Holdings{
			"w1": has(image(1, "app:1")), "m1": has(image(1, "mine:1")),
		}, "app:1", 1, false},
		{"digest", map[string]*wire.Holdings{"w1": has(image(1))}, "other/name@" + id(1).String(), 1, true},
		{"digest of nothing", map[string]*wire.Holdings{"w1": has(image(1))}, "app@" + id(2).String(), 0, false},
		{"tag and digest", map[string]*wire.Holdings{"w1": has(image(1))}, "app:7@" + id(1).String(), 1, true},
		{"no name", map[string]*wire.Holdings{"w1": has(image(1))}, "APP", 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := open()
			for node, h := range tt.nodes {
				d.Set(node, h)
			}
			got, vouched, ok := d.Lookup(tt.ask)
			if ok != (tt.want > 0) || vouched != tt.vouched || ok && got.Descriptor.Digest != id(tt.want) {
				t.Errorf("got %v, vouched for: %v, found: %v", got, vouched, ok)
			}
		})
	}
}

func TestSet_CompleteAndThenWhatChanges(t *testing.T) {
	d := open()
	holders := func(n int, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, d.Holders(id(n))); diff != "" {
			t.Errorf("holders of %d (-want +got):\n%s", n, diff)
		}
	}
	d.Set("w2", has(image(1, "a:1"), image(2, "b:1")))
	d.Set("w1", has(image(1, "a:1")))
	holders(1, "w1", "w2")
	holders(2, "w2")
	d.Set("w2", &wire.Holdings{Images: []wire.Image{image(3, "c:1")}, Gone: []digest.Digest{id(1), id(9)}})
	holders(1, "w1")
	holders(2, "w2")
	holders(3, "w2")
	d.Set("w2", &wire.Holdings{Images: []wire.Image{image(2, "b:2")}}) // it was renamed
	if _, _, ok := d.Lookup("b:1"); ok {
		t.Error("the old name is still known")
	}
	if _, _, ok := d.Lookup("b:2"); !ok {
		t.Error("the new name is not known")
	}
	d.Set("w2", has(image(4)))
	holders(2)
	holders(3)
	holders(4, "w2")
	d.Set("w2", nil)
	holders(4)
	holders(1, "w1")
}

func TestComplete_WhenAllToldOrHadTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := open()
		for _, step := range []struct {
			name string
			do   func()
			want bool
		}{
			{"nobody told", func() { time.Sleep(time.Minute) }, false},
			{"one of two told", func() { d.Set("w1", has()) }, false},
			{"both told", func() { d.Set("m1", has(image(1))) }, true},
			{"one left", func() { d.Forget("m1") }, false},
			{"and had the time to come back", func() { time.Sleep(6 * time.Second) }, true},
			{"a new term", func() {
				d.Forget("w1")
				d.Set("w1", has())
			}, false},
		} {
			step.do()
			if got := d.Complete(); got != step.want {
				t.Errorf("%s: complete: %v", step.name, got)
			}
		}
	})
}

func TestSet_RefusesWhatIsTooMuchOrWrong(t *testing.T) {
	many := func(n int) (names []string) {
		for i := range n {
			names = append(names, fmt.Sprintf("app:%d", i))
		}
		return names
	}
	bad := image(1)
	bad.Descriptor.Digest = "sha256:../../x"
	negative := image(1)
	negative.Descriptor.Size = -1
	wide := image(1)
	wide.Platforms = make([]ocispec.Platform, 65)
	for _, tt := range []struct {
		name  string
		image wire.Image
		ok    bool
	}{
		{"as it should be", image(1, many(128)...), true},
		{"many names", image(1, many(129)...), false},
		{"no digest", bad, false},
		{"size", negative, false},
		{"many platforms", wide, false},
		{"short name", wire.Image{Descriptor: image(1).Descriptor, Names: []string{"app:1"}}, false},
		{"name without tag", wire.Image{Descriptor: image(1).Descriptor, Names: []string{"docker.io/library/app"}}, false},
		{"pinned name", wire.Image{Descriptor: image(1).Descriptor, Names: []string{"docker.io/library/app@" + id(1).String()}}, false},
		{"bad name", wire.Image{Descriptor: image(1).Descriptor, Names: []string{"docker.io/library/:::"}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := open()
			d.Set("w1", has(tt.image, image(2)))
			if got := len(d.Holders(tt.image.Descriptor.Digest)) > 0; got != tt.ok {
				t.Errorf("noted: %v, want %v", got, tt.ok)
			}
			if len(d.Holders(id(2))) != 1 {
				t.Error("the good one beside it was not noted")
			}
		})
	}
	t.Run("many images", func(t *testing.T) {
		d := open()
		h := has()
		for n := range 10_001 {
			h.Images = append(h.Images, image(n))
		}
		d.Set("w1", h)
		if len(d.Holders(id(9_999))) != 1 || len(d.Holders(id(10_000))) != 0 {
			t.Error("want the first 10,000")
		}
		d.Set("w2", has(image(10_000)))
		if len(d.Holders(id(10_000))) != 1 {
			t.Error("one node's images count against another's")
		}
	})
	t.Run("much text", func(t *testing.T) {
		d := open()
		h := has()
		for n := range 400 {
			var names []string
			for i := range 100 {
				names = append(names, fmt.Sprintf("%s:%d", strings.Repeat("n", 200), i))
			}
			h.Images = append(h.Images, image(n, names...))
		}
		d.Set("w1", h)
		noted := 0
		for n := range 400 {
			noted += len(d.Holders(id(n)))
		}
		if noted == 0 || noted > 300 {
			t.Errorf("%d images with 30 kB of names each were noted", noted)
		}
	})
}

// FuzzSet takes in whatever a node says, and forgets it without a trace.
func FuzzSet(f *testing.F) {
	for _, h := range []*wire.Holdings{
		has(image(1, "a:1"), image(2, "a:1", "a:1", "b:2"), image(1, "c:1")),
		{Images: []wire.Image{image(1, "a:2")}, Gone: []digest.Digest{id(1), id(2), id(2)}},
	} {
		b, err := object.Encode(h)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var h wire.Holdings
		if object.Decode(b, &h) != nil {
			return
		}
		d := open()
		d.Set("w1", has(image(1, "a:1")))
		d.Set("w2", &h)
		d.Set("w2", &h)
		for _, i := range h.Images {
			if slices.Contains(d.Holders(i.Descriptor.Digest), "w2") && i.Descriptor.Digest.Validate() != nil {
				t.Errorf("noted %q", i.Descriptor.Digest)
			}
			for _, name := range i.Names {
				if got, _, ok := d.Lookup(name); ok && len(d.Holders(got.Descriptor.Digest)) == 0 {
					t.Errorf("%q means %s, which nobody has", name, got.Descriptor.Digest)
				}
			}
		}
		d.Forget("w2")
		if diff := cmp.Diff([]string{"w1"}, d.Holders(id(1))); diff != "" {
			t.Errorf("another node's image (-want +got):\n%s", diff)
		}
		for _, i := range h.Images {
			if slices.Contains(d.Holders(i.Descriptor.Digest), "w2") {
				t.Errorf("%s was not forgotten", i.Descriptor.Digest)
			}
			for _, name := range i.Names {
				if got, _, ok := d.Lookup(name); ok && got.Descriptor.Digest != id(1) {
					t.Errorf("%q still means %s", name, got.Descriptor.Digest)
				}
			}
		}
	})
}

// BenchmarkSet takes in 1,000 images of one node, of 100.
func BenchmarkSet(b *testing.B) {
	d := open()
	h := has()
	for n := range 1000 {
		h.Images = append(h.Images, image(n, fmt.Sprintf("app:%d", n)))
	}
	for n := range 100 {
		d.Set(fmt.Sprint("w", n), h)
	}
	b.ReportAllocs()
	for b.Loop() {
		d.Set("w1", h)
	}
}

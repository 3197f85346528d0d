package wire_test

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/appliance/wire"
)

// TestNewHoldings_FitFramesAndAddUp sends what changes over a connection and
// puts it together again.
func TestNewHoldings_FitFramesAndAddUp(t *testing.T) {
	set := func(from, to int, tag string) map[digest.Digest]wire.Image {
		images := map[digest.Digest]wire.Image{}
		for n := from; n < to; n++ {
			d := digest.FromString(fmt.Sprint(n))
			images[d] = wire.Image{
				Descriptor: ocispec.Descriptor{Digest: d, Size: 1, MediaType: ocispec.MediaTypeImageManifest},
				Names:      []string{strings.Repeat("n", 200) + tag, fmt.Sprint(n, tag)},
				Platforms:  []ocispec.Platform{{OS: "linux", Architecture: "amd64"}},
			}
		}
		return images
	}
	var before map[digest.Digest]wire.Image
	got := map[digest.Digest]wire.Image{}
	for i, tt := range []struct {
		now   map[digest.Digest]wire.Image
		parts int // at least; 0 is none
	}{
		{set(0, 0, ""), 1}, // a node without images says so
		{set(0, 5000, ""), 3},
		{set(0, 5000, ""), 0},
		{set(10, 5001, ""), 1},
		{set(10, 5001, "x"), 3},
		{set(0, 0, ""), 1},
	} {
		parts := wire.NewHoldings(before, tt.now)
		if len(parts) < tt.parts || tt.parts == 0 && len(parts) > 0 {
			t.Errorf("step %d: %d parts, want %d", i, len(parts), tt.parts)
		}
		for n, part := range parts {
			h := pass(t, part)
			if h.Complete != (before == nil && n == 0) {
				t.Errorf("step %d: part %d is complete: %v", i, n, h.Complete)
			}
			for _, image := range h.Images {
				got[image.Descriptor.Digest] = image
			}
			for _, d := range h.Gone {
				delete(got, d)
			}
		}
		if diff := cmp.Diff(tt.now, got); diff != "" {
			t.Fatalf("step %d (-want +got):\n%.2000s", i, diff)
		}
		before = tt.now
	}
	huge := set(0, 2, "")
	first := slices.Sorted(maps.Keys(huge))[0]
	huge[first] = wire.Image{Names: []string{strings.Repeat("n", wire.MaxFrame)}}
	parts := wire.NewHoldings(nil, huge)
	if len(parts) != 1 || len(parts[0].Images) != 1 {
		t.Errorf("want the one that fits a frame: %d parts", len(parts))
	}
}

// pass sends a message from one end of a connection to the other.
func pass(t *testing.T, h *wire.Holdings) *wire.Holdings {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	sent := make(chan error, 1)
	go func() { sent <- wire.NewConn(a).Send(&wire.Message{Holdings: h}, 5*time.Second) }()
	m, err := wire.NewConn(b).Receive(5 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	return m.Holdings
}

package images_test

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	api "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"

	"skep/exec/images"
)

// load puts an image under a name into a store and returns its ID.
func load(t *testing.T, n *node, tag, content string) string {
	t.Helper()
	img := image(t, runtime.GOARCH, layer(t, file{name: "f", body: content}))
	if err := n.Load(t.Context(), bytes.NewReader(saved(t, tag, img)), nil); err != nil {
		t.Fatal(err)
	}
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

func untagged(r []api.DeleteResponse) []string {
	var s []string
	for _, d := range r {
		if d.Untagged != "" {
			s = append(s, "untagged "+d.Untagged)
		} else {
			s = append(s, "deleted "+d.Deleted)
		}
	}
	return s
}

func TestRemove(t *testing.T) {
	n := open(t)
	id := load(t, n, "a:1", "a")
	if err := n.Tag(t.Context(), "a:1", "a:2"); err != nil {
		t.Fatal(err)
	}
	got, err := n.Remove(t.Context(), "a:1", false, true)
	if want := []string{"untagged a:1"}; err != nil || !slices.Equal(untagged(got), want) {
		t.Errorf("remove one of two names: %v, %v", untagged(got), err)
	}
	got, err = n.Remove(t.Context(), "a:2", false, true)
	if want := []string{"untagged a:2", "deleted " + id}; err != nil || !slices.Equal(untagged(got), want) {
		t.Errorf("remove the last name: %v, %v, want %v", untagged(got), err, want)
	}
	if _, err := n.Remove(t.Context(), "a:2", false, true); err == nil || err.Error() != "No such image: a:2" {
		t.Errorf("remove again: %v", err)
	}
	n.empty(t)
	if got, want := n.told(), []string{"load a:1", "tag a:2", "untag a:1", "untag a:2", "delete " + id}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestRemove_ByIDNeedsForceForSeveralRepositories(t *testing.T) {
	n := open(t)
	id := load(t, n, "a:1", "a")
	if err := n.Tag(t.Context(), id, "b:1"); err != nil {
		t.Fatal(err)
	}
	short := strings.TrimPrefix(id, "sha256:")[:12]
	_, err := n.Remove(t.Context(), short, false, true)
	want := "conflict: unable to delete " + short + " (must be forced) - image is referenced in multiple repositories"
	if err == nil || err.Error() != want || !errors.Is(err, errdefs.ErrConflict) {
		t.Errorf("got %v, want %s", err, want)
	}
	got, err := n.Remove(t.Context(), short, true, true)
	if want := []string{"untagged a:1", "untagged b:1", "deleted " + id}; err != nil || !slices.Equal(untagged(got), want) {
		t.Errorf("forced: %v, %v", untagged(got), err)
	}
	n.empty(t)
}

func TestRemove_OfWhatIsInUse(t *testing.T) {
	n := open(t)
	id := load(t, n, "a:1", "a")
	short := strings.TrimPrefix(id, "sha256:")[:12]
	use := func(running bool) { n.users[id] = []images.User{{Container: "0123456789abcdef", Running: running}} }
	refused := func(ref string, force bool, want string) {
		t.Helper()
		_, err := n.Remove(t.Context(), ref, force, true)
		if err == nil || err.Error() != want || !errors.Is(err, errdefs.ErrConflict) {
			t.Errorf("remove %s: %v\nwant %s", ref, err, want)
		}
	}
	use(false)
	refused("a:1", false, `conflict: unable to remove repository reference "a:1" (must force) - container 0123456789ab is using its referenced image `+short)
	refused(id, false, "conflict: unable to delete "+short+" (must be forced) - image is being used by stopped container 0123456789ab")
	use(true)
	refused(id, true, "conflict: unable to delete "+short+" (cannot be forced) - image is being used by running container 0123456789ab")
	if report, err := n.Prune(t.Context(), false, nil); err != nil || len(report.ImagesDeleted) > 0 {
		t.Errorf("prune removed %v, %v", report, err)
	}
	got, err := n.Remove(t.Context(), "a:1", true, true)
	if want := []string{"untagged a:1"}; err != nil || !slices.Equal(untagged(got), want) {
		t.Errorf("forced: %v, %v", untagged(got), err)
	}
	fs, err := n.Rootfs(t.Context(), id)
	if err != nil || read(t, fs, "f") != "a" {
		t.Fatalf("the container's image is gone: %v", err)
	}
	fs.Release()
	n.users = nil
	if report, err := n.Prune(t.Context(), true, nil); err != nil || len(report.ImagesDeleted) != 1 || report.SpaceReclaimed == 0 {
		t.Errorf("prune: %+v, %v", report, err)
	}
	n.empty(t)
}

func TestPrune(t *testing.T) {
	n := open(t)
	load(t, n, "a:1", "a")
	b := load(t, n, "b:1", "b")
	load(t, n, "a:1", "a moved") // the first is dangling now
	if report, err := n.Prune(t.Context(), true, nil); err != nil || len(report.ImagesDeleted) != 1 {
		t.Errorf("dangling: %+v, %v", report, err)
	}
	report, err := n.Prune(t.Context(), false, func(s api.Summary) bool { return s.ID == b })
	if err != nil || len(report.ImagesDeleted) != 2 {
		t.Errorf("all but one: %v, %v", untagged(report.ImagesDeleted), err)
	}
	list, err := n.List(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != b {
		t.Errorf("left: %+v, %v", list, err)
	}
	n.tidy(t)
}

func TestPrune_LeavesTheLayersOfAContainerThatIsBeingMade(t *testing.T) {
	n := open(t)
	load(t, n, "a:1", "a")
	fs, err := n.Rootfs(t.Context(), "a:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Prune(t.Context(), false, nil); err != nil {
		t.Fatal(err)
	}
	if got := read(t, fs, "f"); got != "a" {
		t.Errorf("f holds %q", got)
	}
	fs.Release()
	if _, err := n.Prune(t.Context(), false, nil); err != nil {
		t.Fatal(err)
	}
	n.empty(t)
}

func TestOpen_WipesWhatACrashLeft(t *testing.T) {
	n := open(t)
	id := load(t, n, "a:1", "a")
	for _, p := range []string{"tmp/blobs/blob-1", "tmp/layers/layer-1/fs/etc/x"} {
		p = filepath.Join(n.dir, p)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.reopen(t)
	n.tidy(t)
	if !n.Has(t, id) {
		t.Error("the image is gone")
	}
}

func TestInspectListAndHistory(t *testing.T) {
	host := serve(t)
	img := image(t, runtime.GOARCH, layer(t, file{name: "a", body: "12345"}), layer(t, file{name: "b", body: "123"}))
	push(t, host+"/app:1", img)
	n := open(t)
	if err := n.Pull(t.Context(), host+"/app:1", "", nil, nil); err != nil {
		t.Fatal(err)
	}
	i, err := n.Inspect(t.Context(), host+"/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if want := host + "/app@" + digestOf(t, img); !slices.Equal(i.RepoDigests, []string{want}) || !slices.Equal(i.RepoTags, []string{host + "/app:1"}) {
		t.Errorf("names %q %q", i.RepoTags, i.RepoDigests)
	}
	if i.Size != 8 || i.Os != "linux" || i.Architecture != runtime.GOARCH || len(i.RootFS.Layers) != 2 || i.Config.Labels["made"] != "here" {
		t.Errorf("inspect: %+v", i)
	}
	list, err := n.List(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != i.ID || list[0].Size != 8 {
		t.Errorf("list: %+v, %v", list, err)
	}
	if used, usageErr := n.DiskUsage(t.Context()); usageErr != nil || used != 8 {
		t.Errorf("disk usage %d, %v", used, usageErr)
	}
	h, err := n.History(t.Context(), host+"/app:1")
	if err != nil || len(h) != 2 || h[0].ID != i.ID || h[0].CreatedBy != "step b" || h[0].Size != 3 || h[1].ID != "<missing>" {
		t.Errorf("history: %+v, %v", h, err)
	}
}

func TestPush_AgainAndMounted(t *testing.T) {
	var uploads, mounts atomic.Int32
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/") {
				uploads.Add(1)
			}
			if r.URL.Query().Get("mount") != "" {
				mounts.Add(1)
			}
			h.ServeHTTP(w, r)
		})
	})
	n := open(t)
	load(t, n, host+"/app:1", "a")
	var tr transcript
	if err := n.Push(t.Context(), host+"/app:1", nil, tr.add); err != nil {
		t.Fatal(err)
	}
	tr.has(t, "The push refers to repository ["+host+"/app]")
	tr.has(t, ": Pushed")
	tr.has(t, "1: digest: sha256:")
	tr.has(t, `aux {"Tag":"1","Digest":"sha256:`)
	if uploads.Load() != 2 {
		t.Errorf("%d uploads for a layer and a config", uploads.Load())
	}
	tr = transcript{}
	if err := n.Push(t.Context(), host+"/app:1", nil, tr.add); err != nil {
		t.Fatal(err)
	}
	tr.has(t, "Layer already exists")
	if err := n.Tag(t.Context(), host+"/app:1", host+"/other:1"); err != nil {
		t.Fatal(err)
	}
	if err := n.Push(t.Context(), host+"/other:1", nil, nil); err != nil {
		t.Fatal(err)
	}
	m := open(t)
	if err := m.Pull(t.Context(), host+"/other:1", "", nil, nil); err != nil {
		t.Errorf("pull what was pushed: %v", err)
	}
	err := n.Push(t.Context(), "nope:1", &registry.AuthConfig{}, nil)
	if err == nil || err.Error() != "An image does not exist locally with the tag: nope" {
		t.Errorf("push of what is not there: %v", err)
	}
}

func TestDistribution_AnswersFromTheStoreFirst(t *testing.T) {
	host := serve(t)
	img := image(t, runtime.GOARCH, layer(t, file{name: "f"}))
	push(t, host+"/app:1", img)
	n := open(t)
	for _, where := range []string{"registry", "store"} {
		d, platforms, err := n.Resolve(t, host+"/app:1")
		if err != nil || d != digestOf(t, img) || len(platforms) != 1 || platforms[0].Architecture != runtime.GOARCH {
			t.Errorf("from the %s: %s %v %v", where, d, platforms, err)
		}
		if err := n.Pull(t.Context(), host+"/app:1@"+d, "", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
}

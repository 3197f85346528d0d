package volumes_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/volume"

	"skep/exec/volumes"
)

func open(t *testing.T, dir string, told *[]string) *volumes.Store {
	t.Helper()
	s, err := volumes.Open(volumes.Config{
		Dir: dir, Logger: slog.New(slog.DiscardHandler),
		Publish: func(m events.Message) { *told = append(*told, string(m.Action)+" "+m.Actor.ID) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	dir, told := t.TempDir(), []string{}
	s := open(t, dir, &told)
	v, err := s.Create(t.Context(), volume.CreateRequest{Name: "data", Labels: map[string]string{"a": "b"}})
	if err != nil || v.Mountpoint != filepath.Join(dir, "data", "_data") || v.Driver != "local" || v.Scope != "local" {
		t.Fatalf("created %+v, %v", v, err)
	}
	if err = os.WriteFile(filepath.Join(v.Mountpoint, "file"), []byte("12345"), 0o644); err != nil {
		t.Fatal(err)
	}
	again, err := s.Create(t.Context(), volume.CreateRequest{Name: "data"})
	if err != nil || again.Labels["a"] != "b" {
		t.Errorf("created again: %+v, %v", again, err)
	}
	anon, err := s.Create(t.Context(), volume.CreateRequest{})
	if err != nil || len(anon.Name) != 64 {
		t.Fatalf("without a name: %+v, %v", anon, err)
	}
	if err = s.Hold("data", "c1"); err != nil {
		t.Fatal(err)
	}
	if err = s.Remove(t.Context(), "data", true); !errdefs.IsConflict(err) || err.Error() != "remove data: volume is in use - [c1]" {
		t.Errorf("remove of what is used: %v", err)
	}
	// What was half made when the node stopped goes.
	if err = os.MkdirAll(filepath.Join(dir, "half", "_data"), 0o755); err != nil {
		t.Fatal(err)
	}

	s = open(t, dir, &told)
	list, err := s.List(t.Context(), true)
	if err != nil || len(list) != 2 {
		t.Fatalf("after a restart: %+v, %v", list, err)
	}
	if got, err := s.Inspect(t.Context(), "data"); err != nil || got.Labels["a"] != "b" || got.CreatedAt != v.CreatedAt {
		t.Errorf("after a restart: %+v, %v", got, err)
	}
	rep, err := s.Prune(t.Context(), false, nil)
	if err != nil || len(rep.VolumesDeleted) != 1 || rep.VolumesDeleted[0] != anon.Name {
		t.Errorf("pruned %+v, %v", rep, err)
	}
	keep := func(v volume.Volume) bool { return v.Labels["a"] == "b" }
	if rep, err := s.Prune(t.Context(), true, keep); err != nil || len(rep.VolumesDeleted) != 0 {
		t.Errorf("pruned %+v, %v", rep, err)
	}
	if rep, err := s.Prune(t.Context(), true, nil); err != nil || len(rep.VolumesDeleted) != 1 || rep.SpaceReclaimed != 5 {
		t.Errorf("pruned %+v, %v", rep, err)
	}
	if err := s.Remove(t.Context(), "data", false); !errdefs.IsNotFound(err) || err.Error() != "get data: no such volume" {
		t.Errorf("remove of nothing: %v", err)
	}
	if err := s.Remove(t.Context(), "data", true); err != nil {
		t.Errorf("forced remove of nothing: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if got := strings.Join(told, ","); !strings.HasPrefix(got, "create data,create "+anon.Name+",destroy "+anon.Name) {
		t.Errorf("told %s", got)
	}
}

func TestStore_Refuses(t *testing.T) {
	var told []string
	s := open(t, t.TempDir(), &told)
	for name, req := range map[string]volume.CreateRequest{
		"path":   {Name: "a/b"},
		"dots":   {Name: ".."},
		"driver": {Name: "ok", Driver: "nfs"},
		"opts":   {Name: "ok", DriverOpts: map[string]string{"type": "nfs"}},
	} {
		if v, err := s.Create(t.Context(), req); err == nil {
			t.Errorf("%s: made %+v", name, v)
		}
	}
}

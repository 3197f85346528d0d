package engine_test

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"skep/admin"
	"skep/admin/engine"
	"skep/store"
	"skep/store/object"
)

const bridgeID = "7395216d59f2e75f5a62568878dba5e2c6d204d89b0609f4bfa7b54c98568ddc"

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// imageStore holds one image under some names.
type imageStore struct {
	engine.Images
	names []string
	auth  *registry.AuthConfig // of the last pull or push
	asked string               // reference of the last call
	keeps map[string]bool      // answers of the last prune's filter
}

func (s *imageStore) Inspect(_ context.Context, ref string) (image.InspectResponse, error) {
	for _, n := range s.names {
		if ref == n || ref+":latest" == n || strings.HasPrefix(ref, "sha256:abab") {
			return image.InspectResponse{
				ID: "sha256:" + strings.Repeat("ab", 32), RepoTags: s.names, Created: "2026-11-20T21:02:47.5Z",
				Os: "linux", Architecture: "amd64", Size: 1000, RootFS: image.RootFS{Layers: []string{"sha256:1"}},
			}, nil
		}
	}
	return image.InspectResponse{}, object.Errorf(errdefs.ErrNotFound, "No such image: %s", ref)
}

func (s *imageStore) List(context.Context) ([]image.Summary, error) {
	at := time.Date(2026, 11, 20, 21, 2, 47, 0, time.UTC).Unix()
	return []image.Summary{
		{ID: "sha256:" + strings.Repeat("ab", 32), RepoTags: s.names, Created: at, Size: 1000, Labels: map[string]string{"a": "b"}},
		{ID: "sha256:" + strings.Repeat("cd", 32), Created: at + 10, Size: 1000},
	}, nil
}

func (s *imageStore) Pull(_ context.Context, ref, platform string, auth *registry.AuthConfig, progress func(jsonstream.Message)) error {
	s.asked, s.auth = ref+" "+platform, auth
	switch {
	case strings.Contains(ref, "denied"):
		return object.Errorf(errdefs.ErrNotFound, "pull access denied for %s", ref)
	case strings.Contains(ref, "broken"):
		progress(jsonstream.Message{Status: "Pulling", ID: "abcdefabcdef"})
		return errors.New("connection reset")
	}
	progress(jsonstream.Message{Status: "Pulling from library/nginx", ID: "latest"})
	progress(jsonstream.Message{Status: "Downloading", ID: "abcdefabcdef", Progress: &jsonstream.Progress{Current: 1, Total: 2}})
	progress(jsonstream.Message{Status: "Pull complete", ID: "abcdefabcdef"})
	progress(jsonstream.Message{Status: "Status: Downloaded newer image for nginx:latest"})
	s.names = append(s.names, path.Base(ref))
	return nil
}

func (s *imageStore) Push(_ context.Context, ref string, auth *registry.AuthConfig, progress func(jsonstream.Message)) error {
	s.asked, s.auth = ref, auth
	progress(jsonstream.Message{Status: "Pushed"})
	return nil
}

func (s *imageStore) Load(_ context.Context, archive io.Reader, progress func(jsonstream.Message)) error {
	for t := tar.NewReader(archive); ; {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return object.Errorf(errdefs.ErrInvalidArgument, "archive: %v", err)
		}
		progress(jsonstream.Message{Stream: "Loaded image: " + h.Name + "\n"})
	}
}

func (s *imageStore) Save(_ context.Context, refs []string, w io.Writer) error {
	t := tar.NewWriter(w)
	for _, ref := range refs {
		if ref == "half" {
			_ = t.WriteHeader(&tar.Header{Name: "half", Size: 10, Mode: 0o600})
			return errors.New("disk on fire")
		}
		if _, err := s.Inspect(context.Background(), ref); err != nil {
			return err
		}
		if err := t.WriteHeader(&tar.Header{Name: ref, Mode: 0o600}); err != nil {
			return err
		}
	}
	return t.Close()
}

func (s *imageStore) Tag(_ context.Context, ref, target string) error {
	s.asked = ref + " " + target
	_, err := s.Inspect(context.Background(), ref)
	return err
}

func (s *imageStore) History(context.Context, string) ([]image.HistoryResponseItem, error) {
	return []image.HistoryResponseItem{{ID: "<missing>", CreatedBy: "ADD rootfs", Size: 5, Created: 1}}, nil
}

func (s *imageStore) Remove(_ context.Context, ref string, _, _ bool) ([]image.DeleteResponse, error) {
	if _, err := s.Inspect(context.Background(), ref); err != nil {
		return nil, err
	}
	return []image.DeleteResponse{{Untagged: ref}}, nil
}

func (s *imageStore) Prune(ctx context.Context, _ bool, keep func(image.Summary) bool) (image.PruneReport, error) {
	s.keeps = map[string]bool{}
	list, err := s.List(ctx)
	for _, i := range list {
		s.keeps[i.ID[7:9]] = keep(i)
	}
	return image.PruneReport{ImagesDeleted: []image.DeleteResponse{{Deleted: "x"}}, SpaceReclaimed: 1000}, err
}

func (s *imageStore) DiskUsage(context.Context) (int64, error) { return 2000, nil }

// volumeStore holds volumes in memory.
type volumeStore struct{ all []volume.Volume }

func (s *volumeStore) Create(_ context.Context, req volume.CreateRequest) (volume.Volume, error) {
	v := volume.Volume{Name: req.Name, Driver: "local", Labels: req.Labels, Scope: "local", Mountpoint: "/x/" + req.Name}
	s.all = append(s.all, v)
	return v, nil
}

func (s *volumeStore) List(_ context.Context, size bool) ([]volume.Volume, error) {
	list := append([]volume.Volume{}, s.all...)
	for i := range list {
		if size {
			list[i].UsageData = &volume.UsageData{Size: 77}
		}
	}
	return list, nil
}

func (s *volumeStore) Inspect(_ context.Context, name string) (volume.Volume, error) {
	for _, v := range s.all {
		if v.Name == name {
			return v, nil
		}
	}
	return volume.Volume{}, object.Errorf(errdefs.ErrNotFound, "get %s: no such volume", name)
}

func (s *volumeStore) Remove(_ context.Context, name string, _ bool) error {
	for i, v := range s.all {
		if v.Name == name {
			s.all = append(s.all[:i], s.all[i+1:]...)
			return nil
		}
	}
	return object.Errorf(errdefs.ErrNotFound, "get %s: no such volume", name)
}

func (s *volumeStore) Prune(_ context.Context, named bool, keep func(volume.Volume) bool) (r volume.PruneReport, err error) {
	var left []volume.Volume
	for _, v := range s.all {
		if !named || keep(v) {
			left = append(left, v)
			continue
		}
		r.VolumesDeleted = append(r.VolumesDeleted, v.Name)
	}
	s.all = left
	return r, nil
}

type networkStore struct{}

func (networkStore) List(context.Context) ([]network.Inspect, error) {
	of := func(name, driver, id string) network.Inspect {
		return network.Inspect{Network: network.Network{Name: name, Driver: driver, ID: id, Scope: "local"}}
	}
	return []network.Inspect{
		of("bridge", "bridge", bridgeID),
		of("host", "host", "5760f2d3a8a15ccfbb100dca89648bf17516eef65e238438570989c8478ad5ed"),
		of("none", "null", "576002d3a8a15ccfbb100dca89648bf17516eef65e238438570989c8478ad5ee"),
	}, nil
}

func (networkStore) Check(_ context.Context, id string) (object.NodeCheck, error) {
	return object.NodeCheck{}, object.Errorf(errdefs.ErrNotFound, "network %s is not on this node", id)
}

func (networkStore) Health(context.Context) object.NetworkHealth { return object.NetworkHealth{} }

type loneNode struct{ engine.Swarm }

func (loneNode) Info(context.Context) swarm.Info {
	return swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}
}

func (loneNode) Store(context.Context) (store.Proposer, error) {
	return nil, object.Errorf(errdefs.ErrUnavailable, "%s", notManager)
}

func (loneNode) Replica() (*store.Snapshot, error) {
	return nil, object.Errorf(errdefs.ErrUnavailable, "%s", notManager)
}

type host struct{ engine.Host }

func (host) Info(context.Context) (system.Info, error) { return system.Info{Name: "n1"}, nil }

type noTaskLogs struct{}

func (noTaskLogs) TaskLogs(context.Context, *object.Task, object.LogQuery) iter.Seq2[object.LogLine, error] {
	return func(func(object.LogLine, error) bool) {}
}

// openSealer leaves records as they are.
type openSealer struct{}

func (openSealer) Seal(_ string, plain []byte) []byte           { return plain }
func (openSealer) Open(_ string, sealed []byte) ([]byte, error) { return sealed, nil }
func (openSealer) Current([]byte) bool                          { return true }

// node is an API over the runtime in memory, behind its guard and a unix socket.
type node struct {
	*runtime
	volumes *volumeStore
	socket  string
	http    *http.Transport
	role    admin.Role
	handler http.Handler
	routes  []admin.Route
	api     *engine.API
	audit   *admin.Audit
	records string // the audit's directory
}

func newNode(tb testing.TB) *node {
	tb.Helper()
	return newNodeWith(tb, func(*engine.Config) {})
}

// newNodeWith is a node whose API stands on something else, too.
func newNodeWith(tb testing.TB, change func(*engine.Config)) *node {
	tb.Helper()
	images := &imageStore{names: []string{"base:latest"}}
	n := &node{
		runtime: &runtime{images: images, execs: map[string]*proc{}},
		volumes: &volumeStore{},
		role:    admin.Admin,
		records: filepath.Join(tb.TempDir(), "audit"),
	}
	cfg := engine.Config{
		Swarm: loneNode{}, Containers: n.runtime, Images: images, Volumes: n.volumes, Networks: networkStore{},
		TaskLogs: noTaskLogs{}, Host: host{}, Events: engine.NewJournal(),
		Version: "test", Logger: slog.New(slog.NewTextHandler(tb.Output(), nil)),
	}
	change(&cfg)
	api, err := engine.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	audit, err := admin.OpenAudit(n.records, openSealer{})
	if err != nil {
		tb.Fatal(err)
	}
	n.api, n.audit = api, audit
	mux, err := admin.NewMux(admin.MuxConfig{
		Routes: api.Routes(), Audit: audit, Logger: slog.New(slog.NewTextHandler(tb.Output(), nil)),
	})
	if err != nil {
		tb.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "engine") //nolint:usetesting // A path below TempDir may be too long for a socket.
	if err != nil {
		tb.Fatal(err)
	}
	n.socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", n.socket)
	if err != nil {
		tb.Fatal(err)
	}
	versioned := api.Versioned(mux)
	n.routes = mux.Routes()
	n.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		versioned.ServeHTTP(w, r.WithContext(admin.WithPrincipal(r.Context(), admin.Principal{Name: "test", Transport: "unix", Role: n.role})))
	})
	server := &http.Server{Handler: n.handler}
	go func() { _ = server.Serve(l) }()
	n.http = &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", n.socket)
	}}
	tb.Cleanup(func() {
		n.http.CloseIdleConnections()
		server.Close()
		audit.Close()
		os.RemoveAll(dir)
		for _, p := range n.all {
			if p.cancel != nil {
				p.cancel()
			}
		}
	})
	return n
}

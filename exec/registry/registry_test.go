package registry_test

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	api "github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"

	"skep/exec/registry"
)

func serve(t *testing.T, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	h := ggcr.New(ggcr.Logger(slog.NewLogLogger(slog.DiscardHandler, 0)))
	srv := httptest.NewServer(wrap(h))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

func plain(h http.Handler) http.Handler { return h }

func named(t *testing.T, ref string) reference.Named {
	t.Helper()
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// push makes an image in a repository.
func push(t *testing.T, ref string) {
	t.Helper()
	img, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, img); err != nil {
		t.Fatal(err)
	}
}

// manifest reads one and drops it.
func manifest(t *testing.T, c *registry.Client, ref, tag string, auth *api.AuthConfig) error {
	t.Helper()
	repo, err := c.Pull(named(t, ref), auth)
	if err != nil {
		return err
	}
	_, _, err = repo.Manifest(t.Context(), tag)
	return err
}

func TestManifest_IsAskedForAgainWhenItMayPass(t *testing.T) {
	var failures atomic.Int32
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") && failures.Add(-1) >= 0 {
				http.Error(w, "busy", http.StatusServiceUnavailable)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	push(t, host+"/app:1")
	c := registry.New(registry.Config{})
	failures.Store(2)
	if err := manifest(t, c, host+"/app", "1", nil); err != nil {
		t.Errorf("after two failures: %v", err)
	}
	failures.Store(100)
	if err := manifest(t, c, host+"/app", "1", nil); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("after many failures: %v", err)
	}
}

func TestManifest_IsVerified(t *testing.T) {
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/manifests/sha256:") {
				_, _ = io.WriteString(w, `{"schemaVersion":2}`)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	c := registry.New(registry.Config{})
	if err := manifest(t, c, host+"/app", digest.FromString("another").String(), nil); !errors.Is(err, errdefs.ErrDataLoss) {
		t.Errorf("a manifest of another digest: %v", err)
	}
	big := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/manifests/") {
				_, _ = w.Write(make([]byte, 5<<20))
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	if err := manifest(t, c, big+"/app", "1", nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a manifest of 5 MiB: %v", err)
	}
}

func TestMirror_GetsNoCredentialsAndMayFail(t *testing.T) {
	var leaked atomic.Bool
	mirror := serve(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "" {
				leaked.Store(true)
			}
			w.Header().Set("WWW-Authenticate", `Basic realm="mirror"`)
			w.WriteHeader(http.StatusUnauthorized)
		})
	})
	host := serve(t, plain)
	push(t, host+"/app:1")
	c := registry.New(registry.Config{Hosts: []registry.Host{{
		Host: host, Mirrors: []string{"http://" + mirror + "/cache", "http://127.0.0.1:1"}, Username: "u", Password: "p",
	}}})
	if err := manifest(t, c, host+"/app", "1", &api.AuthConfig{Username: "me", Password: "secret"}); err != nil {
		t.Errorf("the registry itself was not asked: %v", err)
	}
	if leaked.Load() {
		t.Error("the mirror was given credentials")
	}
	bad := registry.New(registry.Config{Hosts: []registry.Host{{Host: host, Mirrors: []string{"mirror"}}}})
	if err := manifest(t, bad, host+"/app", "1", nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a mirror that is no URL: %v", err)
	}
}

func TestRedirectsToPlainHTTPElsewhereAreRefused(t *testing.T) {
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/manifests/") {
				http.Redirect(w, r, "http://192.0.2.1/manifest", http.StatusTemporaryRedirect)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	err := manifest(t, registry.New(registry.Config{}), host+"/app", "1", nil)
	if !errors.Is(err, errdefs.ErrPermissionDenied) || !strings.Contains(err.Error(), "only for registries on this machine") {
		t.Errorf("got %v", err)
	}
}

func TestPlainHTTP(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost:5000": true, "127.0.0.1:5000": true, "127.9.9.9": true, "[::1]:5000": true,
		"10.0.0.1:5000": false, "192.168.1.1": false, "registry.local:5000": false, "localhost.example": false, "0.0.0.0:5000": false,
	} {
		used := false
		c := registry.New(registry.Config{
			Hosts: []registry.Host{{Host: "docker.io", Mirrors: []string{"http://" + host}}},
			Transport: transport(func(r *http.Request) (*http.Response, error) {
				used = used || r.URL.Scheme == "http" && strings.HasPrefix(host, r.URL.Host)
				return nil, errors.New("refused")
			}),
		})
		if err := manifest(t, c, "docker.io/library/app", "1", nil); err == nil {
			t.Errorf("%s: no error", host)
		}
		if used != want {
			t.Errorf("%s: plain HTTP was spoken: %v, want %v", host, used, want)
		}
	}
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

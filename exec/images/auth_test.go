package images_test

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"
	"golang.org/x/crypto/bcrypt"

	"skep/exec/images"
	registries "skep/exec/registry"
)

// withBasic asks for a user and a password.
func withBasic(user, password string) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			u, p, _ := r.BasicAuth()
			if u != user || subtle.ConstantTimeCompare([]byte(p), []byte(password)) != 1 {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	}
}

// withBearer asks for a token for the repository and what is done to it, and
// hands such tokens out.
func withBearer(user, password string) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				if u, p, _ := r.BasicAuth(); u != user || p != password {
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				_ = json.NewEncoder(w).Encode(map[string]string{"token": strings.Join(r.URL.Query()["scope"], " ")})
				return
			}
			if r.URL.Path != "/v2/" {
				parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
				action := "pull"
				if r.Method != http.MethodGet && r.Method != http.MethodHead {
					action = "push"
				}
				token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
				if slices.ContainsFunc(strings.Fields(token), func(scope string) bool {
					return strings.HasPrefix(scope, "repository:"+parts[0]+":") && strings.Contains(scope, action)
				}) {
					h.ServeHTTP(w, r)
					return
				}
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
		})
	}
}

func TestCredentials(t *testing.T) {
	for kind, guard := range map[string]func(http.Handler) http.Handler{
		"basic": withBasic("u", "p"), "bearer": withBearer("u", "p"),
	} {
		t.Run(kind, func(t *testing.T) { tryCredentials(t, kind, guard) })
	}
}

func tryCredentials(t *testing.T, kind string, guard func(http.Handler) http.Handler) {
	t.Helper()
	var locked atomic.Bool
	host := serve(t, func(h http.Handler) http.Handler {
		guarded := guard(h)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if locked.Load() {
				guarded.ServeHTTP(w, r)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	push(t, host+"/app:1", image(t, runtime.GOARCH, layer(t, file{name: "a"})))
	locked.Store(true)

	good := registry.AuthConfig{Username: "u", Password: "p", ServerAddress: host}
	bad := registry.AuthConfig{Username: "u", Password: "wrong", ServerAddress: host}
	n := open(t)
	if kind == "basic" { // a token server may hand out tokens that are good for nothing
		if resp, err := n.Login(t.Context(), good); err != nil || resp.Status != "Login Succeeded" {
			t.Errorf("login: %v, %v", resp, err)
		}
	}
	if _, err := n.Login(t.Context(), bad); !errors.Is(err, errdefs.ErrUnauthenticated) {
		t.Errorf("login with a wrong password: %v", err)
	}
	for _, auth := range []*registry.AuthConfig{nil, {}, &bad} {
		if err := n.Pull(t.Context(), host+"/app:1", "", auth, nil); err == nil || !strings.HasPrefix(err.Error(), "pull access denied") {
			t.Errorf("pull with %+v: %v", auth, err)
		}
	}
	if err := n.Pull(t.Context(), host+"/app:1", "", &good, nil); err != nil {
		t.Errorf("pull with credentials: %v", err)
	}
	if err := n.Tag(t.Context(), host+"/app:1", host+"/other:1"); err != nil {
		t.Fatal(err)
	}
	if err := n.Push(t.Context(), host+"/other:1", nil, nil); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Errorf("push without credentials: %v", err)
	}
	if err := n.Push(t.Context(), host+"/other:1", &good, nil); err != nil {
		t.Errorf("push with credentials: %v", err)
	}
	m := open(t, func(c *images.Config) {
		c.Registries = []registries.Host{{Host: host, Username: "u", Password: "p"}}
	})
	if err := m.Pull(t.Context(), host+"/other:1", "", &registry.AuthConfig{}, nil); err != nil {
		t.Errorf("pull with the node file's credentials: %v", err)
	}
}

// debians is the registry of Debian's package docker-registry, with a password.
func debians(t *testing.T) string {
	t.Helper()
	binary, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry is not installed")
	}
	dir := t.TempDir()
	hash, err := bcrypt.GenerateFromPassword([]byte("p"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"htpasswd": "u:" + string(hash) + "\n",
		"config": fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"+
			"storage: {filesystem: {rootdirectory: %[1]s/data}}\nhttp: {addr: %[2]q}\n"+
			"auth: {htpasswd: {realm: r, path: %[1]s/htpasswd}}\n", dir, host),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(binary, "serve", filepath.Join(dir, "config"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	for range 200 {
		if c, err := net.Dial("tcp", host); err == nil {
			_ = c.Close()
			return host
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("docker-registry does not listen")
	return ""
}

func TestDebiansRegistry(t *testing.T) {
	host := debians(t)
	good := &registry.AuthConfig{Username: "u", Password: "p", ServerAddress: host}
	n, m := open(t), open(t)
	load(t, n, host+"/x/app:1", "content")
	if err := n.Load(t.Context(), bytes.NewReader(legacy(t, host+"/plain:1", tarOf(t, file{name: "f", body: "content"}))), nil); err != nil {
		t.Fatal(err)
	}
	var tr transcript
	for _, ref := range []string{host + "/x/app:1", host + "/y/app:1", host + "/plain:1"} {
		if strings.Contains(ref, "/y/") {
			if err := n.Tag(t.Context(), host+"/x/app:1", ref); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.Push(t.Context(), ref, nil, nil); !errors.Is(err, errdefs.ErrPermissionDenied) {
			t.Errorf("push without credentials: %v", err)
		}
		if err := n.Push(t.Context(), ref, good, tr.add); err != nil {
			t.Fatal(err)
		}
		if err := m.Pull(t.Context(), ref, "", good, nil); err != nil {
			t.Fatal(err)
		}
		d, _, err := n.Resolve(t, ref)
		if err != nil {
			t.Fatal(err)
		}
		fs, err := m.Rootfs(t.Context(), ref+"@"+d)
		if err != nil || read(t, fs, "f") != "content" {
			t.Fatalf("%s: %v", ref, err)
		}
		fs.Release()
	}
	tr.has(t, ": Pushed")
	tr.has(t, "Mounted from x/app")
}

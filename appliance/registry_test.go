package appliance_test

import (
	"log"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"skep/appliance/nodetest"
)

// TestRegistry pushes to and pulls from a registry, by tag and by digest, with
// and without credentials, by hand and by a service.
func TestRegistry(t *testing.T) {
	for _, auth := range []bool{false, true} {
		name := "open"
		if auth {
			name = "with credentials"
		}
		t.Run(name, func(t *testing.T) { testRegistry(t, auth) })
	}
}

func testRegistry(t *testing.T, auth bool) {
	t.Helper()
	n := nodetest.New(t, nodetest.Binary(t), "registry", nodetest.File)
	n.Start(t)
	addr := serveRegistry(t, n, auth)
	docker := n.CLI(t, dockerCLI(t))
	docker.LoadBusybox()
	ref := addr + "/team/box:1"
	docker.Run("tag", "busybox", ref)
	if auth {
		if out, err := docker.Try("push", ref); err == nil || !strings.Contains(out, "denied: requested access to the resource is denied") {
			t.Errorf("push without credentials: %v %s", err, out)
		}
		if out, err := docker.Try("login", "-u", "me", "-p", "wrong", addr); err == nil {
			t.Errorf("login with a wrong password: %s", out)
		}
		if out := docker.Run("login", "-u", "me", "-p", "sesame", addr); !strings.Contains(out, "Login Succeeded") {
			t.Errorf("login: %s", out)
		}
	}
	pushed := docker.Run("push", ref)
	m := regexp.MustCompile(`1: digest: (sha256:[0-9a-f]{64}) size: \d+`).FindStringSubmatch(pushed)
	if m == nil {
		t.Fatalf("push printed no digest: %s", pushed)
	}
	byDigest := addr + "/team/box@" + m[1]

	docker.Run("rmi", "busybox", ref)
	if out := docker.Run("pull", ref); !strings.Contains(out, "Downloaded newer image for "+ref) || !strings.Contains(out, "Pull complete") {
		t.Errorf("pull: %s", out)
	}
	if out := docker.Run("pull", ref); !strings.Contains(out, "Image is up to date for "+ref) {
		t.Errorf("second pull: %s", out)
	}
	docker.Run("rmi", ref)
	docker.Run("pull", byDigest)
	if out := docker.Run("run", "--rm", byDigest, "echo", "by digest"); out != "by digest\n" {
		t.Errorf("run by digest: %q", out)
	}
	docker.Run("rmi", "-f", byDigest)

	docker.Run("service", "create", "-d", "--with-registry-auth", "--name", "svc", ref, "sleep", "1000")
	eventually(t, "the service runs", func() bool { return strings.Contains(docker.Run("service", "ls"), "1/1") })
	if out := docker.Run("service", "inspect", "svc", "--format", "{{.Spec.TaskTemplate.ContainerSpec.Image}}"); strings.TrimSpace(out) != ref+"@"+m[1] {
		t.Errorf("the service runs %s, want it pinned to %s", out, m[1])
	}
	docker.Run("service", "rm", "svc")
	if out, err := docker.Try("pull", addr+"/team/none:1"); err == nil || !strings.Contains(out, "repository does not exist") {
		t.Errorf("pull of what is not there: %v %s", err, out)
	}
	n.Stop(t)
}

// serveRegistry serves a registry on the node's loopback and returns its address.
func serveRegistry(t *testing.T, n *nodetest.Node, auth bool) string {
	t.Helper()
	var l net.Listener
	err := n.Do(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	handler := registry.New(registry.Logger(log.New(t.Output(), "", 0)))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); auth && (user != "me" || password != "sesame") {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`))
			return
		}
		handler.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	return l.Addr().String()
}

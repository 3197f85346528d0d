package images_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"skep/exec/images"
)

func withHello(t *testing.T, content string) func(*images.Config) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "skep")
	if err := os.WriteFile(binary, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	return func(c *images.Config) { c.Hello = func() string { return binary } }
}

func TestHelloIsMadeOnDemand(t *testing.T) {
	hello := withHello(t, "the binary")
	n := open(t, hello)
	d, platforms, err := n.Resolve(t, "skep/hello:demo")
	if err != nil || len(platforms) != 1 {
		t.Fatalf("resolve: %v %v", platforms, err)
	}
	fs, err := n.Rootfs(t.Context(), "skep/hello:demo@"+d)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Release()
	if got := read(t, fs, "skep"); got != "the binary" {
		t.Errorf("/skep holds %q", got)
	}
	fi, err := os.Stat(filepath.Join(fs.Lower[0], "skep"))
	if err != nil || fi.Mode() != 0o755 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	if _, ok := fs.Config.ExposedPorts["80/udp"]; !ok || !slices.Equal(fs.Config.Entrypoint, []string{"/skep", "hello"}) {
		t.Errorf("config %+v", fs.Config)
	}

	other := open(t, withHello(t, "the binary"))
	if again, _, err := other.Resolve(t, "skep/hello"); err != nil || again != d {
		t.Errorf("another node has %s (%v), want %s", again, err, d)
	}
	if _, err := other.Rootfs(t.Context(), "skep/hello@sha256:"+strings.Repeat("0", 64)); err == nil || !strings.HasPrefix(err.Error(), "No such image: skep/hello@sha256:") {
		t.Errorf("another digest: %v", err)
	}
	if _, err := open(t).Rootfs(t.Context(), "skep/hello"); err == nil {
		t.Error("there is skep/hello without a binary")
	}
}

// The path under which a node knows its own binary is a magic link.
func TestHello_IsTheRunningBinary(t *testing.T) {
	const self = "/proc/self/exe"
	n := open(t, func(c *images.Config) { c.Hello = func() string { return self } })
	fs, err := n.Rootfs(t.Context(), "skep/hello")
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Release()
	at := filepath.Join(fs.Lower[0], "skep")
	got, err1 := os.ReadFile(at)
	want, err2 := os.ReadFile(self)
	if err := errors.Join(err1, err2); err != nil || !bytes.Equal(got, want) {
		t.Errorf("/skep is not this binary: %v", err)
	}
	mine, err1 := os.Stat(self)
	theirs, err2 := os.Lstat(at)
	if err := errors.Join(err1, err2); err != nil || !theirs.Mode().IsRegular() || os.SameFile(mine, theirs) {
		t.Errorf("/skep is %v, or the binary's own file: %v", theirs.Mode(), err)
	}
}

func TestHello_PullsSavesAndPushes(t *testing.T) {
	n := open(t, withHello(t, "the binary"))
	var tr transcript
	for range 2 {
		if err := n.Pull(t.Context(), "skep/hello", "", nil, tr.add); err != nil {
			t.Fatal(err)
		}
	}
	tr.has(t, "latest: Pulling from skep/hello")
	tr.has(t, "Status: Downloaded newer image for skep/hello:latest")
	tr.has(t, "Status: Image is up to date for skep/hello:latest")
	var b bytes.Buffer
	if err := n.Save(t.Context(), []string{"skep/hello"}, &b); err != nil {
		t.Fatal(err)
	}
	m := open(t)
	if err := m.Load(t.Context(), &b, nil); err != nil {
		t.Fatal(err)
	}
	fs, err := m.Rootfs(t.Context(), "skep/hello")
	if err != nil || read(t, fs, "skep") != "the binary" {
		t.Fatalf("loaded elsewhere: %v", err)
	}
	fs.Release()
	host := serve(t)
	if err := n.Tag(t.Context(), "skep/hello", host+"/hello"); err != nil {
		t.Fatal(err)
	}
	if err := n.Push(t.Context(), host+"/hello", nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.Pull(t.Context(), host+"/hello", "", nil, nil); err != nil {
		t.Fatal(err)
	}
}

package nodetest

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Busybox is an image of Debian's static busybox: /bin with all its applets,
// a user file and a shell as its command.
func Busybox(tb testing.TB) v1.Image {
	tb.Helper()
	bin, err := exec.LookPath("busybox")
	if err != nil {
		tb.Fatal("busybox is missing: install busybox-static")
	}
	program, err := os.ReadFile(bin)
	if err != nil {
		tb.Fatal(err)
	}
	applets, err := exec.Command(bin, "--list").Output()
	if err != nil {
		tb.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(busyboxLayer(program, strings.Fields(string(applets))))), nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		tb.Fatal(err)
	}
	img, err = mutate.ConfigFile(img, configured(tb, img))
	if err != nil {
		tb.Fatal(err)
	}
	return img
}

func configured(tb testing.TB, img v1.Image) *v1.ConfigFile {
	tb.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		tb.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	cf.Config.Cmd = []string{"sh"}
	cf.Config.Env = []string{"PATH=/bin"}
	return cf
}

// BusyboxArchive writes what `docker save busybox` would.
func BusyboxArchive(tb testing.TB, path string) {
	tb.Helper()
	tag, err := name.NewTag("busybox:latest")
	if err != nil {
		tb.Fatal(err)
	}
	if err := tarball.WriteToFile(path, tag, Busybox(tb)); err != nil {
		tb.Fatal(err)
	}
}

func busyboxLayer(program []byte, applets []string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		// Writes to memory do not fail.
		_ = w.WriteHeader(&h)
		_, _ = w.Write(data)
	}
	for _, dir := range []string{"bin/", "etc/", "home/"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, program)
	for _, a := range applets {
		if a != "busybox" {
			add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + a, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644},
		[]byte("root:x:0:0:root:/:/bin/sh\nalice:x:1000:1000:alice:/home:/bin/sh\n"))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644},
		[]byte("root:x:0:\nalice:x:1000:\nstaff:x:50:alice\n"))
	_ = w.Close()
	return buf.Bytes()
}

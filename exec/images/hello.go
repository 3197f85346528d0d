package images

import (
	"archive/tar"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"skep/exec/layers"
)

// helloName is the repository of the image that is this binary.
const helloName = "docker.io/skep/hello"

// isHello says whether a name means the built-in image, and there is one.
func (s *Store) isHello(named reference.Named) bool {
	return named.Name() == helloName && s.config.Hello() != ""
}

// makeHello makes the built-in image and gives it the name. The image depends
// on the bytes of the binary only, so every node of the same version has the
// same. The layer's blob is made when somebody wants it (see layerBlob).
func (s *Store) makeHello(ctx context.Context, named reference.Named) (record, error) {
	binary := s.config.Hello()
	lease := s.blobs.Lease()
	defer lease.Release()

	layer, err := describeHello(ctx, binary)
	if err != nil {
		return record{}, fmt.Errorf("make %s: %w", helloName, err)
	}
	lease.Hold(layer.Digest)
	config, err := json.Marshal(helloConfig(binary, layer.Digest))
	if err != nil {
		return record{}, err
	}
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config)),
		},
		Layers: []ocispec.Descriptor{layer},
	})
	if err != nil {
		return record{}, err
	}
	target := digest.FromBytes(manifest)
	if d := digestOf(named); d != "" && d != target {
		return record{}, noSuchImage(reference.FamiliarString(named))
	}
	lease.Hold(digest.FromBytes(config), target)
	for _, b := range [][]byte{config, manifest} {
		if _, err = s.blobs.Write(b); err != nil {
			return record{}, fmt.Errorf("make %s: %w", helloName, err)
		}
	}
	err = s.layers.Make(ctx, layer.Digest, func(root string) (layers.Info, error) {
		return layers.Info{Size: layer.Size}, placeBinary(binary, filepath.Join(root, "skep"))
	})
	if err != nil {
		return record{}, fmt.Errorf("make %s: %w", helloName, err)
	}
	rec := record{
		Target:   ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: target, Size: int64(len(manifest))},
		Manifest: target,
		Config:   digest.FromBytes(config),
		Tagged:   time.Now(),
	}
	keys := []string{digested(named, target)}
	if tag := tagOf(named); tag != "" && digestOf(named) == "" {
		keys = append(keys, tagged(named, tag))
	}
	return rec, s.commit(rec, keys...)
}

func helloConfig(binary string, diffID digest.Digest) dockerspec.DockerOCIImage {
	var created *time.Time
	if info, err := buildinfo.ReadFile(binary); err == nil {
		for _, kv := range info.Settings {
			if t, err := time.Parse(time.RFC3339, kv.Value); kv.Key == "vcs.time" && err == nil {
				created = &t
			}
		}
	}
	var c dockerspec.DockerOCIImage
	c.Created = created
	c.Platform = ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	c.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}}
	c.History = []ocispec.History{{Created: created, CreatedBy: "skep"}}
	c.Config.Entrypoint = []string{"/skep", "hello"}
	c.Config.Env = []string{"PATH=/"}
	c.Config.WorkingDir = "/"
	c.Config.ExposedPorts = map[string]struct{}{"80/tcp": {}, "80/udp": {}}
	c.Config.Labels = map[string]string{
		"org.opencontainers.image.title":       "skep/hello",
		"org.opencontainers.image.description": "answers with its host name, addresses and the request",
	}
	return c
}

// describeHello hashes the layer without making it.
func describeHello(ctx context.Context, binary string) (ocispec.Descriptor, error) {
	h := digest.SHA256.Digester()
	n, err := writeHello(ctx, h.Hash(), binary)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: h.Digest(), Size: n}, err
}

// writeHello writes the layer's tar: always the same for the same binary.
func writeHello(ctx context.Context, w io.Writer, binary string) (int64, error) {
	f, err := os.Open(binary)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	count := &counter{w: w}
	t := tar.NewWriter(count)
	for _, h := range []tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./skep", Typeflag: tar.TypeReg, Mode: 0o755, Size: fi.Size()},
	} {
		h.Format, h.ModTime = tar.FormatUSTAR, time.Unix(0, 0)
		if err = t.WriteHeader(&h); err != nil {
			return 0, err
		}
	}
	if _, err = io.Copy(t, io.LimitReader(&ctxReader{ctx, f}, fi.Size())); err != nil {
		return 0, err
	}
	err = t.Close()
	return count.n, err
}

// keepHello makes the blob of skep/hello's layer from the unpacked layer.
func (s *Store) keepHello(ctx context.Context, diffID digest.Digest) error {
	w, err := s.blobs.Writer(diffID, -1)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err = writeHello(ctx, w, filepath.Join(s.layers.Path(diffID), "skep")); err != nil {
		return fmt.Errorf("make layer %s: %w", diffID, err)
	}
	_, _, err = w.Commit()
	return err
}

// placeBinary makes to the same file as binary, by sharing its blocks where
// that is possible. It is never a link: whoever installs the next version over
// the binary would change the layer.
func placeBinary(binary, to string) error {
	in, err := os.Open(binary)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer out.Close()
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) != nil {
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
	return out.Chmod(0o755)
}

// counter counts what is written through it.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// ctxReader ends with its context.
type ctxReader struct {
	ctx context.Context //nolint:containedctx // lives as long as one copy
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

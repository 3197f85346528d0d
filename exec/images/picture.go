package images

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/events"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/exec/content"
	"skep/store/object"
)

// What a manifest, an index or a config may be at most.
const (
	maxDocument = 4 << 20
	maxLayers   = 500 // of an overlay mount
)

// Docker's names of what OCI standardised later.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// open reads and checks an image's manifest and config.
func (s *Store) open(rec record) (picture, error) {
	p := picture{record: rec}
	b, err := s.blobs.Bytes(rec.Manifest, maxDocument)
	if err != nil {
		return p, fmt.Errorf("read manifest: %w", err)
	}
	if p.manifest, err = decodeManifest(b); err != nil {
		return p, err
	}
	if b, err = s.blobs.Bytes(p.manifest.Config.Digest, maxDocument); err != nil {
		return p, fmt.Errorf("read config: %w", err)
	}
	p.size = int64(len(b))
	p.config, err = decodeConfig(b, len(p.manifest.Layers))
	return p, err
}

// decodeManifest reads an image manifest of Docker or OCI and checks it.
func decodeManifest(b []byte) (ocispec.Manifest, error) {
	var m ocispec.Manifest
	if len(b) > maxDocument {
		return m, badImage("manifest is larger than %d bytes", maxDocument)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, badImage("manifest: %v", err)
	}
	if m.SchemaVersion != 2 {
		return m, badImage("manifest: schema version %d is not supported", m.SchemaVersion)
	}
	if m.MediaType != "" && m.MediaType != ocispec.MediaTypeImageManifest && m.MediaType != dockerManifest {
		return m, badImage("manifest: media type %q is not an image's", m.MediaType)
	}
	if len(m.Layers) > maxLayers {
		return m, badImage("manifest: %d layers, no more than %d are possible", len(m.Layers), maxLayers)
	}
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if err := checkDescriptor(d); err != nil {
			return m, badImage("manifest: %v", err)
		}
	}
	return m, nil
}

// decodeIndex reads an index or manifest list and checks it.
func decodeIndex(b []byte) (ocispec.Index, error) {
	var x ocispec.Index
	if len(b) > maxDocument {
		return x, badImage("index is larger than %d bytes", maxDocument)
	}
	if err := json.Unmarshal(b, &x); err != nil {
		return x, badImage("index: %v", err)
	}
	for _, d := range x.Manifests {
		if err := checkDescriptor(d); err != nil {
			return x, badImage("index: %v", err)
		}
	}
	return x, nil
}

// decodeConfig reads an image's config, which must name as many layers as its manifest.
func decodeConfig(b []byte, layers int) (dockerspec.DockerOCIImage, error) {
	var c dockerspec.DockerOCIImage
	if len(b) > maxDocument {
		return c, badImage("config is larger than %d bytes", maxDocument)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, badImage("config: %v", err)
	}
	if len(c.RootFS.DiffIDs) != layers {
		return c, badImage("config names %d layers, manifest %d", len(c.RootFS.DiffIDs), layers)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := content.Check(d); err != nil {
			return c, badImage("config: %v", err)
		}
	}
	return c, nil
}

func checkDescriptor(d ocispec.Descriptor) error {
	if d.Size < 0 {
		return fmt.Errorf("size %d", d.Size)
	}
	return content.Check(d.Digest)
}

// isIndex says whether a media type is that of several manifests.
func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == dockerIndex
}

// mediaTypeOf is what a document says that it is, or what it looks like.
func mediaTypeOf(b []byte) string {
	var probe struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(b, &probe); err != nil {
		return ""
	}
	if probe.MediaType == "" && probe.Manifests != nil {
		return ocispec.MediaTypeImageIndex
	}
	if probe.MediaType == "" {
		return ocispec.MediaTypeImageManifest
	}
	return probe.MediaType
}

func badImage(format string, args ...any) error {
	return object.Errorf(errdefs.ErrInvalidArgument, "invalid image: "+format, args...)
}

// heal unpacks again what is missing, if its blob is here.
func (s *Store) heal(ctx context.Context, img picture) error {
	for i, diffID := range img.config.RootFS.DiffIDs {
		if s.layers.Has(diffID) {
			continue
		}
		desc := img.manifest.Layers[i]
		if !s.blobs.Has(desc.Digest) {
			return object.Errorf(errdefs.ErrNotFound, "layer %s of image %s is missing, pull it again", diffID, img.Config)
		}
		if err := s.unpackBlob(ctx, diffID, desc, nil); err != nil {
			return err
		}
	}
	return nil
}

// commit puts an image on record under the given keys. If the target was on
// record with another platform's image, that stays as an image of its own:
// containers may use it.
func (s *Store) commit(rec record, keys ...string) error {
	return s.change(func(st *state) error {
		if old, ok := st.Images[rec.Target.Digest]; ok && old.Config != rec.Config && old.Manifest != rec.Manifest {
			size, err := s.blobs.Size(old.Manifest)
			if err != nil {
				return err
			}
			old.Target = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: old.Manifest, Size: size}
			st.Images[old.Manifest] = old
		}
		st.Images[rec.Target.Digest] = rec
		for _, key := range keys {
			st.Names[key] = rec.Target.Digest
		}
		return nil
	})
}

// publishName tells of an image under the name that the user gave.
func (s *Store) publishName(action events.Action, name string, rec record) {
	repo, _, _ := strings.Cut(name, "@")
	if i := strings.LastIndex(repo, ":"); i > strings.LastIndex(repo, "/") {
		repo = repo[:i]
	}
	s.publish(action, name, repo, s.labels(rec))
}

func (s *Store) labels(rec record) map[string]string {
	img, err := s.open(rec)
	if err != nil {
		return nil
	}
	return img.config.Config.Labels
}

// id is an image's ID as the API writes it.
func (rec record) id() string { return rec.Config.String() }

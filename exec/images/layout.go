package images

import (
	"context"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// containerdName is where containerd and Docker write an image's whole name.
const containerdName = "io.containerd.image.name"

// readLayout finds the images of an OCI layout.
func (l *loader) readLayout(ctx context.Context) error {
	b, err := l.bundle.document(ctx, "index.json")
	if err != nil {
		return err
	}
	index, err := decodeIndex(b)
	if err != nil {
		return err
	}
	docker, err := l.dockerNames(ctx)
	if err != nil {
		return err
	}
	for _, desc := range l.entries(index) {
		if err := l.layoutImage(ctx, desc, docker); err != nil {
			return err
		}
	}
	return nil
}

// entries are the images of index.json. Where it is itself the index of one
// image for several platforms, only this node's is wanted.
func (l *loader) entries(index ocispec.Index) []ocispec.Descriptor {
	platforms := len(index.Manifests) > 1
	for _, m := range index.Manifests {
		platforms = platforms && m.Platform != nil && layoutName(m) == ""
	}
	if platforms {
		want, err := wanted("")
		if chosen, ok := choose(index, want); ok && err == nil {
			return []ocispec.Descriptor{chosen}
		}
	}
	return index.Manifests
}

func (l *loader) layoutImage(ctx context.Context, desc ocispec.Descriptor, docker map[digest.Digest][]string) error {
	if err := l.bundle.blob(ctx, desc.Digest); err != nil {
		return err
	}
	target := ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	body, err := l.s.blobs.Bytes(desc.Digest, maxDocument)
	if err != nil {
		return err
	}
	if target.MediaType == "" {
		target.MediaType = mediaTypeOf(body)
	}
	chosen := target
	if isIndex(target.MediaType) {
		if chosen, err = l.present(ctx, body); err != nil {
			return err
		}
	} else if !isManifest(target.MediaType) {
		return nil // a signature or another artifact
	}
	rec, err := l.image(ctx, target, chosen)
	if err != nil {
		return err
	}
	var keys []string
	if name := layoutName(desc); name != "" {
		keys, err = dockerKeys([]string{name})
	} else {
		keys, err = dockerKeys(docker[rec.Config])
	}
	if err != nil {
		return err
	}
	l.add(rec, keys)
	return nil
}

// add notes an image, once for all its names.
func (l *loader) add(rec record, keys []string) {
	for i, f := range l.found {
		if f.Target.Digest == rec.Target.Digest {
			l.found[i].keys = slices.Compact(slices.Sorted(slices.Values(append(f.keys, keys...))))
			return
		}
	}
	l.found = append(l.found, loaded{rec, keys})
}

// present chooses the manifest of an index for this node's platform, or else
// the first whose blob is here: archives need not hold all platforms.
func (l *loader) present(ctx context.Context, body []byte) (ocispec.Descriptor, error) {
	index, err := decodeIndex(body)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	want, err := wanted("")
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	candidates := index.Manifests
	if chosen, ok := choose(index, want); ok {
		candidates = append([]ocispec.Descriptor{chosen}, candidates...)
	}
	for _, m := range candidates {
		if m.Platform != nil && m.Platform.OS == "unknown" {
			continue // attestations
		}
		if l.bundle.blob(ctx, m.Digest) == nil {
			return m, nil
		}
	}
	return ocispec.Descriptor{}, badImage("the archive has none of the manifests of its index")
}

// layoutName is the whole name of an image in a layout. The annotation of OCI
// may be a tag only, which names nothing.
func layoutName(d ocispec.Descriptor) string {
	if name := d.Annotations[containerdName]; name != "" {
		return name
	}
	if name := d.Annotations[ocispec.AnnotationRefName]; strings.ContainsAny(name, "/:") {
		return name
	}
	return ""
}

// dockerNames are the names of Docker's manifest, if there is one, by config.
func (l *loader) dockerNames(ctx context.Context) (map[digest.Digest][]string, error) {
	names := map[digest.Digest][]string{}
	if !l.bundle.has("manifest.json") {
		return names, nil
	}
	b, err := l.bundle.document(ctx, "manifest.json")
	if err != nil {
		return nil, err
	}
	entries, err := decodeDockerManifest(b)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if d, err := l.bundle.find(ctx, e.Config); err == nil {
			names[d] = append(names[d], e.RepoTags...)
		}
	}
	return names, nil
}

func isManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == dockerManifest
}

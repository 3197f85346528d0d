package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"skep/exec/content"
)

// Load takes in all images of an archive: what docker save writes, of any
// version since 1.10, or a tar of an OCI layout. The archive as a whole and its
// layers may be plain or compressed with gzip or zstd.
func (s *Store) Load(ctx context.Context, archive io.Reader, progress func(jsonstream.Message)) error {
	return s.load(ctx, newTeller(progress), nil, func(b *bundle) error {
		return b.readArchive(ctx, archive, s.config.Limits)
	})
}

// load takes in what fill puts into a bundle, all images or none. note is
// called with the targets in the change that puts them on record.
func (s *Store) load(ctx context.Context, tell *teller, note func(*state, []digest.Digest), fill func(*bundle) error) error {
	lease := s.blobs.Lease()
	err := func() error {
		defer lease.Release()
		b := s.newBundle(lease)
		if err := fill(b); err != nil {
			return err
		}
		l := loader{s: s, bundle: b, lease: lease, tell: tell}
		if err := l.read(ctx); err != nil {
			return err
		}
		return l.finish(note)
	}()
	_, sweepErr := s.sweep()
	return errors.Join(err, sweepErr)
}

// loader is one load.
type loader struct {
	s      *Store
	bundle *bundle
	lease  *content.Lease
	tell   *teller
	found  []loaded
}

// loaded is one image of a bundle, with the keys of its names.
type loaded struct {
	record
	keys []string
}

// read finds the images of a bundle. An OCI layout is preferred because it has
// the manifests; the names may be in Docker's manifest only.
func (l *loader) read(ctx context.Context) error {
	switch {
	case l.bundle.has("index.json"):
		return l.readLayout(ctx)
	case l.bundle.has("manifest.json"):
		return l.readDocker(ctx)
	}
	return badImage("the archive has neither index.json nor manifest.json")
}

// dockerEntry is one image in Docker's manifest.json.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func decodeDockerManifest(b []byte) ([]dockerEntry, error) {
	var entries []dockerEntry
	if err := json.Unmarshal(b, &entries); err != nil {
		return nil, badImage("manifest.json: %v", err)
	}
	for _, e := range entries {
		if len(e.Layers) > maxLayers {
			return nil, badImage("manifest.json: %d layers, no more than %d are possible", len(e.Layers), maxLayers)
		}
	}
	return entries, nil
}

func (l *loader) readDocker(ctx context.Context) error {
	b, err := l.bundle.document(ctx, "manifest.json")
	if err != nil {
		return err
	}
	entries, err := decodeDockerManifest(b)
	if err != nil {
		return err
	}
	for _, e := range entries {
		rec, err := l.dockerImage(ctx, e)
		if err != nil {
			return err
		}
		keys, err := dockerKeys(e.RepoTags)
		if err != nil {
			return err
		}
		l.found = append(l.found, loaded{rec, keys})
	}
	return nil
}

// dockerImage makes the manifest that Docker's archives do not have, for the
// layers as they are in the archive.
func (l *loader) dockerImage(ctx context.Context, e dockerEntry) (record, error) {
	config, err := l.bundle.find(ctx, e.Config)
	if err != nil {
		return record{}, err
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: config},
	}
	if m.Config.Size, err = l.s.blobs.Size(config); err != nil {
		return record{}, err
	}
	if m.Layers, err = l.describe(ctx, e.Layers); err != nil {
		return record{}, err
	}
	body, err := json.Marshal(m)
	if err != nil {
		return record{}, err
	}
	target := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	l.lease.Hold(target.Digest)
	if _, err := l.s.blobs.Write(body); err != nil {
		return record{}, err
	}
	return l.image(ctx, target, target)
}

// describe is the descriptors of layers that are files of the archive.
func (l *loader) describe(ctx context.Context, names []string) ([]ocispec.Descriptor, error) {
	layers := []ocispec.Descriptor{}
	for _, name := range names {
		d, err := l.bundle.find(ctx, name)
		if err != nil {
			return nil, err
		}
		f, desc, err := l.s.otherBlob(d, ocispec.Descriptor{})
		if err != nil {
			return nil, err
		}
		_ = f.Close()
		layers = append(layers, desc)
	}
	return layers, nil
}

// image takes in an image whose manifest is in the store: it checks its
// documents and unpacks its layers.
func (l *loader) image(ctx context.Context, target, chosen ocispec.Descriptor) (record, error) {
	rec := record{Target: target, Manifest: chosen.Digest, Tagged: time.Now()}
	body, err := l.s.blobs.Bytes(chosen.Digest, maxDocument)
	if err != nil {
		return rec, err
	}
	m, err := decodeManifest(body)
	if err != nil {
		return rec, err
	}
	if err = l.bundle.blob(ctx, m.Config.Digest); err != nil {
		return rec, err
	}
	rec.Config = m.Config.Digest
	img, err := l.s.open(rec)
	if err != nil {
		return rec, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i, desc := range m.Layers {
		diffID := img.config.RootFS.DiffIDs[i]
		l.lease.Hold(diffID, desc.Digest)
		if l.s.layers.Has(diffID) {
			continue
		}
		if err := l.bundle.blob(ctx, desc.Digest); err != nil {
			return rec, errors.Join(err, group.Wait())
		}
		group.Go(func() error {
			bar := l.tell.bar(short(diffID), "Loading layer", desc.Size)
			return l.s.unpackBlob(ctx, diffID, desc, bar.step)
		})
	}
	return rec, group.Wait()
}

// finish puts the images on record and tells of them.
func (l *loader) finish(note func(*state, []digest.Digest)) error {
	if len(l.found) == 0 {
		return badImage("the archive holds no image")
	}
	var targets []digest.Digest
	for _, f := range l.found {
		if err := l.s.commit(f.record, f.keys...); err != nil {
			return err
		}
		targets = append(targets, f.Target.Digest)
	}
	if note != nil {
		err := l.s.change(func(st *state) error {
			note(st, targets)
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, f := range l.found {
		labels := l.s.labels(f.record)
		if len(f.keys) == 0 {
			l.tell.line("Loaded image ID: " + f.id())
			l.s.publish(events.ActionLoad, f.id(), f.id(), labels)
		}
		for _, key := range f.keys {
			l.tell.line("Loaded image: " + familiar(key))
			l.s.publish(events.ActionLoad, f.id(), familiar(key), labels)
		}
	}
	return nil
}

// dockerKeys are the keys of names as they are in archives.
func dockerKeys(names []string) ([]string, error) {
	var keys []string
	for _, name := range names {
		key, err := nameKey(name)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

func nameKey(name string) (string, error) {
	named, err := parse(name)
	if err != nil {
		return "", fmt.Errorf("name of an image: %w", err)
	}
	if digestOf(named) != "" || reference.FamiliarName(named) == digest.SHA256.String() {
		return "", badImage("name %q of an image is no tag", name)
	}
	return tagged(named, tagOf(named)), nil
}

package images

import (
	"archive/tar"
	"context"
	"encoding/json"
	"io"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Save writes images as an archive that is an OCI layout and what docker load
// of any version reads. A repository without a tag means all its tags.
func (s *Store) Save(ctx context.Context, refs []string, w io.Writer) error {
	st := s.state.Load()
	sv := saver{ctx: ctx, s: s, tar: tar.NewWriter(w), written: map[digest.Digest]bool{}}
	lease := s.blobs.Lease()
	defer lease.Release()

	var picked []loaded
	for _, ref := range refs {
		found, err := st.pick(ref)
		if err != nil {
			return err
		}
		picked = append(picked, found...)
	}
	docs := make([]document, len(picked))
	for i, p := range picked { // before the first byte, so that errors are plain
		doc, err := s.document(ctx, p.record)
		if err != nil {
			return err
		}
		docs[i] = doc
		lease.Hold(p.Target.Digest, doc.manifest.Config.Digest)
		for _, l := range doc.manifest.Layers {
			lease.Hold(l.Digest)
		}
	}
	for i, p := range picked {
		if err := sv.image(p, docs[i]); err != nil {
			return err
		}
	}
	if err := sv.finish(); err != nil {
		return err
	}
	for _, p := range picked {
		s.publish(events.ActionSave, p.id(), p.id(), nil)
	}
	return nil
}

// pick are the images of a reference of save, with their names.
func (st *state) pick(ref string) ([]loaded, error) {
	if named, err := reference.ParseNormalizedNamed(ref); err == nil && reference.IsNameOnly(named) {
		var all []loaded
		for _, target := range st.sortedTargets() {
			var keys []string
			for _, key := range st.names(target) {
				if !strings.Contains(key, "@") && repository(key) == named.Name() {
					keys = append(keys, key)
				}
			}
			if len(keys) > 0 {
				all = append(all, loaded{st.Images[target], keys})
			}
		}
		if len(all) > 0 {
			return all, nil
		}
	}
	rec, key, err := st.find(ref)
	if err != nil {
		return nil, err
	}
	if key == "" || strings.Contains(key, "@") {
		return []loaded{{rec, nil}}, nil
	}
	return []loaded{{rec, []string{key}}}, nil
}

// saver is one archive.
type saver struct {
	ctx     context.Context //nolint:containedctx // of the call of Save, which it does not outlive
	s       *Store
	tar     *tar.Writer
	written map[digest.Digest]bool
	index   []ocispec.Descriptor
	docker  []dockerEntry
}

// image writes the blobs of an image and notes it under its names.
func (sv *saver) image(p loaded, doc document) error {
	entry := dockerEntry{Config: blobName(doc.manifest.Config.Digest), Layers: []string{}}
	if err := sv.blob(doc.manifest.Config.Digest); err != nil {
		return err
	}
	for _, l := range doc.manifest.Layers {
		if err := sv.blob(l.Digest); err != nil {
			return err
		}
		entry.Layers = append(entry.Layers, blobName(l.Digest))
	}
	desc := ocispec.Descriptor{MediaType: doc.mediaType, Digest: digest.FromBytes(doc.body), Size: int64(len(doc.body))}
	if err := sv.document(desc.Digest, doc.body); err != nil {
		return err
	}
	if doc.own && p.Target.Digest != desc.Digest {
		// The index goes along, though not all that it names: the image keeps
		// the digest that services are pinned to.
		desc = p.Target
		if err := sv.blob(desc.Digest); err != nil {
			return err
		}
	}
	if len(p.keys) == 0 {
		sv.index = append(sv.index, desc)
	}
	for _, key := range p.keys {
		entry.RepoTags = append(entry.RepoTags, familiar(key))
		d := desc
		d.Annotations = map[string]string{
			containerdName:            key,
			ocispec.AnnotationRefName: key[strings.LastIndex(key, ":")+1:],
		}
		sv.index = append(sv.index, d)
	}
	sv.docker = append(sv.docker, entry)
	return nil
}

// document writes a blob that need not be in the store, once.
func (sv *saver) document(d digest.Digest, body []byte) error {
	if sv.written[d] {
		return nil
	}
	sv.written[d] = true
	return sv.file(blobName(d), body)
}

func blobName(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }

// blob writes a blob of the store, once.
func (sv *saver) blob(d digest.Digest) error {
	if sv.written[d] {
		return nil
	}
	sv.written[d] = true
	f, err := sv.s.blobs.Reader(d)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err = sv.header(blobName(d), fi.Size()); err != nil {
		return err
	}
	_, err = io.Copy(sv.tar, &ctxReader{sv.ctx, f})
	return err
}

func (sv *saver) header(name string, size int64) error {
	return sv.tar.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)})
}

func (sv *saver) file(name string, body []byte) error {
	if err := sv.header(name, int64(len(body))); err != nil {
		return err
	}
	_, err := sv.tar.Write(body)
	return err
}

// finish writes what says what the blobs are.
func (sv *saver) finish() error {
	documents := []struct {
		name string
		body any
	}{
		{ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}},
		{ocispec.ImageIndexFile, ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: sv.index,
		}},
		{"manifest.json", sv.docker},
	}
	for _, d := range documents {
		b, err := json.Marshal(d.body)
		if err != nil {
			return err
		}
		if err := sv.file(d.name, b); err != nil {
			return err
		}
	}
	return sv.tar.Close()
}

package images

import (
	"context"
	"encoding/json"
	"io"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	apiregistry "github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"skep/exec/registry"
	"skep/store/object"
)

// Push writes an image to the registry of its name: of an index, the manifest
// that is kept here.
func (s *Store) Push(ctx context.Context, ref string, auth *apiregistry.AuthConfig, progress func(jsonstream.Message)) error {
	named, err := parse(ref)
	if err != nil {
		return err
	}
	st := s.state.Load()
	rec, _, ok := st.named(named)
	if !ok {
		return object.Errorf(errdefs.ErrNotFound, "An image does not exist locally with the tag: %s", reference.FamiliarName(named))
	}
	lease := s.blobs.Lease()
	defer lease.Release()
	doc, err := s.document(ctx, rec)
	if err != nil {
		return err
	}
	p := pusher{s: s, tell: newTeller(progress), from: st.siblings(rec, named)}
	if p.repo, err = s.registry.Push(named, auth, p.from...); err != nil {
		return err
	}
	p.tell.status("", "The push refers to repository ["+named.Name()+"]")
	if err := p.blobs(ctx, doc); err != nil {
		return err
	}
	target := digest.FromBytes(doc.body)
	to := label(named)
	if err := p.repo.PutManifest(ctx, to, doc.mediaType, doc.body); err != nil {
		return err
	}
	p.tell.status("", to+": digest: "+target.String()+" size: "+strconv.Itoa(len(doc.body)))
	p.tell.aux(apiPushResult{Tag: to, Digest: target.String(), Size: len(doc.body)})
	if target == rec.Target.Digest {
		if err := s.commit(rec, digested(named, target)); err != nil {
			return err
		}
	}
	s.publishName(events.ActionPush, reference.FamiliarString(named), rec)
	return nil
}

// apiPushResult is what programs read at the end of a push.
type apiPushResult struct {
	Tag    string
	Digest string
	Size   int
}

// document is a manifest as it can leave the store: with layers whose blobs
// are here.
type document struct {
	mediaType string
	body      []byte
	manifest  ocispec.Manifest
	diffIDs   []digest.Digest
	own       bool // body is the image's own manifest
}

// document prepares an image to leave the store. The manifest is the image's
// own unless the blob of one of its layers was never fetched because the layer
// was here in another form.
func (s *Store) document(ctx context.Context, rec record) (document, error) {
	img, err := s.open(rec)
	if err != nil {
		return document{}, err
	}
	d := document{manifest: img.manifest, diffIDs: img.config.RootFS.DiffIDs}
	d.manifest.Layers = slices.Clone(d.manifest.Layers)
	changed := false
	for i, l := range d.manifest.Layers {
		f, desc, layerErr := s.layerBlob(ctx, d.diffIDs[i], l)
		if layerErr != nil {
			return d, layerErr
		}
		_ = f.Close()
		if desc.Digest != l.Digest {
			d.manifest.Layers[i], changed = desc, true
		}
	}
	if d.mediaType = d.manifest.MediaType; d.mediaType == "" {
		d.mediaType = ocispec.MediaTypeImageManifest
	}
	if d.own = !changed; d.own {
		d.body, err = s.blobs.Bytes(rec.Manifest, maxDocument)
		return d, err
	}
	d.mediaType, d.manifest.MediaType = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageManifest
	d.manifest.Config.MediaType = ocispec.MediaTypeImageConfig
	d.body, err = json.Marshal(d.manifest)
	return d, err
}

// siblings are the repositories of the same registry that have the image: its
// blobs may be mounted from there.
func (st *state) siblings(rec record, named reference.Named) []string {
	var from []string
	for _, key := range st.names(rec.Target.Digest) {
		other, err := reference.ParseNormalizedNamed(key)
		if err != nil || reference.Domain(other) != reference.Domain(named) || digestOf(other) == "" {
			continue
		}
		if p := reference.Path(other); p != reference.Path(named) && !slices.Contains(from, p) {
			from = append(from, p)
		}
	}
	return from
}

// pusher is one push.
type pusher struct {
	s    *Store
	repo *registry.Repository
	tell *teller
	from []string
}

// blobs pushes layers, several at a time, and then the config.
func (p *pusher) blobs(ctx context.Context, doc document) error {
	group, layerCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	seen := map[digest.Digest]bool{}
	for i, desc := range doc.manifest.Layers {
		if seen[desc.Digest] {
			continue
		}
		seen[desc.Digest] = true
		p.tell.status(short(doc.diffIDs[i]), "Preparing")
		group.Go(func() error { return p.blob(layerCtx, short(doc.diffIDs[i]), desc) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return p.blob(ctx, "", doc.manifest.Config)
}

// blob pushes one blob; without an id it does so silently.
func (p *pusher) blob(ctx context.Context, id string, desc ocispec.Descriptor) error {
	tell := func(status string) {
		if id != "" {
			p.tell.status(id, status)
		}
	}
	there, err := p.repo.HasBlob(ctx, desc.Digest)
	if err != nil {
		return err
	}
	if there {
		tell("Layer already exists")
		return nil
	}
	from := ""
	if len(p.from) > 0 {
		from = p.from[0]
	}
	outcome, err := p.repo.PutBlob(ctx, desc, from, func() (io.ReadCloser, error) {
		f, openErr := p.s.blobs.Reader(desc.Digest)
		if openErr != nil || id == "" {
			return f, openErr
		}
		return &stepReader{ReadCloser: f, step: p.tell.bar(id, "Pushing", desc.Size).step}, nil
	})
	switch {
	case err != nil:
		return err
	case outcome == registry.Mounted:
		tell("Mounted from " + from)
	default:
		tell("Pushed")
	}
	return nil
}

package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	apiregistry "github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"skep/exec/content"
	"skep/exec/layers"
	"skep/store/object"
)

// parallel is how many layers are fetched and unpacked at a time.
const parallel = 4

// patience is how long a registry is asked for what another node has.
const patience = 10 * time.Second

// Pull fetches an image: one that is named by digest from this node, other
// nodes or the registry, in this order, because a digest is the whole truth;
// one that is named by tag from the registry, or from other nodes if the
// registry does not have it or does not answer. An empty platform means this
// node's.
func (s *Store) Pull(ctx context.Context, ref, platform string, auth *apiregistry.AuthConfig, progress func(jsonstream.Message)) error {
	named, err := parse(ref)
	if err != nil {
		return err
	}
	want, err := wanted(platform)
	if err != nil {
		return err
	}
	tell := newTeller(progress)
	if digestOf(named) != "" && platform == "" {
		if rec, _, ok := s.state.Load().named(named); ok && s.complete(rec) {
			return s.finishPull(named, rec, rec.Target.Digest, tell)
		}
	}
	if s.isHello(named) {
		// Of another digest, it is that of another version of this binary.
		if err = s.pullHello(ctx, named, tell); err == nil || digestOf(named) == "" || !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
	}
	p := puller{s: s, tell: tell, lease: s.blobs.Lease(), named: named, want: want, explicit: platform != ""}
	if p.origins, err = s.origins(ctx, named, auth); err != nil {
		return err
	}
	rec, err := p.pull(ctx)
	if err == nil {
		before := s.state.Load().Names[tagged(named, tagOf(named))]
		err = s.finishPull(named, rec, before, tell)
	}
	p.lease.Release()
	if errors.Is(err, layers.ErrRefused) || errors.Is(err, content.ErrMismatch) {
		// What cannot become an image leaves nothing; what broke off stays for
		// the next try.
		_, sweepErr := s.sweep()
		return errors.Join(err, sweepErr)
	}
	return err
}

// origins are where an image may be, in the order of asking.
func (s *Store) origins(ctx context.Context, named reference.Named, auth *apiregistry.AuthConfig) ([]origin, error) {
	repo, err := s.registry.Pull(named, auth)
	if err != nil {
		return nil, err
	}
	if s.config.Source == nil {
		return []origin{repo}, nil
	}
	if d := digestOf(named); d != "" {
		return []origin{newPeers(s.config.Source, d), repo}, nil
	}
	found, err := s.config.Source.Resolve(ctx, named.String())
	if err != nil {
		return []origin{repo}, nil //nolint:nilerr // the registry decides
	}
	return []origin{hasty{repo, patience}, newPeers(s.config.Source, found.Descriptor.Digest)}, nil
}

// wanted reads a platform as the CLI writes it.
func wanted(platform string) (ocispec.Platform, error) {
	if platform == "" {
		return platforms.Normalize(ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}), nil
	}
	p, err := platforms.Parse(platform)
	if err != nil {
		return p, object.Errorf(errdefs.ErrInvalidArgument, "%v", err)
	}
	return platforms.Normalize(p), nil
}

// finishPull puts the image on record and tells the result as docker does.
func (s *Store) finishPull(named reference.Named, rec record, before digest.Digest, tell *teller) error {
	rec.Tagged = time.Now()
	keys := []string{digested(named, rec.Target.Digest)}
	// A tag beside a digest says nothing that the registry vouched for.
	if tag := tagOf(named); tag != "" && digestOf(named) == "" {
		keys = append(keys, tagged(named, tag))
	}
	if err := s.commit(rec, keys...); err != nil {
		return err
	}
	name := reference.FamiliarString(named)
	status := "Downloaded newer image for "
	if before == rec.Target.Digest {
		status = "Image is up to date for "
	}
	tell.status("", "Digest: "+rec.Target.Digest.String())
	tell.status("", "Status: "+status+name)
	s.publishName(events.ActionPull, name, rec)
	return nil
}

func (s *Store) pullHello(ctx context.Context, named reference.Named, tell *teller) error {
	before := s.state.Load().Names[tagged(named, tagOf(named))]
	tell.status(label(named), "Pulling from "+reference.Path(named))
	rec, err := s.makeHello(ctx, named)
	if err != nil {
		return err
	}
	return s.finishPull(named, rec, before, tell)
}

// label is how the lines of a pull start.
func label(named reference.Named) string {
	if d := digestOf(named); d != "" {
		return d.String()
	}
	return tagOf(named)
}

// puller is one pull.
type puller struct {
	s        *Store
	origins  []origin // that which had the manifest is the first
	tell     *teller
	lease    *content.Lease
	named    reference.Named
	want     ocispec.Platform
	explicit bool // the user asked for the platform
}

// each calls f for the origins until one succeeds, for other nodes until no
// other is left. Of all errors the registry's is told: users know its texts.
func (p *puller) each(ctx context.Context, d digest.Digest, f func(origin) error) error {
	var told error
	for _, o := range p.origins {
		nodes, peer := o.(*peers)
		err := f(o)
		for err != nil && ctx.Err() == nil && peer && nodes.blame(d, err) {
			p.s.log.WarnContext(ctx, "refused blob of other node", "blob", d, "err", err)
			err = f(o)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		if told == nil || !peer {
			told = err
		}
	}
	return told
}

// manifest finds out what the name means, and who has it.
func (p *puller) manifest(ctx context.Context) (body []byte, target ocispec.Descriptor, err error) {
	var from origin
	err = p.each(ctx, digestOf(p.named), func(o origin) (err error) {
		from = o
		body, target, err = o.Manifest(ctx, label(p.named))
		return err
	})
	if err != nil {
		return nil, target, err
	}
	i := slices.Index(p.origins, from)
	p.origins = slices.Concat(p.origins[i:], p.origins[:i])
	if _, peer := from.(*peers); peer {
		p.tell.status(label(p.named), "Pulling from other nodes of the swarm")
	} else {
		p.tell.status(label(p.named), "Pulling from "+reference.Path(p.named))
	}
	return body, target, nil
}

func (p *puller) pull(ctx context.Context) (record, error) {
	body, target, err := p.manifest(ctx)
	if err != nil {
		return record{}, err
	}
	if t := mediaTypeOf(body); target.MediaType == "" || t != "" {
		target.MediaType = t
	}
	if err = p.keep(target.Digest, body); err != nil {
		return record{}, err
	}
	chosen := target
	if isIndex(target.MediaType) {
		if chosen, body, err = p.choose(ctx, body); err != nil {
			return record{}, err
		}
	}
	manifest, err := decodeManifest(body)
	if err != nil {
		return record{}, err
	}
	config, err := p.config(ctx, manifest)
	if err != nil {
		return record{}, err
	}
	if err := p.layers(ctx, manifest, config); err != nil {
		return record{}, err
	}
	return record{Target: target, Manifest: chosen.Digest, Config: manifest.Config.Digest}, nil
}

// keep holds and stores a document.
func (p *puller) keep(d digest.Digest, body []byte) error {
	p.lease.Hold(d)
	_, err := p.s.blobs.Write(body)
	return err
}

// choose finds the manifest of the wanted platform and reads it.
func (p *puller) choose(ctx context.Context, body []byte) (ocispec.Descriptor, []byte, error) {
	index, err := decodeIndex(body)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	chosen, ok := choose(index, p.want)
	if !ok {
		return ocispec.Descriptor{}, nil, object.Errorf(errdefs.ErrNotFound,
			"no matching manifest for %s in the manifest list entries", platforms.Format(p.want))
	}
	p.lease.Hold(chosen.Digest)
	if body, err = p.s.blobs.Bytes(chosen.Digest, maxDocument); err == nil {
		return chosen, body, nil
	}
	err = p.each(ctx, chosen.Digest, func(o origin) (err error) {
		body, _, err = o.Manifest(ctx, chosen.Digest.String())
		return err
	})
	if err != nil {
		return chosen, nil, err
	}
	return chosen, body, p.keep(chosen.Digest, body)
}

// choose is the manifest of an index that fits a platform best.
func choose(index ocispec.Index, want ocispec.Platform) (ocispec.Descriptor, bool) {
	match := platforms.Only(want)
	var best ocispec.Descriptor
	found := false
	for _, m := range index.Manifests {
		if m.Platform == nil || !match.Match(*m.Platform) {
			continue
		}
		if !found || match.Less(*m.Platform, *best.Platform) {
			best, found = m, true
		}
	}
	if !found && len(index.Manifests) == 1 && index.Manifests[0].Platform == nil {
		return index.Manifests[0], true // its config will tell
	}
	return best, found
}

// config reads the config and checks that it can run here, or is what was asked for.
func (p *puller) config(ctx context.Context, m ocispec.Manifest) (dockerspec.DockerOCIImage, error) {
	p.lease.Hold(m.Config.Digest)
	body, err := p.s.blobs.Bytes(m.Config.Digest, maxDocument)
	if err != nil {
		err = p.each(ctx, m.Config.Digest, func(o origin) (err error) {
			body, err = o.Bytes(ctx, m.Config)
			return err
		})
		if err != nil {
			return dockerspec.DockerOCIImage{}, err
		}
		if err = p.keep(m.Config.Digest, body); err != nil {
			return dockerspec.DockerOCIImage{}, err
		}
	}
	c, err := decodeConfig(body, len(m.Layers))
	if err != nil {
		return c, err
	}
	if c.OS != "" && c.OS != "linux" {
		return c, object.Errorf(errdefs.ErrInvalidArgument, "image operating system %q cannot be used on this platform", c.OS)
	}
	if p.explicit && c.Architecture != "" && !platforms.Only(p.want).Match(c.Platform) {
		return c, object.Errorf(errdefs.ErrNotFound,
			"image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
			reference.FamiliarString(p.named), platforms.Format(c.Platform), platforms.Format(p.want))
	}
	return c, nil
}

// layers fetches and unpacks what is not here, several layers at a time.
func (p *puller) layers(ctx context.Context, m ocispec.Manifest, c dockerspec.DockerOCIImage) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i, desc := range m.Layers {
		p.lease.Hold(desc.Digest, c.RootFS.DiffIDs[i])
		if !p.s.layers.Has(c.RootFS.DiffIDs[i]) {
			p.tell.status(short(desc.Digest), "Pulling fs layer")
		}
	}
	for i, desc := range m.Layers {
		group.Go(func() error { return p.layer(ctx, c.RootFS.DiffIDs[i], desc) })
	}
	return group.Wait()
}

func (p *puller) layer(ctx context.Context, diffID digest.Digest, desc ocispec.Descriptor) error {
	id := short(desc.Digest)
	has := p.s.layers.Has(diffID)
	if has && p.shareable(diffID, desc) {
		p.tell.status(id, "Already exists")
		return nil
	}
	if p.s.blobs.Has(desc.Digest) {
		bar := p.tell.bar(id, "Extracting", desc.Size)
		if err := p.s.unpackBlob(ctx, diffID, desc, bar.step); err != nil {
			return err
		}
		p.tell.status(id, "Pull complete")
		return nil
	}
	if desc.Size > p.s.config.Limits.Bytes {
		return badImage("layer %s is larger than %d bytes", id, p.s.config.Limits.Bytes)
	}
	err := p.each(ctx, desc.Digest, func(o origin) error {
		bar := p.tell.bar(id, "Downloading", desc.Size)
		bar.last = "Download complete"
		if has {
			return p.keepLayer(ctx, o, desc, bar.step)
		}
		return p.s.unpackStream(ctx, diffID, desc, func(ctx context.Context) (io.ReadCloser, error) {
			return o.Blob(ctx, desc)
		}, bar.step)
	})
	if err != nil {
		return fmt.Errorf("layer %s: %w", id, err)
	}
	p.tell.status(id, "Pull complete")
	return nil
}

// shareable says whether a layer that is unpacked here needs no blob: it has
// one, one can be made, or other nodes can have it from the registry. What came
// from another node must be able to go on to the next.
func (p *puller) shareable(diffID digest.Digest, desc ocispec.Descriptor) bool {
	_, peer := p.origins[0].(*peers)
	return !peer || p.s.blobs.Has(desc.Digest) || p.s.canMake(diffID, desc.Digest)
}

// keepLayer fetches the blob of a layer that is unpacked already.
func (p *puller) keepLayer(ctx context.Context, o origin, desc ocispec.Descriptor, step func(int64)) error {
	blob, err := o.Blob(ctx, desc)
	if err != nil {
		return err
	}
	defer blob.Close()
	return p.s.keepBlob(ctx, desc, blob, step)
}

// short is how docker writes the digest of a layer.
func short(d digest.Digest) string { return d.Encoded()[:12] }

// complete says whether all of an image is here.
func (s *Store) complete(rec record) bool {
	img, err := s.open(rec)
	if err != nil {
		return false
	}
	for _, d := range img.config.RootFS.DiffIDs {
		if !s.layers.Has(d) {
			return false
		}
	}
	return true
}

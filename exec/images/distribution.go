package images

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	apiregistry "github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Login checks credentials with their registry.
func (s *Store) Login(ctx context.Context, auth apiregistry.AuthConfig) (apiregistry.AuthResponse, error) {
	return s.registry.Login(ctx, auth)
}

// Distribution tells what a name means: in this store, or else in those of
// other nodes, or else in its registry. skep/hello is made if it is not there.
func (s *Store) Distribution(ctx context.Context, ref string, auth *apiregistry.AuthConfig) (apiregistry.DistributionInspect, error) {
	named, err := parse(ref)
	if err != nil {
		return apiregistry.DistributionInspect{}, err
	}
	rec, _, ok := s.state.Load().named(named)
	if !ok && s.isHello(named) {
		rec, err = s.makeHello(ctx, named)
		if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return apiregistry.DistributionInspect{}, err
		}
		ok = err == nil
	}
	if ok {
		return s.local(rec)
	}
	if s.config.Source == nil {
		return s.remote(ctx, named, auth)
	}
	found, err := s.config.Source.Resolve(ctx, named.String())
	if err != nil {
		return s.remote(ctx, named, auth)
	}
	answer := apiregistry.DistributionInspect{Descriptor: found.Descriptor, Platforms: found.Platforms}
	if found.Vouched {
		return answer, nil
	}
	hurried, cancel := context.WithTimeout(ctx, patience/2)
	defer cancel()
	if d, err := s.remote(hurried, named, auth); err == nil {
		return d, nil
	}
	return answer, ctx.Err()
}

// remote is the registry's answer.
func (s *Store) remote(ctx context.Context, named reference.Named, auth *apiregistry.AuthConfig) (apiregistry.DistributionInspect, error) {
	repo, err := s.registry.Pull(named, auth)
	if err != nil {
		return apiregistry.DistributionInspect{}, err
	}
	body, desc, err := repo.Manifest(ctx, label(named))
	if err != nil {
		return apiregistry.DistributionInspect{}, err
	}
	if t := mediaTypeOf(body); t != "" {
		desc.MediaType = t
	}
	d := apiregistry.DistributionInspect{Descriptor: desc}
	d.Platforms, err = platformsOf(desc.MediaType, body, func(config ocispec.Descriptor) ([]byte, error) {
		return repo.Bytes(ctx, config)
	})
	return d, err
}

// local is the answer for an image of this store.
func (s *Store) local(rec record) (apiregistry.DistributionInspect, error) {
	d := apiregistry.DistributionInspect{Descriptor: rec.Target}
	body, err := s.blobs.Bytes(rec.Target.Digest, maxDocument)
	if err != nil {
		return d, err
	}
	d.Platforms, err = platformsOf(rec.Target.MediaType, body, func(config ocispec.Descriptor) ([]byte, error) {
		return s.blobs.Bytes(config.Digest, maxDocument)
	})
	return d, err
}

// platformsOf are the platforms that a manifest or index is for.
func platformsOf(mediaType string, body []byte, read func(ocispec.Descriptor) ([]byte, error)) ([]ocispec.Platform, error) {
	found := []ocispec.Platform{}
	if isIndex(mediaType) {
		index, err := decodeIndex(body)
		if err != nil {
			return nil, err
		}
		for _, m := range index.Manifests {
			if m.Platform != nil && m.Platform.OS != "unknown" {
				found = append(found, *m.Platform)
			}
		}
		return found, nil
	}
	m, err := decodeManifest(body)
	if err != nil {
		return nil, err
	}
	config, err := read(m.Config)
	if err != nil {
		return nil, err
	}
	c, err := decodeConfig(config, len(m.Layers))
	if err != nil {
		return nil, err
	}
	if c.OS != "" && c.Architecture != "" {
		found = append(found, c.Platform)
	}
	return found, nil
}

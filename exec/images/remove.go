package images

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"

	"skep/store/object"
)

// Tag gives an image another name. A name that was another image's moves.
func (s *Store) Tag(_ context.Context, ref, target string) error {
	named, err := reference.ParseNormalizedNamed(target)
	if err != nil {
		return object.Errorf(errdefs.ErrInvalidArgument, "%v", err)
	}
	if digestOf(named) != "" {
		return object.Errorf(errdefs.ErrInvalidArgument, "refusing to create a tag with a digest reference")
	}
	if reference.FamiliarName(named) == digest.SHA256.String() {
		return object.Errorf(errdefs.ErrInvalidArgument, "refusing to create an ambiguous tag using digest algorithm as name")
	}
	named = reference.TagNameOnly(named)
	var rec record
	err = s.change(func(st *state) error {
		var missing error
		if rec, _, missing = st.find(ref); missing != nil {
			return missing
		}
		rec.Tagged = time.Now()
		st.Images[rec.Target.Digest] = rec
		st.Names[tagged(named, tagOf(named))] = rec.Target.Digest
		return nil
	})
	if err != nil {
		return err
	}
	s.publish(events.ActionTag, rec.id(), reference.FamiliarString(named), s.labels(rec))
	return nil
}

// Remove removes a name, and with the last one the image; an ID removes the
// image and all its names. An image that a running container uses stays in any
// case; one that a stopped container uses loses its names if force is set, and
// goes with a later prune. Skep has no images that are only parents of others,
// so prune makes no difference.
func (s *Store) Remove(ctx context.Context, ref string, force, _ bool) ([]image.DeleteResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var done []image.DeleteResponse
	var rec record
	var labels map[string]string
	err := s.change(func(st *state) error {
		var key string
		var err error
		if rec, key, err = st.find(ref); err != nil {
			return err
		}
		labels = s.labels(rec)
		done, err = s.remove(st, rec, key, force)
		return err
	})
	if err != nil {
		return nil, err
	}
	return done, s.finishRemove(rec.id(), done, labels)
}

func (s *Store) remove(st *state, rec record, key string, force bool) ([]image.DeleteResponse, error) {
	targets := st.targets(rec.Config)
	keys := []string{}
	for _, t := range targets {
		keys = append(keys, st.names(t)...)
	}
	drop := keys
	if key != "" {
		drop = []string{key}
		// Digests go with the last tag of their repository.
		repo := repository(key)
		others := slices.ContainsFunc(keys, func(k string) bool {
			return k != key && repository(k) == repo && !strings.Contains(k, "@")
		})
		if !others {
			for _, k := range keys {
				if k != key && repository(k) == repo {
					drop = append(drop, k)
				}
			}
		}
	}
	last := len(drop) == len(keys)
	users := s.config.InUse(rec.id())
	if err := conflict(rec, key, keys, users, last, force); err != nil {
		return nil, err
	}
	var done []image.DeleteResponse
	for _, k := range drop {
		delete(st.Names, k)
		done = append(done, image.DeleteResponse{Untagged: familiar(k)})
	}
	if !last || len(users) > 0 {
		return done, nil
	}
	for _, t := range targets {
		delete(st.Images, t)
	}
	return append(done, image.DeleteResponse{Deleted: rec.id()}), nil
}

// conflict is the reason why a removal may not be.
func conflict(rec record, key string, keys []string, users []User, last, force bool) error {
	short := rec.Config.Encoded()[:12]
	for _, u := range users {
		name := familiar(key)
		id := u.Container[:min(12, len(u.Container))]
		switch {
		case u.Running && key == "":
			return object.Errorf(errdefs.ErrConflict,
				"conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", short, id)
		case !last || force:
			continue
		case key == "":
			return object.Errorf(errdefs.ErrConflict,
				"conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", short, id)
		default:
			return object.Errorf(errdefs.ErrConflict,
				"conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s",
				name, id, short)
		}
	}
	if key == "" && !force {
		repos, tags := map[string]bool{}, 0
		for _, k := range keys {
			repos[repository(k)] = true
			if !strings.Contains(k, "@") {
				tags++
			}
		}
		if len(repos) > 1 || tags > 1 { // docker's text does not tell them apart
			return object.Errorf(errdefs.ErrConflict,
				"conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", short)
		}
	}
	return nil
}

// repository is a key of state.Names without its tag or digest.
func repository(key string) string {
	if repo, _, ok := strings.Cut(key, "@"); ok {
		return repo
	}
	return key[:strings.LastIndex(key, ":")]
}

// finishRemove tells of what was removed and frees its content.
func (s *Store) finishRemove(id string, done []image.DeleteResponse, labels map[string]string) error {
	deleted := false
	for _, d := range done {
		if d.Untagged != "" {
			s.publish(events.ActionUnTag, id, d.Untagged, labels)
		}
		if d.Deleted != "" {
			deleted = true
			s.publish(events.ActionDelete, id, id, labels)
		}
	}
	if !deleted {
		return nil
	}
	_, err := s.sweep()
	return err
}

// Prune removes images that no container uses and keep does not hold back;
// dangling limits it to those without a tag.
func (s *Store) Prune(ctx context.Context, dangling bool, keep func(image.Summary) bool) (image.PruneReport, error) {
	list, err := s.List(ctx)
	if err != nil {
		return image.PruneReport{}, err
	}
	report := image.PruneReport{}
	for _, summary := range list {
		if dangling && len(summary.RepoTags) > 0 || keep != nil && keep(summary) {
			continue
		}
		done, pruneErr := s.pruneOne(summary)
		if pruneErr != nil {
			return report, pruneErr
		}
		report.ImagesDeleted = append(report.ImagesDeleted, done...)
	}
	freed, err := s.sweep()
	report.SpaceReclaimed = uint64(max(freed, 0))
	return report, err
}

// pruneOne removes an image unless it is in use, or was changed meanwhile.
func (s *Store) pruneOne(summary image.Summary) ([]image.DeleteResponse, error) {
	var done []image.DeleteResponse
	err := s.change(func(st *state) error {
		id := digest.Digest(summary.ID)
		tags, digests := st.repo(id)
		if len(s.config.InUse(summary.ID)) > 0 || !slices.Equal(tags, summary.RepoTags) {
			return nil
		}
		for _, name := range append(tags, digests...) {
			done = append(done, image.DeleteResponse{Untagged: name})
		}
		for _, t := range st.targets(id) {
			for _, k := range st.names(t) {
				delete(st.Names, k)
			}
			delete(st.Images, t)
		}
		done = append(done, image.DeleteResponse{Deleted: summary.ID})
		return nil
	})
	if err != nil || len(done) == 0 {
		return nil, err
	}
	for _, d := range done {
		if d.Untagged != "" {
			s.publish(events.ActionUnTag, summary.ID, d.Untagged, summary.Labels)
		} else {
			s.publish(events.ActionDelete, summary.ID, summary.ID, summary.Labels)
		}
	}
	return done, nil
}

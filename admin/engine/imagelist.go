package engine

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"

	"skep/admin/filters"
)

func (a *API) imageList(w http.ResponseWriter, r *http.Request) error {
	f, err := filterBy(r, "before", "dangling", "label", "label!", "reference", "since", "until")
	if err != nil {
		return err
	}
	keep, err := a.imageFilter(r.Context(), f)
	if err != nil {
		return err
	}
	list, err := a.Images.List(r.Context())
	if err != nil {
		return err
	}
	selected := []image.Summary{}
	for _, each := range list {
		if s, ok := keep(each); ok {
			s.Containers = -1
			if !flag(r, "shared-size") {
				s.SharedSize = -1
			}
			if !flag(r, "manifests") || minorOf(r) < 47 {
				s.Manifests = nil
			}
			s.RepoTags, s.RepoDigests = listed(s.RepoTags), listed(s.RepoDigests)
			selected = append(selected, s)
		}
	}
	slices.SortStableFunc(selected, func(x, y image.Summary) int { return cmp.Compare(y.Created, x.Created) })
	return writeJSON(w, http.StatusOK, imagesShape(selected, minorOf(r)))
}

// imageFilter is a function that says whether an image is wanted, and with
// which of its names.
func (a *API) imageFilter(ctx context.Context, f filters.Filters) (func(image.Summary) (image.Summary, bool), error) {
	dangling, err := f.Bool("dangling", false)
	if err != nil {
		return nil, err
	}
	until, err := untilFilter(f, time.Now())
	if err != nil {
		return nil, err
	}
	since, err := a.imageCreated(ctx, f.Values("since"))
	if err != nil {
		return nil, err
	}
	before, err := a.imageCreated(ctx, f.Values("before"))
	if err != nil {
		return nil, err
	}
	patterns := f.Values("reference")
	for _, p := range patterns {
		if _, err := reference.FamiliarMatch(p, anyName{}); err != nil {
			return nil, invalid("invalid filter 'reference=%s'", p)
		}
	}
	return func(s image.Summary) (image.Summary, bool) {
		made := time.Unix(s.Created, 0)
		switch {
		case f.Has("dangling") && dangling != isDangling(s),
			!until.IsZero() && !made.Before(until),
			!since.IsZero() && !made.After(since),
			!before.IsZero() && !made.Before(before),
			!labelled(f, s.Labels):
			return s, false
		}
		if len(patterns) > 0 {
			s.RepoTags, s.RepoDigests = matching(patterns, s.RepoTags), matching(patterns, s.RepoDigests)
			return s, len(s.RepoTags)+len(s.RepoDigests) > 0
		}
		return s, true
	}, nil
}

// anyName is a reference to try a pattern on.
type anyName struct{}

func (anyName) String() string { return "image" }

// isDangling says whether an image has no name left.
func isDangling(s image.Summary) bool {
	return !slices.ContainsFunc(s.RepoTags, func(t string) bool { return t != "<none>:<none>" })
}

// imageCreated is when the last of the images was made.
func (a *API) imageCreated(ctx context.Context, refs []string) (t time.Time, err error) {
	for _, ref := range refs {
		i, err := a.Images.Inspect(ctx, ref)
		if err != nil {
			return t, err
		}
		if t, err = time.Parse(time.RFC3339Nano, i.Created); err != nil {
			t = time.Unix(0, 0)
		}
		t = t.Truncate(time.Second) // as lists have it
	}
	return t, nil
}

// matching are the names that one of the patterns fits. A pattern is for the
// name as users write it, with or without the tag.
func matching(patterns, names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		ref, err := reference.ParseNormalizedNamed(name)
		return err != nil || !slices.ContainsFunc(patterns, func(p string) bool {
			ok, err := reference.FamiliarMatch(p, ref)
			return ok && err == nil
		})
	})
}

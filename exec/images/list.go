package images

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"
	"github.com/opencontainers/go-digest"
)

// List is all images, one entry for each ID.
func (s *Store) List(ctx context.Context) ([]image.Summary, error) {
	st := s.state.Load()
	ids := st.ids()
	list := make([]image.Summary, 0, len(ids))
	shared := map[digest.Digest]int{} // how many images have a layer
	pictures := make([]picture, 0, len(ids))
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		rec, _ := st.image(id)
		img, err := s.open(rec)
		if err != nil {
			s.log.WarnContext(ctx, "read image", "image", id, "err", err)
			continue
		}
		pictures = append(pictures, img)
		for d := range unique(img.config.RootFS.DiffIDs) {
			shared[d]++
		}
	}
	for _, img := range pictures {
		tags, digests := st.repo(img.Config)
		summary := image.Summary{
			ID: img.id(), RepoTags: tags, RepoDigests: digests,
			Labels:     img.config.Config.Labels,
			Size:       s.size(img),
			Containers: int64(len(s.config.InUse(img.id()))),
			Created:    stamp(img.config.Created),
		}
		for d := range unique(img.config.RootFS.DiffIDs) {
			if shared[d] > 1 {
				summary.SharedSize += s.layerSize(d)
			}
		}
		list = append(list, summary)
	}
	return list, nil
}

// stamp is a time as the API has it; clients print one that is not known as N/A
// only if it is that of the zero time.
func stamp(t *time.Time) int64 {
	if t == nil {
		return time.Time{}.Unix()
	}
	return t.Unix()
}

func unique(ds []digest.Digest) map[digest.Digest]bool {
	set := map[digest.Digest]bool{}
	for _, d := range ds {
		set[d] = true
	}
	return set
}

// repo are the names of an ID as users write them.
func (st *state) repo(id digest.Digest) (tags, digests []string) {
	tags, digests = []string{}, []string{}
	for _, target := range st.targets(id) {
		for _, key := range st.names(target) {
			if strings.Contains(key, "@") {
				digests = append(digests, familiar(key))
			} else {
				tags = append(tags, familiar(key))
			}
		}
	}
	slices.Sort(tags)
	slices.Sort(digests)
	return tags, digests
}

// size is the bytes of an image's files, layers that occur twice counted once.
func (s *Store) size(img picture) int64 {
	var n int64
	for d := range unique(img.config.RootFS.DiffIDs) {
		n += s.layerSize(d)
	}
	return n
}

func (s *Store) layerSize(d digest.Digest) int64 {
	info, err := s.layers.Info(d)
	if err != nil {
		return 0
	}
	return info.Size
}

// DiskUsage is the size of all layers in bytes, each counted once.
func (s *Store) DiskUsage(ctx context.Context) (int64, error) {
	var n int64
	for d := range s.layers.All() {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n += s.layerSize(d)
	}
	return n, nil
}

// Inspect is all that is known of an image.
func (s *Store) Inspect(_ context.Context, ref string) (image.InspectResponse, error) {
	st := s.state.Load()
	rec, _, err := st.find(ref)
	if err != nil {
		return image.InspectResponse{}, err
	}
	img, err := s.open(rec)
	if err != nil {
		return image.InspectResponse{}, err
	}
	c := img.config
	tags, digests := st.repo(rec.Config)
	r := image.InspectResponse{
		ID: rec.id(), RepoTags: tags, RepoDigests: digests,
		Author: c.Author, Config: &c.Config,
		Architecture: c.Architecture, Variant: c.Variant, Os: c.OS, OsVersion: c.OSVersion,
		Size:        s.size(img),
		RootFS:      image.RootFS{Type: "layers"},
		GraphDriver: &storage.DriverData{Name: "overlay2"},
		Metadata:    image.Metadata{LastTagTime: rec.Tagged},
	}
	if c.Created != nil {
		r.Created = c.Created.Format(time.RFC3339Nano)
	}
	if n := len(c.History); n > 0 {
		r.Comment = c.History[n-1].Comment
	}
	var dirs []string
	for _, d := range c.RootFS.DiffIDs {
		r.RootFS.Layers = append(r.RootFS.Layers, d.String())
		dirs = append(dirs, s.layers.Path(d))
	}
	r.GraphDriver.Data = driverData(dirs)
	return r, nil
}

// driverData is where the layers are, in the words of overlay2; dirs are
// bottom first.
func driverData(dirs []string) map[string]string {
	if len(dirs) == 0 {
		return nil
	}
	slices.Reverse(dirs)
	data := map[string]string{"UpperDir": dirs[0]}
	if len(dirs) > 1 {
		data["LowerDir"] = strings.Join(dirs[1:], ":")
	}
	return data
}

// History is how an image came to be, the newest step first.
func (s *Store) History(_ context.Context, ref string) ([]image.HistoryResponseItem, error) {
	st := s.state.Load()
	rec, _, err := st.find(ref)
	if err != nil {
		return nil, err
	}
	img, err := s.open(rec)
	if err != nil {
		return nil, err
	}
	items := []image.HistoryResponseItem{}
	layers := img.config.RootFS.DiffIDs
	for _, h := range img.config.History {
		item := image.HistoryResponseItem{ID: "<missing>", Created: stamp(h.Created), CreatedBy: h.CreatedBy, Comment: h.Comment}
		if !h.EmptyLayer && len(layers) > 0 {
			item.Size = s.layerSize(layers[0])
			layers = layers[1:]
		}
		items = append(items, item)
	}
	for _, d := range layers { // that the history does not mention
		items = append(items, image.HistoryResponseItem{ID: "<missing>", Created: stamp(nil), Size: s.layerSize(d)})
	}
	slices.Reverse(items)
	if len(items) > 0 {
		tags, _ := st.repo(rec.Config)
		items[0].ID, items[0].Tags = rec.id(), tags
	}
	return items, nil
}

// sortedTargets are the targets of all images, in order.
func (st *state) sortedTargets() []digest.Digest {
	return slices.Sorted(maps.Keys(st.Images))
}

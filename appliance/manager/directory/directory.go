// Package directory knows which node of the swarm has which images, as long as
// this manager leads.
//
// It holds what the nodes' sessions said and nothing else: it is empty when a
// term begins and a node's images go with its session. What a node says is
// bounded and its form is checked; that it is true is not known. A digest needs
// no trust, because whoever fetches by it verifies. A name does: see
// [Directory.Lookup].
package directory

import (
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/appliance/wire"
)

// What one node may fill of this manager's memory; what is beyond is not noted.
const (
	maxImages    = 10_000
	maxNames     = 128 // of an image
	maxName      = 512
	maxPlatforms = 64
	maxBytes     = 8 << 20 // of names, types and platforms, of a node
)

// gathering is how long a new leader waits for nodes to tell what they have.
const gathering = 5 * time.Second

// Config is what a Directory needs.
type Config struct {
	// Manager says whether a node is a manager. It is called while nodes
	// cannot change: it must not call the directory.
	Manager func(node string) bool
	// Nodes is how many nodes are to have a session.
	Nodes  func() int
	Logger *slog.Logger
}

// Directory is safe for concurrent use.
type Directory struct {
	cfg Config

	mu      sync.Mutex
	began   time.Time                          // guarded by mu: when the first of nodes told
	nodes   map[string]*shelf                  // guarded by mu
	names   map[string]map[digest.Digest]int   // guarded by mu: how many nodes say so
	holders map[digest.Digest]map[string]holds // guarded by mu: by node
}

type holds struct{}

// shelf is what one node has.
type shelf struct {
	images map[digest.Digest]wire.Image
	bytes  int
}

// New is an empty directory.
func New(cfg Config) *Directory {
	return &Directory{
		cfg:     cfg,
		nodes:   map[string]*shelf{},
		names:   map[string]map[digest.Digest]int{},
		holders: map[digest.Digest]map[string]holds{},
	}
}

// Set notes what a node says that it has, or that came and went there. Nil
// forgets the node, whose session ended.
func (d *Directory) Set(node string, h *wire.Holdings) {
	if h == nil {
		d.Forget(node)
		return
	}
	images := make([]wire.Image, 0, len(h.Images))
	for _, i := range h.Images {
		if kept, ok := checked(i); ok {
			images = append(images, kept)
		}
	}
	if refused := len(h.Images) - d.set(node, h.Complete, images, h.Gone); refused > 0 {
		d.cfg.Logger.Warn("did not note images of node", "node", node, "images", refused)
	}
}

// set tells how many of the images were noted.
func (d *Directory) set(node string, all bool, images []wire.Image, gone []digest.Digest) (noted int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if all {
		d.forgetLocked(node)
	}
	if len(d.nodes) == 0 {
		d.began = time.Now()
	}
	s := d.nodes[node]
	if s == nil {
		s = &shelf{images: map[digest.Digest]wire.Image{}}
		d.nodes[node] = s
	}
	for _, g := range gone {
		d.dropLocked(node, g)
	}
	for _, i := range images {
		if d.addLocked(node, s, i) {
			noted++
		}
	}
	return noted
}

// Forget forgets a node.
func (d *Directory) Forget(node string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forgetLocked(node)
}

func (d *Directory) forgetLocked(node string) {
	if s := d.nodes[node]; s != nil {
		for i := range s.images {
			d.dropLocked(node, i)
		}
	}
	delete(d.nodes, node)
}

func (d *Directory) dropLocked(node string, id digest.Digest) {
	s := d.nodes[node]
	i, ok := s.images[id]
	if !ok {
		return
	}
	delete(s.images, id)
	s.bytes -= size(i)
	delete(d.holders[id], node)
	if len(d.holders[id]) == 0 {
		delete(d.holders, id)
	}
	for _, name := range i.Names {
		if d.names[name][id]--; d.names[name][id] == 0 {
			delete(d.names[name], id)
		}
		if len(d.names[name]) == 0 {
			delete(d.names, name)
		}
	}
}

func (d *Directory) addLocked(node string, s *shelf, i wire.Image) bool {
	id := i.Descriptor.Digest
	d.dropLocked(node, id)
	if len(s.images) >= maxImages || s.bytes+size(i) > maxBytes {
		return false
	}
	s.images[id] = i
	s.bytes += size(i)
	if d.holders[id] == nil {
		d.holders[id] = map[string]holds{}
	}
	d.holders[id][node] = holds{}
	for _, name := range i.Names {
		if d.names[name] == nil {
			d.names[name] = map[digest.Digest]int{}
		}
		d.names[name][id]++
	}
	return true
}

// checked is the part of an image that is kept, if its form is right: names
// must be as a lookup completes them.
func checked(i wire.Image) (wire.Image, bool) {
	kept := wire.Image{
		Descriptor: ocispec.Descriptor{MediaType: i.Descriptor.MediaType, Digest: i.Descriptor.Digest, Size: i.Descriptor.Size},
		Names:      slices.Compact(slices.Sorted(slices.Values(i.Names))),
		Platforms:  i.Platforms,
	}
	if kept.Descriptor.Digest.Validate() != nil || kept.Descriptor.Size < 0 ||
		len(kept.Names) > maxNames || len(kept.Platforms) > maxPlatforms {
		return kept, false
	}
	for _, name := range kept.Names {
		if len(name) > maxName {
			return kept, false
		}
		if completed, id, err := complete(name); err != nil || id != "" || completed != name {
			return kept, false
		}
	}
	return kept, true
}

// size is about what an image takes in memory.
func size(i wire.Image) int {
	n := 256 + len(i.Descriptor.MediaType)
	for _, name := range i.Names {
		n += 64 + len(name)
	}
	for _, p := range i.Platforms {
		n += 96 + len(p.Architecture) + len(p.OS) + len(p.OSVersion) + len(p.Variant)
		for _, f := range p.OSFeatures {
			n += 16 + len(f)
		}
	}
	return n
}

// complete is a name with registry and tag, or the digest that it is pinned to.
func complete(name string) (string, digest.Digest, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", "", err
	}
	if pinned, ok := named.(reference.Digested); ok {
		return "", pinned.Digest(), nil
	}
	return reference.TagNameOnly(named).String(), "", nil
}

// Lookup is the image that a name means in the swarm. If a tag means different
// images on different nodes, a manager's word counts more than any number of
// workers'; then the image that more nodes have, then the smaller digest.
// vouched says that a manager has the image under this name, or that the name
// is a digest: a worker that somebody broke into can give any tag to any image,
// so a tag that only workers vouch for is believed only when no registry can be
// asked.
func (d *Directory) Lookup(name string) (image wire.Image, vouched, ok bool) {
	name, id, err := complete(name)
	if err != nil {
		return wire.Image{}, false, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if id != "" {
		image, ok = d.imageLocked(id)
		return image, ok, ok
	}
	var best candidate
	for id, nodes := range d.names[name] {
		c := candidate{id: id, nodes: nodes, vouched: d.vouchedLocked(name, id)}
		if best.id == "" || c.before(best) {
			best = c
		}
	}
	image, ok = d.imageLocked(best.id)
	return image, best.vouched, ok
}

// candidate is an image that a tag may mean.
type candidate struct {
	id      digest.Digest
	nodes   int
	vouched bool
}

func (c candidate) before(o candidate) bool {
	if c.vouched != o.vouched {
		return c.vouched
	}
	if c.nodes != o.nodes {
		return c.nodes > o.nodes
	}
	return c.id < o.id
}

// vouchedLocked says whether a manager has the image under the name.
func (d *Directory) vouchedLocked(name string, id digest.Digest) bool {
	for node := range d.holders[id] {
		if slices.Contains(d.nodes[node].images[id].Names, name) && d.cfg.Manager(node) {
			return true
		}
	}
	return false
}

// imageLocked is what is said of an image: by the first of the managers that
// have it, or else by the first node.
func (d *Directory) imageLocked(id digest.Digest) (wire.Image, bool) {
	nodes := slices.Sorted(maps.Keys(d.holders[id]))
	if len(nodes) == 0 {
		return wire.Image{}, false
	}
	first := nodes[0]
	if i := slices.IndexFunc(nodes, d.cfg.Manager); i >= 0 {
		first = nodes[i]
	}
	return d.nodes[first].images[id], true
}

// Complete reports whether what is not here is nowhere: all nodes have told what
// they have, or those that have not had the time to.
func (d *Directory) Complete() bool {
	d.mu.Lock()
	told, began := len(d.nodes), d.began
	d.mu.Unlock()
	return told > 0 && (told >= d.cfg.Nodes() || time.Since(began) > gathering)
}

// Holders are the nodes that have an image, in order.
func (d *Directory) Holders(image digest.Digest) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.holders[image]))
}

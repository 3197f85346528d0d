package wire

import (
	"reflect"

	"github.com/opencontainers/go-digest"
)

// NewHoldings are the messages that tell a manager of the images now: all of
// them if before is nil, or else what changed since. Each fits a frame.
func NewHoldings(before, now map[digest.Digest]Image) []*Holdings {
	const room = MaxFrame - 4096
	part, size := &Holdings{Complete: before == nil}, 0
	var parts []*Holdings
	fit := func(n int) {
		if size+n > room {
			parts = append(parts, part)
			part, size = &Holdings{}, 0
		}
		size += n
	}
	for d, i := range now {
		n := i.size()
		if old, ok := before[d]; n > room || ok && reflect.DeepEqual(old, i) {
			continue
		}
		fit(n)
		part.Images = append(part.Images, i)
	}
	for d := range before {
		if _, ok := now[d]; !ok {
			fit(len(d) + 8)
			part.Gone = append(part.Gone, d)
		}
	}
	if part.Complete || size > 0 {
		parts = append(parts, part)
	}
	return parts
}

// size is at least what the image takes in a frame.
func (i Image) size() int {
	n := 512 + len(i.Descriptor.MediaType) + len(i.Descriptor.Digest)
	for _, name := range i.Names {
		n += len(name) + 8
	}
	for _, p := range i.Platforms {
		n += 128 + len(p.Architecture) + len(p.OS) + len(p.OSVersion) + len(p.Variant)
		for _, f := range p.OSFeatures {
			n += len(f) + 8
		}
	}
	return n
}

package engine

import (
	"net/netip"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"
	"github.com/moby/moby/api/types/volume"
)

// The API's types describe version 1.52 and later. What clients of earlier
// versions also read is added here.

// storageDriver is what clients are told of how layers are put together.
const storageDriver = "overlay2"

// containerBefore152 is a container with the address of its default network
// also beside the list of networks.
type containerBefore152 struct {
	container.InspectResponse
	GraphDriver     storage.DriverData
	NetworkSettings *settingsBefore152
}

type settingsBefore152 struct {
	container.NetworkSettings
	Bridge                 string
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []string
	SecondaryIPv6Addresses []string
	EndpointID             string
	Gateway                netip.Addr
	GlobalIPv6Address      netip.Addr
	GlobalIPv6PrefixLen    int
	IPAddress              netip.Addr
	IPPrefixLen            int
	IPv6Gateway            netip.Addr
	MacAddress             network.HardwareAddr
}

// containerShape is the container as clients of the version know it.
func containerShape(c container.InspectResponse, minor int) any {
	if c.NetworkSettings == nil {
		c.NetworkSettings = &container.NetworkSettings{}
	}
	if c.NetworkSettings.Ports == nil || c.NetworkSettings.Networks == nil {
		s := *c.NetworkSettings
		s.Ports = orEmpty(s.Ports)
		s.Networks = orEmpty(s.Networks)
		c.NetworkSettings = &s
	}
	c.Args = listed(c.Args)
	c.Mounts = listed(c.Mounts)
	if minor >= 52 {
		return c
	}
	old := containerBefore152{
		InspectResponse: c,
		GraphDriver:     graphDriver(c.GraphDriver),
		NetworkSettings: &settingsBefore152{NetworkSettings: *c.NetworkSettings},
	}
	if e := c.NetworkSettings.Networks["bridge"]; e != nil {
		s := old.NetworkSettings
		s.EndpointID, s.MacAddress = e.EndpointID, e.MacAddress
		s.Gateway, s.IPAddress, s.IPPrefixLen = e.Gateway, e.IPAddress, e.IPPrefixLen
		s.IPv6Gateway, s.GlobalIPv6Address, s.GlobalIPv6PrefixLen = e.IPv6Gateway, e.GlobalIPv6Address, e.GlobalIPv6PrefixLen
	}
	return old
}

func graphDriver(d *storage.DriverData) storage.DriverData {
	if d == nil {
		return storage.DriverData{Name: storageDriver}
	}
	return *d
}

// summaryShape is one row of the list of containers.
func summaryShape(c container.Summary, minor int) container.Summary {
	if minor < 52 {
		c.Health = nil
	}
	c.Ports = listed(c.Ports)
	c.Mounts = listed(c.Mounts)
	c.Labels = orEmpty(c.Labels)
	if c.NetworkSettings == nil {
		c.NetworkSettings = &container.NetworkSettingsSummary{}
	}
	return c
}

// imageBefore144 is an image of the list; the virtual size is the size since
// layers are counted whole.
type imageBefore144 struct {
	image.Summary
	VirtualSize int64
}

func imagesShape(list []image.Summary, minor int) any {
	if minor >= 44 {
		return listed(list)
	}
	old := make([]imageBefore144, len(list))
	for i, s := range list {
		old[i] = imageBefore144{Summary: s, VirtualSize: s.Size}
	}
	return old
}

// imageBefore152 is an image with the fields that were always there.
type imageBefore152 struct {
	image.InspectResponse
	Parent        string
	DockerVersion string
	Comment       string
	Created       string
	Author        string
	GraphDriver   storage.DriverData
	VirtualSize   int64 `json:",omitempty"` // before 1.44
}

func imageShape(i image.InspectResponse, minor int) any {
	i.RepoTags, i.RepoDigests = listed(i.RepoTags), listed(i.RepoDigests)
	if minor >= 52 {
		return i
	}
	old := imageBefore152{
		InspectResponse: i, Comment: i.Comment, Created: i.Created, Author: i.Author,
		GraphDriver: graphDriver(i.GraphDriver),
	}
	if minor < 44 {
		old.VirtualSize = i.Size
	}
	return old
}

// usageBefore152 is /system/df. Groups that were not asked for stay null.
type usageBefore152 struct {
	LayersSize  int64
	Images      []image.Summary
	Containers  []container.Summary
	Volumes     []volume.Volume
	BuildCache  []build.CacheRecord
	BuilderSize *int64 `json:",omitempty"` // before 1.42
}

// listed is list, or an empty one that is not null in JSON.
func listed[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func orEmpty[M ~map[K]V, K comparable, V any](m M) M {
	if m == nil {
		return M{}
	}
	return m
}

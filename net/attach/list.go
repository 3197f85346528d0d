// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"skep/store/object"
)

// List is the node's networks as the API shows them, with their containers.
func (a *Attach) List(ctx context.Context) ([]network.Inspect, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// Those on networks of the swarm have the bridge as their way out only.
	ends := slices.DeleteFunc(a.Attachments(), func(e object.Attachment) bool { return len(e.Endpoint.Overlays) > 0 })
	list := []network.Inspect{a.inspect(onBridge, "bridge"), a.inspect(onHost, "host"), a.inspect(onNone, "null")}
	list[0].IPAM.Config = []network.IPAMConfig{{Subnet: a.bridge.Subnet, Gateway: a.bridge.Gateway}}
	list[0].Options = map[string]string{
		"com.docker.network.bridge.default_bridge":       "true",
		"com.docker.network.bridge.enable_icc":           "true",
		"com.docker.network.bridge.enable_ip_masquerade": "true",
		"com.docker.network.bridge.host_binding_ipv4":    "0.0.0.0",
		"com.docker.network.bridge.name":                 a.bridge.Name,
		"com.docker.network.driver.mtu":                  strconv.Itoa(a.bridge.MTU),
	}
	for _, e := range ends {
		for i := range list {
			if list[i].Name == e.Network {
				list[i].Containers[e.ID] = resource(e, a.name(e.ID))
			}
		}
	}
	return list, nil
}

func (a *Attach) inspect(name, driver string) network.Inspect {
	return network.Inspect{
		Network: network.Network{
			Name: name, ID: a.bridge.IDs[name], Created: a.bridge.Created, Scope: "local", Driver: driver,
			EnableIPv4: true, IPAM: network.IPAM{Driver: "default"},
			Options: map[string]string{}, Labels: map[string]string{},
		},
		Containers: map[string]network.EndpointResource{},
	}
}

func resource(e object.Attachment, name string) network.EndpointResource {
	r := network.EndpointResource{Name: name, EndpointID: e.EndpointID}
	if mac, err := net.ParseMAC(e.MAC); err == nil {
		r.MacAddress = network.HardwareAddr(mac)
	}
	if p, err := netip.ParsePrefix(e.Address); err == nil {
		r.IPv4Address = p
	}
	return r
}

// endpointID is the API's name for a container's place on its network.
func endpointID(container string) string {
	sum := sha256.Sum256([]byte("endpoint " + container))
	return hex.EncodeToString(sum[:])
}

// Stats are the counters of an endpoint's devices by name. There are none for
// one without a device of its own.
func (a *Attach) Stats(id string) (map[string]container.NetworkStats, error) {
	a.mu.Lock()
	r, ok := a.ends[id]
	a.mu.Unlock()
	if !ok {
		return nil, object.Errorf(errdefs.ErrNotFound, "endpoint %s not found", id)
	}
	if r.Made.Interface == "" {
		return map[string]container.NetworkStats{}, nil
	}
	s, err := a.link.PeerStats(r.Made.Interface)
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	return map[string]container.NetworkStats{r.inside(): s}, nil
}

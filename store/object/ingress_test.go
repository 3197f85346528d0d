package object

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
)

func ports(n int, p network.IPProtocol, mode swarm.PortConfigPublishMode) []swarm.PortConfig {
	list := make([]swarm.PortConfig, n)
	for i := range list {
		list[i] = swarm.PortConfig{Protocol: p, TargetPort: uint32(i + 1), PublishedPort: uint32(i + 1), PublishMode: mode}
	}
	return list
}

func TestPublishedAs(t *testing.T) {
	snat := map[string]string{LabelSource: SourceSNAT}
	const host, mesh = swarm.PortConfigPublishModeHost, swarm.PortConfigPublishModeIngress
	for _, tt := range []struct {
		labels           map[string]string
		ports            []swarm.PortConfig
		source, unserved string
	}{
		{nil, nil, "", ""},
		{snat, nil, "", ""},
		{snat, ports(1, "tcp", host), "", ""},
		{nil, ports(40, "tcp", ""), "", ""},
		{nil, append(ports(5, "tcp", host), ports(40, "udp", mesh)...), "", ""},
		{snat, ports(1, "tcp", mesh), "snat: the label skep.ingress.source says so", ""},
		{nil, ports(42, "tcp", mesh), "snat on all but the first 40 published ports", ""},
		{snat, ports(42, "tcp", mesh), "snat: the label skep.ingress.source says so", ""},
		{snat, ports(2, "sctp", mesh), "", "2 of 2 published ports: the routing mesh carries tcp and udp"},
		{nil, append(ports(40, "tcp", mesh), ports(1, "sctp", mesh)...), "", "1 of 41 published ports: the routing mesh carries tcp and udp"},
		{map[string]string{LabelSource: SourcePreserve}, ports(1, "tcp", mesh), "", ""},
	} {
		source, unserved := PublishedAs(tt.labels, tt.ports)
		if source != tt.source || unserved != tt.unserved {
			t.Errorf("%v, %d ports: got %q, %q; want %q, %q", tt.labels, len(tt.ports), source, unserved, tt.source, tt.unserved)
		}
	}
}

func TestValidateService_KnowsHowSourcesAreTreated(t *testing.T) {
	spec := func(value string) swarm.ServiceSpec {
		s := swarm.ServiceSpec{Annotations: swarm.Annotations{Name: "web", Labels: map[string]string{LabelSource: value}}}
		s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "nginx"}
		return s
	}
	for _, value := range []string{SourcePreserve, SourceSNAT} {
		if err := ValidateService(spec(value)); err != nil {
			t.Errorf("%s: %v", value, err)
		}
	}
	for _, value := range []string{"", "SNAT", "keep"} {
		err := ValidateService(spec(value))
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `is neither "preserve" nor "snat"`) {
			t.Errorf("%q: %v", value, err)
		}
	}
}

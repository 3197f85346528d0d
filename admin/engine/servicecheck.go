package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
)

// pinTimeout bounds how long a service waits for a registry to name a digest.
const pinTimeout = 15 * time.Second

// checkService refuses a spec that can never run. It writes the networks of
// nodes by name, as their IDs differ from node to node, and others by ID. id is the service that the spec is
// for, empty for a new one.
func (a *API) checkService(ctx context.Context, s *store.Snapshot, id string, spec *swarm.ServiceSpec) error {
	if err := object.ValidateService(*spec); err != nil {
		return err
	}
	switch {
	case spec.Mode.ReplicatedJob != nil || spec.Mode.GlobalJob != nil:
		return unbuilt("jobs are")
	case spec.TaskTemplate.Runtime != swarm.RuntimeContainer || spec.TaskTemplate.PluginSpec != nil || spec.TaskTemplate.NetworkAttachmentSpec != nil:
		return unbuilt("runtimes other than container are")
	}
	if err := checkWhole(spec.TaskTemplate); err != nil {
		return err
	}
	if err := checkBuilt(spec.TaskTemplate.ContainerSpec); err != nil {
		return err
	}
	if err := a.resolveNetworks(ctx, spec.TaskTemplate.Networks); err != nil {
		return err
	}
	return checkReferences(s, id, *spec)
}

// checkWhole refuses lists with nothing in a place.
func checkWhole(t swarm.TaskSpec) error {
	if t.Placement != nil {
		for _, p := range t.Placement.Preferences {
			if p.Spread == nil {
				return invalid("malformed placement preference: only spread is known")
			}
		}
	}
	if t.ContainerSpec != nil && slices.Contains(t.ContainerSpec.Ulimits, nil) {
		return invalid("malformed ulimit")
	}
	return nil
}

// checkBuilt refuses what no node would do for a task.
func checkBuilt(c *swarm.ContainerSpec) error {
	if c == nil {
		return nil
	}
	for _, m := range c.Mounts {
		switch m.Type {
		case mount.TypeCluster:
			return unbuilt("cluster volumes are")
		case mount.TypeImage, mount.TypeNamedPipe:
			return unbuilt(string(m.Type) + " mounts are")
		default:
		}
	}
	if p := c.Privileges; p != nil && p.CredentialSpec != nil && *p.CredentialSpec != (swarm.CredentialSpec{}) {
		return unbuilt("credential specs are")
	}
	for _, ref := range c.Configs {
		if ref.Runtime != nil {
			return unbuilt("configs for the runtime are")
		}
	}
	return nil
}

// resolveNetworks replaces the targets: by names where every node has the
// network, by IDs else.
func (a *API) resolveNetworks(ctx context.Context, targets []swarm.NetworkAttachmentConfig) error {
	if len(targets) == 0 {
		return nil
	}
	all, _, err := a.networks(ctx)
	if err != nil {
		return err
	}
	for i := range targets {
		n, err := pickNetwork(all, targets[i].Target, "")
		switch {
		case errdefs.IsNotFound(err):
			return invalid("%v", err)
		case err != nil:
			return err
		case n.swarm == nil && !object.Predefined(n.Name):
			return object.Errorf(errdefs.ErrPermissionDenied,
				"The network %s cannot be used with services. Only networks scoped to the swarm can be used, such as those created with the overlay driver.", n.Name)
		case n.Ingress:
			return invalid("Service cannot be explicitly attached to the ingress network %q", n.Name)
		case n.swarm == nil:
			targets[i].Target = n.Name
		default:
			targets[i].Target = n.ID
		}
		for _, other := range targets[:i] {
			if other.Target == targets[i].Target {
				return invalid("network %s is given more than once", n.Name)
			}
		}
	}
	return nil
}

// refer has a transaction depend on what a service's new spec refers to. It
// refuses what checkReferences does.
func refer(s *store.Snapshot, tx *store.Tx, id string, spec swarm.ServiceSpec) error {
	if err := checkReferences(s, id, spec); err != nil {
		return err
	}
	for _, t := range spec.TaskTemplate.Networks {
		if n, ok := s.Networks.Get(t.Target); ok {
			tx.There(n)
		}
	}
	if needsIngress(spec) {
		for n := range s.Networks.All() {
			if n.Spec.Ingress && !n.PendingDelete {
				tx.There(n)
			}
		}
	}
	if c := spec.TaskTemplate.ContainerSpec; c != nil {
		for _, ref := range c.Secrets {
			if o, ok := s.Secrets.Get(ref.SecretID); ok {
				tx.There(o)
			}
		}
		for _, ref := range c.Configs {
			if o, ok := s.Configs.Get(ref.ConfigID); ok {
				tx.There(o)
			}
		}
	}
	return nil
}

// checkReferences refuses what the state does not bear: secrets, configs and
// networks that are not there, ports that another service has.
func checkReferences(s *store.Snapshot, id string, spec swarm.ServiceSpec) error {
	if err := checkNetworks(s, spec); err != nil {
		return err
	}
	c := spec.TaskTemplate.ContainerSpec
	if c == nil {
		return nil
	}
	var secrets, configs []string
	for _, ref := range c.Secrets {
		if _, ok := s.Secrets.Get(ref.SecretID); !ok {
			secrets = append(secrets, ref.SecretName)
		}
	}
	for _, ref := range c.Configs {
		if _, ok := s.Configs.Get(ref.ConfigID); !ok {
			configs = append(configs, ref.ConfigName)
		}
	}
	if err := missing("secret", secrets); err != nil {
		return err
	}
	if err := missing("config", configs); err != nil {
		return err
	}
	return checkPorts(s, id, spec.EndpointSpec)
}

// checkNetworks refuses networks that are not there or do not go together, and
// ports on all nodes where there is no network for that.
func checkNetworks(s *store.Snapshot, spec swarm.ServiceSpec) error {
	targets := spec.TaskTemplate.Networks
	for _, t := range targets {
		if n, ok := s.Networks.Get(t.Target); !object.Predefined(t.Target) && (!ok || n.PendingDelete) {
			return invalid("network %s not found", t.Target)
		}
		if t.Target != "host" && t.Target != "none" {
			continue
		}
		if len(targets) > 1 {
			return invalid("network %s cannot be used together with others", t.Target)
		}
		if needsIngress(spec) {
			return invalid("a service on network %s cannot publish ports in ingress mode", t.Target)
		}
	}
	if !needsIngress(spec) {
		return nil
	}
	for n := range s.Networks.All() {
		if n.Spec.Ingress && !n.PendingDelete {
			return nil
		}
	}
	return object.Errorf(errdefs.ErrFailedPrecondition, "service needs ingress network, but no ingress network is present")
}

func missing(kind string, names []string) error {
	switch len(names) {
	case 0:
		return nil
	case 1:
		return invalid("%s not found: %s", kind, names[0])
	}
	return invalid("%ss not found: %s", kind, strings.Join(names, ", "))
}

// checkPorts refuses ports that another service publishes. Two services may
// publish the same port on hosts: the scheduler keeps them apart.
func checkPorts(s *store.Snapshot, id string, endpoint *swarm.EndpointSpec) error {
	if endpoint == nil {
		return nil
	}
	type port struct {
		number   uint32
		protocol network.IPProtocol
	}
	wanted := map[port]swarm.PortConfigPublishMode{}
	for _, p := range endpoint.Ports {
		if p.PublishedPort != 0 {
			wanted[port{p.PublishedPort, protocolOf(p)}] = modeOfPort(p)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	for other := range s.Services.All() {
		if other.ID == id || other.PendingDelete {
			continue
		}
		// The allocated ports include those that the spec asks for.
		ports := other.Endpoint.Ports
		if other.Spec.EndpointSpec != nil {
			ports = append(slices.Clip(ports), other.Spec.EndpointSpec.Ports...)
		}
		for _, p := range ports {
			mode, clash := wanted[port{p.PublishedPort, protocolOf(p)}]
			has := modeOfPort(p)
			if !clash || mode == swarm.PortConfigPublishModeHost && has == mode {
				continue
			}
			as := "an ingress port"
			if has == swarm.PortConfigPublishModeHost {
				as = "a host-published port"
			}
			return invalid("port '%d' is already in use by service '%s' (%s) as %s", p.PublishedPort, other.Spec.Name, other.ID, as)
		}
	}
	return nil
}

func protocolOf(p swarm.PortConfig) network.IPProtocol {
	if p.Protocol == "" {
		return network.TCP
	}
	return p.Protocol
}

func modeOfPort(p swarm.PortConfig) swarm.PortConfigPublishMode {
	if p.PublishMode == "" {
		return swarm.PortConfigPublishModeIngress
	}
	return p.PublishMode
}

// wantsPin says whether an update asks for an image anew. A mere scale with an
// image that could not be pinned must not replace the tasks.
func wantsPin(old, now swarm.ServiceSpec) bool {
	o, n := old.TaskTemplate.ContainerSpec, now.TaskTemplate.ContainerSpec
	return o == nil || n == nil || o.Image != n.Image || old.TaskTemplate.ForceUpdate != now.TaskTemplate.ForceUpdate
}

// pin adds the digest to the image of a spec whose client did not, so that all
// tasks run the same image. When nobody knows the digest the image stays as it
// is, with a warning.
func (a *API) pin(ctx context.Context, spec *swarm.ServiceSpec, auth *registry.AuthConfig) (warnings []string) {
	c := spec.TaskTemplate.ContainerSpec
	if c == nil {
		return nil
	}
	ref, err := reference.ParseNormalizedNamed(c.Image)
	if err != nil {
		return nil
	}
	if _, ok := ref.(reference.Digested); ok {
		return nil
	}
	ref = reference.TagNameOnly(ref)
	ctx, cancel := context.WithTimeout(ctx, pinTimeout)
	defer cancel()
	found, err := a.Images.Distribution(ctx, reference.FamiliarString(ref), auth)
	if err == nil && found.Descriptor.Digest.Validate() != nil {
		err = fmt.Errorf("no digest known")
	}
	if err != nil {
		return []string{fmt.Sprintf("unable to pin image %s to digest: %v", c.Image, err)}
	}
	pinned, err := reference.WithDigest(ref, found.Descriptor.Digest)
	if err != nil {
		return []string{fmt.Sprintf("unable to pin image %s to digest: %v", c.Image, err)}
	}
	c.Image = reference.FamiliarString(pinned)
	setPlatforms(spec, found)
	return nil
}

// setPlatforms keeps tasks off nodes that the image is not made for.
func setPlatforms(spec *swarm.ServiceSpec, found registry.DistributionInspect) {
	var platforms []swarm.Platform
	for _, p := range found.Platforms {
		switch {
		case p.Architecture == "" || p.OS == "":
			return // made for who knows what
		case p.Architecture != "unknown": // no image but what is said of one
			platforms = append(platforms, swarm.Platform{Architecture: p.Architecture, OS: p.OS})
		}
	}
	if len(platforms) == 0 {
		return
	}
	p := spec.TaskTemplate.Placement
	if p == nil {
		p = &swarm.Placement{}
		spec.TaskTemplate.Placement = p
	}
	p.Platforms = platforms
}

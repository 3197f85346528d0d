package appliance

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"

	"skep/appliance/dataplane"
	"skep/appliance/wire"
	"skep/net/attach"
	"skep/net/balance"
	"skep/net/dns"
	"skep/net/echo"
	"skep/net/esp"
	"skep/net/ingress"
	"skep/net/kernel"
	"skep/net/kmod"
	"skep/net/overlay"
)

// network is the node's own networks, and its parts of the swarm's.
type network struct {
	own     *attach.Attach
	overlay *overlay.Overlay
	mesh    *ingress.Mesh
	names   *dns.Resolver
	esp     *esp.ESP // nil if the kernel cannot encrypt
	noESP   error    // why it cannot
	// plane joins them; it is the containers' network.
	plane *dataplane.Plane
	lacks []string // parts of the kernel that it does without
}

// prepareKernel has the parts of the kernel ready that containers and their
// networks need, which may be in modules. What is not there is told of.
func (n *node) prepareKernel(ctx context.Context) error {
	// Where a module cannot be loaded the file system may be there all the same.
	_ = kmod.Load("overlay")
	n.network.lacks = nil
	for _, l := range kernel.Prepare(ctx) {
		n.logger.WarnContext(ctx, "found a part of the kernel missing", "part", l.Part, "err", l.Err, "without", l.Without)
		n.network.lacks = append(n.network.lacks, l.String())
	}
	return nil
}

func (n *node) openNetworks(ctx context.Context) (err error) {
	logger := n.logger.With("part", "network")
	n.network.own, err = attach.Open(ctx, attach.Config{
		Dir:    n.dir.join("network"),
		RunDir: n.dir.join("run"),
		Scope:  n.dir.scope(),
		Name:   func(id string) string { return n.containerName(ctx, id) },
		Logger: logger,
	})
	if err != nil {
		return err
	}
	if err := n.openSwarmNetworks(ctx, logger); err != nil {
		return err
	}
	c := dataplane.Config{
		NodeID:  func() string { return n.membership.NodeID() },
		Attach:  n.network.own,
		Overlay: n.network.overlay,
		Mesh:    n.network.mesh,
		DNS:     n.network.names,
		Balance: func(ctx context.Context, path string) (dataplane.Balancer, error) {
			return balance.Open(ctx, balance.Config{Namespace: path, Table: "skep-vip", Logger: logger})
		},
		NoESP:  n.network.noESP,
		Mode:   balance.Probe,
		Lacks:  n.network.lacks,
		Echo:   echo.Ask,
		Ask:    dns.Ask,
		MTU:    deviceMTU,
		Search: searchDomains,
		Acked:  func(p wire.Programmed) { n.membership.Programmed(p) },
		Logger: logger,
	}
	if n.network.esp != nil {
		c.ESP = n.network.esp
	}
	n.network.plane = dataplane.New(c)
	return nil
}

// openSwarmNetworks finds what an earlier process made of the swarm's networks.
func (n *node) openSwarmNetworks(ctx context.Context, logger *slog.Logger) (err error) {
	p := &n.network
	p.overlay, err = overlay.Open(ctx, overlay.Config{RunDir: n.dir.join("run"), Scope: n.dir.scope(), Logger: logger})
	if err != nil {
		return err
	}
	bridge := p.own.Bridge()
	p.mesh, err = ingress.OpenMesh(ctx, ingress.MeshConfig{
		Scope: n.dir.scope(), Bridge: bridge.Name, BridgeSubnet: bridge.Subnet, BridgeGateway: bridge.Gateway,
		Sandbox: bridge.Sandbox, Logger: logger,
	})
	if err != nil {
		return err
	}
	p.names = dns.New(dns.Config{RunDir: n.dir.join("run"), Logger: logger})
	if p.noESP = esp.Probe(); p.noESP != nil {
		return nil //nolint:nilerr // as [node.prepareKernel] told
	}
	p.esp, err = esp.Open(esp.Config{
		Scope: n.dir.scope(), File: n.dir.join("run", "tunnels"), Lost: func() { n.membership.Refresh() }, Logger: logger,
	})
	return err
}

// boot is another one whenever the kernel has lost keys of encrypted networks.
func (p *network) boot() string {
	if p.esp == nil {
		return ""
	}
	return p.esp.Boot()
}

// run are the parts of the network that run until ctx ends.
func (p *network) run() []part {
	return []part{
		{"networks", p.own.Run},
		{"names", p.names.Run},
		{"data plane", p.plane.Run},
	}
}

// destroy removes everything from the kernel. No container is left.
func (p *network) destroy(ctx context.Context) error {
	err := errors.Join(p.mesh.Destroy(ctx), p.overlay.Destroy(ctx))
	if p.esp != nil {
		err = errors.Join(err, p.esp.Destroy(ctx))
	}
	return errors.Join(err, p.own.Destroy(ctx))
}

// close leaves the kernel as it is.
func (p *network) close() (err error) {
	if p.esp != nil {
		p.esp.Close()
	}
	if p.mesh != nil {
		err = errors.Join(err, p.mesh.Close())
	}
	if p.overlay != nil {
		err = errors.Join(err, p.overlay.Close())
	}
	if p.own != nil {
		err = errors.Join(err, p.own.Close())
	}
	return err
}

// deviceMTU is that of the device that has the address, or Ethernet's.
func deviceMTU(a netip.Addr) int {
	const ethernet = 1500
	devices, err := net.Interfaces()
	if err != nil {
		return ethernet
	}
	for _, d := range devices {
		addrs, err := d.Addrs()
		if err != nil {
			continue
		}
		for _, has := range addrs {
			if p, err := netip.ParsePrefix(has.String()); err == nil && p.Addr() == a.Unmap() {
				return d.MTU
			}
		}
	}
	return ethernet
}

// searchDomains are those of the node's resolv.conf.
func searchDomains() []string {
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	var domains []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "search" {
			domains = f[1:]
		}
	}
	return domains
}

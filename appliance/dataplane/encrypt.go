package dataplane

import (
	"cmp"
	"context"
	"fmt"

	"skep/appliance/wire"
	"skep/net/esp"
)

// SetTunnels gives the keys of encrypted networks. It does not wait.
func (p *Plane) SetTunnels(t *wire.Tunnels) {
	p.mu.Lock()
	p.tunnels = t
	p.mu.Unlock()
	p.wake()
}

// protect has the kernel encrypt what is to be encrypted, before anything is
// sent there, and says in in what may be. While it cannot, encrypted networks
// that are there stay: what they send is blocked or encrypted since they were
// made. So they are after a restart too, until the keys have come.
func (p *Plane) protect(ctx context.Context, in *input, last *desired) error {
	in.made = map[string]bool{}
	if p.cfg.ESP == nil {
		in.self.noESP = p.cfg.NoESP.Error()
		return nil
	}
	if in.view == nil {
		return nil
	}
	wanted := last.encrypts()
	for id, m := range in.view.Networks {
		if !m.Encrypted {
			continue
		}
		wanted = true
		_, in.made[id] = p.cfg.Overlay.Namespace(id)
	}
	own := in.view.Hosts[in.self.node].Address
	if !wanted || in.tunnels == nil || !own.IsValid() {
		return nil
	}
	p.sealed = true
	s := esp.State{Port: dataPort(in.view) + 1, Local: own}
	for _, pair := range in.tunnels.Pairs {
		s.Peers = append(s.Peers, tunnel(pair))
	}
	if err := p.cfg.ESP.Set(ctx, s); err != nil {
		return fmt.Errorf("encrypted networks: %w", err)
	}
	in.protected = true
	return nil
}

func tunnel(p wire.TunnelPair) esp.Peer {
	out := esp.Peer{Address: p.Address}
	for _, k := range p.In {
		out.In = append(out.In, esp.Key{SPI: k.SPI, Material: k.Key})
	}
	if p.Out != nil {
		out.Out = &esp.Key{SPI: p.Out.SPI, Material: p.Out.Key}
	}
	return out
}

// unprotect ends the encryption when there is nothing left to encrypt.
func (p *Plane) unprotect(ctx context.Context, d *desired) error {
	if p.cfg.ESP == nil || !p.sealed || d.encrypts() || d.waits() {
		return nil
	}
	if err := p.cfg.ESP.Set(ctx, esp.State{}); err != nil {
		return err
	}
	p.sealed = false
	return nil
}

// encrypts reports whether a network of d is encrypted.
func (d *desired) encrypts() bool {
	if d == nil {
		return false
	}
	for _, n := range d.networks {
		if n.members.Encrypted {
			return true
		}
	}
	return false
}

// waits reports whether there are encrypted networks that d does not have yet.
func (d *desired) waits() bool {
	if d.from.view == nil {
		return false
	}
	for _, m := range d.from.view.Networks {
		if m.Encrypted {
			return true
		}
	}
	return false
}

// has is the version of the keys that the kernel has by d.
func (d *desired) has() uint64 {
	if d.from.tunnels == nil || d.waits() && !d.from.protected {
		return 0
	}
	return d.from.tunnels.Version
}

// vxlanPort is the data path's if the swarm says nothing else (RFC 7348).
const vxlanPort = 4789

// dataPort is where frames go in clear; the next one is encrypted, whatever goes
// over it.
func dataPort(v *wire.NetworkView) uint16 { return cmp.Or(v.Port, vxlanPort) }

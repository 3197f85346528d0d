package membership

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"

	"skep/pki/identity"
)

// asked are addresses or interfaces as somebody asked for them.
type asked struct{ listen, advertise, dataPath string }

// addresses are where the node listens, what others reach it at, and where the
// traffic of its containers goes.
type addresses struct {
	listen, advertise netip.AddrPort
	dataPath          netip.Addr
}

// usualListen is what the docker command line asks for unless it is told otherwise.
const usualListen = "0.0.0.0:2377"

func (m *Membership) addresses(as asked) (a addresses, err error) { return m.addressesFor(as, "") }

func (m *Membership) listens(listen string, links []Link) (netip.AddrPort, error) {
	if listen == "" || listen == usualListen {
		listen = m.cfg.File.Listen
	}
	return resolveListen(listen, links)
}

// addressesFor are the addresses of a node that speaks to others at remote: of
// several that it has, the one that the way there begins with.
func (m *Membership) addressesFor(as asked, remote string) (a addresses, err error) {
	links, err := m.cfg.Links()
	if err != nil {
		return a, err
	}
	if a.listen, err = m.listens(as.listen, links); err != nil {
		return a, err
	}
	advertise := cmp.Or(as.advertise, m.cfg.File.Advertise)
	if a.advertise, err = resolveAdvertise(advertise, a.listen, links); err != nil {
		local := wayTo(remote)
		if advertise != "" || !local.IsValid() {
			return a, err
		}
		a.advertise = netip.AddrPortFrom(local, a.listen.Port())
	}
	a.dataPath, err = resolveDataPath(cmp.Or(as.dataPath, m.cfg.File.DataPath.Address), a.advertise.Addr(), links)
	return a, err
}

// wayTo is the machine's address on the way to another, if there is one.
func wayTo(remote string) netip.Addr {
	if remote == "" {
		return netip.Addr{}
	}
	// Nothing is sent: it only asks the kernel for the way.
	c, err := net.Dial("udp", withPort(remote)) //nolint:noctx // sends nothing and waits for nobody
	if err != nil {
		return netip.Addr{}
	}
	defer func() { _ = c.Close() }()
	local, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}
	}
	return local.AddrPort().Addr().Unmap()
}

// present are the addresses of a node that starts again in its swarm. What it was
// reached at before is better than nothing.
func (m *Membership) present(ctx context.Context, st identity.State) (a addresses, err error) {
	links, err := m.cfg.Links()
	if err != nil {
		return a, err
	}
	if a.listen, err = m.listens(st.ListenAs, links); err != nil {
		return a, err
	}
	if a.advertise, err = resolveAdvertise(cmp.Or(m.cfg.File.Advertise, st.AdvertiseAs), a.listen, links); err != nil {
		if a.advertise, err = netip.ParseAddrPort(st.Advertise); err != nil {
			return a, fmt.Errorf("read address: %w", err)
		}
	}
	if a.dataPath, err = resolveDataPath(cmp.Or(m.cfg.File.DataPath.Address, st.DataPathAs), a.advertise.Addr(), links); err != nil {
		m.cfg.Logger.WarnContext(ctx, "no data path address of its own", "err", err)
		a.dataPath = a.advertise.Addr()
	}
	return a, nil
}

// withPort is an address with Swarm's port, if it has none.
func withPort(addr string) string {
	if hasPort(addr) {
		return addr
	}
	return net.JoinHostPort(addr, fmt.Sprint(defaultPort))
}

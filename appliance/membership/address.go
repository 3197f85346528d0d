package membership

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/containerd/errdefs"

	"skep/store/object"
)

const defaultPort = 2377

// What an address that cannot be used is answered with.
const (
	listenUsage    = "listen address must be an IP address or network interface (with optional port number)"
	advertiseUsage = "advertise address must be a non-zero IP address or network interface (with optional port number)"
	dataPathUsage  = "data path address must be a non-zero IP address or network interface (without a port number)"
)

// Link is a network interface of the machine with its addresses.
type Link struct {
	Name  string
	Addrs []netip.Addr
}

// MachineLinks lists the interfaces that are up, other than those that the
// node made itself.
func MachineLinks(own func(name string) bool) ([]Link, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var links []Link
	for _, i := range ifaces {
		if i.Flags&net.FlagUp == 0 || own(i.Name) {
			continue
		}
		l := Link{Name: i.Name}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("list addresses of %s: %w", i.Name, err)
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
				l.Addrs = append(l.Addrs, p.Addr())
			}
		}
		links = append(links, l)
	}
	return links, nil
}

// resolveListen turns an address or an interface's name, with or without a
// port, into what to listen on.
func resolveListen(text string, links []Link) (netip.AddrPort, error) {
	if text == "" {
		text = "0.0.0.0"
	}
	host, port, err := splitPort(text)
	if err != nil {
		return netip.AddrPort{}, badAddress("%s", listenUsage)
	}
	addr, err := resolveHost(host, links, listenUsage)
	return netip.AddrPortFrom(addr, port), err
}

// resolveAdvertise turns an address or an interface's name into what other
// nodes reach this one at. Without one it is the address that is listened on
// or, when that is all of them, the machine's only one.
func resolveAdvertise(text string, listen netip.AddrPort, links []Link) (netip.AddrPort, error) {
	if text == "" {
		if !listen.Addr().IsUnspecified() {
			return listen, nil
		}
		addr, err := onlyAddress(links)
		return netip.AddrPortFrom(addr, listen.Port()), err
	}
	host, port, err := splitPort(text)
	if err != nil {
		return netip.AddrPort{}, badAddress("%s", advertiseUsage)
	}
	if !hasPort(text) {
		port = listen.Port()
	}
	addr, err := resolveHost(host, links, advertiseUsage)
	if err == nil && addr.IsUnspecified() {
		err = badAddress("%s", advertiseUsage)
	}
	return netip.AddrPortFrom(addr, port), err
}

// resolveDataPath turns an address or an interface's name into where the traffic
// between containers of several nodes goes: by default where other nodes reach
// this one.
func resolveDataPath(text string, advertise netip.Addr, links []Link) (netip.Addr, error) {
	if text == "" {
		return advertise, nil
	}
	addr, err := resolveHost(text, links, dataPathUsage)
	if err == nil && addr.IsUnspecified() {
		err = badAddress("%s", dataPathUsage)
	}
	return addr, err
}

// resolveHost is an address, or that of an interface. What is neither is
// answered with usage.
func resolveHost(text string, links []Link, usage string) (netip.Addr, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return addr, nil
	}
	return ofInterface(text, links, usage)
}

// ofInterface is the one address of an interface, IPv4 first.
func ofInterface(name string, links []Link, usage string) (netip.Addr, error) {
	for _, l := range links {
		if l.Name != name {
			continue
		}
		for _, family := range []struct {
			name string
			is   func(netip.Addr) bool
		}{{"IPv4", netip.Addr.Is4}, {"IPv6", netip.Addr.Is6}} {
			var found netip.Addr
			for _, a := range l.Addrs {
				if !family.is(a) {
					continue
				}
				if found.IsValid() {
					return netip.Addr{}, badAddress("interface %s has more than one %s address (%s and %s)", name, family.name, found, a)
				}
				found = a
			}
			if found.IsValid() {
				return found, nil
			}
		}
		return netip.Addr{}, badAddress("interface %s has no usable IPv4 or IPv6 address", name)
	}
	return netip.Addr{}, badAddress("%s", usage)
}

// onlyAddress is the machine's one address beside loopback, IPv4 first.
func onlyAddress(links []Link) (netip.Addr, error) {
	for _, is := range []func(netip.Addr) bool{netip.Addr.Is4, netip.Addr.Is6} {
		var found netip.Addr
		var on string
		for _, l := range links {
			for _, a := range l.Addrs {
				if !is(a) || a.IsLoopback() {
					continue
				}
				switch {
				case !found.IsValid():
					found, on = a, l.Name
				case on == l.Name:
					return found, badAddress("could not choose an IP address to advertise since this system has multiple addresses on interface %s (%s and %s)", on, found, a)
				default:
					return found, badAddress("could not choose an IP address to advertise since this system has multiple addresses on different interfaces (%s on %s and %s on %s)", found, on, a, l.Name)
				}
			}
		}
		if found.IsValid() {
			return found, nil
		}
	}
	return netip.Addr{}, badAddress("could not find the system's IP address")
}

// splitPort separates a port, by default Swarm's.
func splitPort(text string) (host string, port uint16, err error) {
	if !hasPort(text) {
		return text, defaultPort, nil
	}
	host, service, err := net.SplitHostPort(text)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(service, 10, 16)
	return host, uint16(n), err
}

func hasPort(text string) bool {
	if _, err := netip.ParseAddr(text); err == nil {
		return false
	}
	_, _, err := net.SplitHostPort(text)
	return err == nil
}

func badAddress(format string, args ...any) error {
	return object.Errorf(errdefs.ErrInvalidArgument, format, args...)
}

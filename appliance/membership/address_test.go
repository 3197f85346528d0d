package membership

import (
	"net/netip"
	"testing"
)

func TestResolveAddresses(t *testing.T) {
	addr := netip.MustParseAddr
	lo := Link{"lo", []netip.Addr{addr("127.0.0.1"), addr("::1")}}
	eth := Link{"eth0", []netip.Addr{addr("10.0.0.1"), addr("fd00::1")}}
	two := Link{"eth1", []netip.Addr{addr("10.0.1.1"), addr("10.0.1.2")}}
	six := Link{"eth2", []netip.Addr{addr("fd00::2")}}
	none := Link{"eth3", nil}
	tests := []struct {
		name              string
		listen, advertise string
		links             []Link
		want              string // "listen advertise", or the error
	}{
		{"nothing said, one address", "", "", []Link{lo, eth}, "0.0.0.0:2377 10.0.0.1:2377"},
		{"nothing said, only IPv6", "", "", []Link{lo, six}, "0.0.0.0:2377 [fd00::2]:2377"},
		{"nothing said, no address", "", "", []Link{lo}, "could not find the system's IP address"},
		{"nothing said, two on one", "", "", []Link{lo, two}, "could not choose an IP address to advertise since this system has multiple addresses on interface eth1 (10.0.1.1 and 10.0.1.2)"},
		{"nothing said, two interfaces", "", "", []Link{eth, two}, "could not choose an IP address to advertise since this system has multiple addresses on different interfaces (10.0.0.1 on eth0 and 10.0.1.1 on eth1)"},
		{"listening on one address advertises it", "127.0.0.1:5", "", []Link{lo, eth}, "127.0.0.1:5 127.0.0.1:5"},
		{"an interface's name", "eth0:99", "eth0", []Link{lo, eth}, "10.0.0.1:99 10.0.0.1:99"},
		{"an interface with IPv6 only", "", "eth2:7", []Link{six}, "0.0.0.0:2377 [fd00::2]:7"},
		{"an interface with two addresses", "", "eth1", []Link{two}, "interface eth1 has more than one IPv4 address (10.0.1.1 and 10.0.1.2)"},
		{"an interface without address", "", "eth3", []Link{none}, "interface eth3 has no usable IPv4 or IPv6 address"},
		{"no such interface", "", "eth9", []Link{lo}, "advertise address must be a non-zero IP address or network interface (with optional port number)"},
		{"no such interface to listen on", "eth9", "", []Link{lo}, "listen address must be an IP address or network interface (with optional port number)"},
		{"the zero address", "", "0.0.0.0", []Link{lo}, "advertise address must be a non-zero IP address or network interface (with optional port number)"},
		{"a port that is none", "1.2.3.4:99999", "", []Link{lo}, "listen address must be an IP address or network interface (with optional port number)"},
		{"bare IPv6", "::", "fd00::9", []Link{lo}, "[::]:2377 [fd00::9]:2377"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got string
			listen, err := resolveListen(tt.listen, tt.links)
			if err == nil {
				var advertise netip.AddrPort
				advertise, err = resolveAdvertise(tt.advertise, listen, tt.links)
				got = listen.String() + " " + advertise.String()
			}
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestResolveDataPath(t *testing.T) {
	addr := netip.MustParseAddr
	eth := Link{"eth0", []netip.Addr{addr("10.0.0.1")}}
	two := Link{"eth1", []netip.Addr{addr("10.0.1.1"), addr("10.0.1.2")}}
	const usage = "data path address must be a non-zero IP address or network interface (without a port number)"
	tests := []struct{ name, text, want string }{
		{"nothing said", "", "192.0.2.1"},
		{"an address", "10.9.9.9", "10.9.9.9"},
		{"an interface's name", "eth0", "10.0.0.1"},
		{"an interface with two addresses", "eth1", "interface eth1 has more than one IPv4 address (10.0.1.1 and 10.0.1.2)"},
		{"no such interface", "eth9", usage},
		{"the zero address", "0.0.0.0", usage},
		{"a port", "10.0.0.1:4789", usage},
		{"an interface with a port", "eth0:4789", usage},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := resolveDataPath(tt.text, addr("192.0.2.1"), []Link{eth, two})
			got := a.String()
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

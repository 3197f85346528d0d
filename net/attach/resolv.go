// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"net/netip"
	"os"
	"strings"
)

// Nameservers are the node's name servers that a container can reach: those of
// resolv.conf that are not on the loopback device. Where there is only a local
// resolver, those that systemd's asks. IPv6 ones are left out: containers have
// no IPv6.
func Nameservers() []string {
	for _, path := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if servers := parseNameservers(string(b)); len(servers) > 0 {
			return servers
		}
	}
	return nil
}

func parseNameservers(conf string) []string {
	var servers []string
	for line := range strings.Lines(conf) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(fields[1])
		if err != nil || !a.Unmap().Is4() || a.Unmap().IsLoopback() || a.IsUnspecified() {
			continue
		}
		servers = append(servers, a.Unmap().String())
	}
	return servers
}

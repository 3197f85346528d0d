package containers

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/moby/api/types/container"

	"skep/exec/runspec"
	"skep/store/object"
)

// writeNames writes the files that give the container its names.
func (e *Engine) writeNames(r *record, at object.Attachment) error {
	dir := e.dir(r.ID)
	host := runspec.Hostname(r.ID, &r.Config)
	resolv, err := resolver(&r.Host, at)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "hostname"), []byte(host+"\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "hosts"), hosts(r, at, host), 0o644),
		os.WriteFile(filepath.Join(dir, "resolv.conf"), resolv, 0o644),
	)
}

func hosts(r *record, at object.Attachment, host string) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, extra := range r.Host.ExtraHosts {
		name, ip, ok := strings.Cut(extra, ":")
		if !ok {
			name, ip, ok = strings.Cut(extra, "=")
		}
		if ok && ip == "host-gateway" {
			ip = at.Gateway
		}
		if ok && ip != "" {
			fmt.Fprintf(&b, "%s\t%s\n", strings.Trim(ip, "[]"), name)
		}
	}
	names := host
	if d := r.Config.Domainname; d != "" {
		names = host + "." + d + " " + host
	}
	for _, p := range ownAddresses(at) {
		fmt.Fprintf(&b, "%s\t%s\n", p.Addr(), names)
	}
	return b.Bytes()
}

// ownAddresses are those that the container knows itself by: on the networks of
// the swarm, or else on the node's. In the routing mesh nobody calls it by name.
func ownAddresses(at object.Attachment) []netip.Prefix {
	var own []netip.Prefix
	for _, o := range at.Overlays {
		if !o.Ingress {
			own = append(own, o.Addresses...)
		}
	}
	if p, err := netip.ParsePrefix(at.Address); err == nil && len(own) == 0 {
		own = append(own, p)
	}
	return own
}

// resolver is the container's resolv.conf: the user's servers, else those of
// its network, else the node's, but for those that only the node can reach. On
// networks of the swarm their resolver is asked, which knows the user's servers.
func resolver(h *container.HostConfig, at object.Attachment) ([]byte, error) {
	node, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read node's resolver: %w", err)
	}
	var servers, search, options []string
	swarm := len(at.Overlays) > 0
	if !swarm {
		for _, a := range h.DNS {
			servers = append(servers, a.String())
		}
	}
	if len(servers) == 0 {
		servers = append(servers, at.Nameserver...)
	}
	own := at.Namespace == ""
	mine := len(servers) == 0
	for line := range strings.Lines(string(node)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			ip, err := netip.ParseAddr(f[1])
			if mine && err == nil && (own || !ip.IsLoopback()) {
				servers = append(servers, f[1])
			}
		case "search":
			search = f[1:]
		case "options":
			options = f[1:]
		}
	}
	switch {
	case len(at.Search) > 0:
		search = at.Search
	case len(h.DNSSearch) > 0:
		search = h.DNSSearch
	}
	switch {
	case len(at.Options) > 0:
		options = at.Options
	case len(h.DNSOptions) > 0:
		options = h.DNSOptions
	case swarm:
		// A name without a dot is a service's, before any domain is tried.
		options = []string{"ndots:0"}
	}
	var b bytes.Buffer
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(search) > 0 && search[0] != "." {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.Bytes(), nil
}

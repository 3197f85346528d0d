package containers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"

	"skep/exec/runspec"
	"skep/store/object"
)

// network names the node-local network of a mode, or is empty for that of
// another container.
func (e *Engine) network(mode container.NetworkMode) (string, error) {
	switch {
	case mode.IsDefault(), mode == "", mode == "bridge":
		return "bridge", nil
	case mode.IsNone():
		return "none", nil
	case mode.IsHost():
		return "host", nil
	case mode.IsContainer():
		_, err := e.find(mode.ConnectedContainer())
		return "", err
	}
	return "", object.Errorf(errdefs.ErrNotFound, "network %s not found", mode)
}

// connect gives the container its network namespace.
func (e *Engine) connect(ctx context.Context, r *record) (object.Attachment, error) {
	name, err := e.network(r.Host.NetworkMode)
	if err != nil {
		return object.Attachment{}, err
	}
	if name != "" {
		var ports []object.Port
		ports, err = publish(r)
		if err != nil {
			return object.Attachment{}, err
		}
		return e.cfg.Networks.Connect(ctx, object.Endpoint{
			ID: r.ID, Network: name, Ports: ports,
			// Whoever shares a port is asked to serve only when it can.
			Inactive: slices.ContainsFunc(ports, func(p object.Port) bool { return p.Shared }),
		})
	}
	other, err := e.find(r.Host.NetworkMode.ConnectedContainer())
	if err != nil {
		return object.Attachment{}, err
	}
	at, ok := e.cfg.Networks.Attachment(other.id)
	if !ok || !other.status().Running {
		return at, object.Errorf(errdefs.ErrConflict, "cannot join network of a non running container: %s", other.id)
	}
	return at, nil
}

// publish lists the ports that the container publishes on the node.
func publish(r *record) ([]object.Port, error) {
	ports := append([]object.Port(nil), r.Extra.Ports...)
	bound := map[mobynet.Port]bool{}
	for p, bindings := range r.Host.PortBindings {
		for _, b := range bindings {
			bound[p] = true
			host, err := strconv.ParseUint("0"+b.HostPort, 10, 16)
			if err != nil {
				return nil, invalid("invalid host port %q: a range or number that is none", b.HostPort)
			}
			port := object.Port{Protocol: p.Proto(), Host: uint16(host), Container: p.Num()}
			if b.HostIP.IsValid() && !b.HostIP.IsUnspecified() {
				port.HostIP = b.HostIP.String()
			}
			ports = append(ports, port)
		}
	}
	if r.Host.PublishAllPorts {
		for p := range r.Config.ExposedPorts {
			if !bound[p] {
				ports = append(ports, object.Port{Protocol: p.Proto(), Container: p.Num()})
			}
		}
	}
	return ports, nil
}

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
	if p, err := netip.ParsePrefix(at.Address); err == nil {
		names := host
		if d := r.Config.Domainname; d != "" {
			names = host + "." + d + " " + host
		}
		fmt.Fprintf(&b, "%s\t%s\n", p.Addr(), names)
	}
	return b.Bytes()
}

// resolver is the container's resolv.conf: the user's servers, else those of
// its network, else the node's, but for those that only the node can reach.
func resolver(h *container.HostConfig, at object.Attachment) ([]byte, error) {
	node, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read node's resolver: %w", err)
	}
	var servers, search, options []string
	for _, a := range h.DNS {
		servers = append(servers, a.String())
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
	if len(h.DNSSearch) > 0 {
		search = h.DNSSearch
	}
	if len(h.DNSOptions) > 0 {
		options = h.DNSOptions
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

package appliance

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"time"

	"skep/admin"
	"skep/appliance/config"
)

// serve answers the admin API on all listeners until ctx ends.
func (n *node) serve(ctx context.Context) error {
	server := &admin.Server{Listeners: n.listeners, Handler: &n.handler, Logger: n.logger.With("part", "admin"), Grace: time.Second}
	return server.Run(ctx)
}

// listen opens the node's listeners, unless they are.
func (n *node) listen(ctx context.Context) error {
	if n.listeners != nil {
		return nil
	}
	c, err := n.listenConfig()
	if err != nil {
		return err
	}
	n.listeners, err = admin.Listen(ctx, c)
	return err
}

// listenConfig is the node file's admin section.
func (n *node) listenConfig() (admin.ListenConfig, error) {
	c := admin.ListenConfig{Groups: map[uint32]admin.Role{}}
	for _, l := range n.cfg.Admin.Listen {
		c.Endpoints = append(c.Endpoints, admin.Endpoint{Network: l.Network, Address: l.Address})
	}
	for gid, name := range n.cfg.Admin.Groups {
		role, err := admin.ParseRole(name)
		if err != nil {
			return c, fmt.Errorf("admin.groups: %w", err)
		}
		c.Groups[gid] = role
	}
	if !slices.ContainsFunc(n.cfg.Admin.Listen, func(l config.Listener) bool { return l.Network == "tcp" }) {
		return c, nil
	}
	clientCA, err := n.cfg.Admin.TLS.ClientCA.Read()
	if err != nil {
		return c, fmt.Errorf("admin.tls.client_ca: %w", err)
	}
	cert, err := n.serverCertificate()
	if err != nil {
		return c, err
	}
	c.TLS, err = admin.ServerTLS(cert, clientCA)
	return c, err
}

// serverCertificate is the node file's, or one that the node made for itself
// and keeps: clients pin it.
func (n *node) serverCertificate() (tls.Certificate, error) {
	t := n.cfg.Admin.TLS
	if t.Cert == "" {
		hosts := []string{n.host.hostname, "localhost", "127.0.0.1"}
		links, err := n.links()
		if err != nil {
			return tls.Certificate{}, err
		}
		for _, l := range links {
			for _, a := range l.Addrs {
				hosts = append(hosts, a.String())
			}
		}
		return n.front.Server(hosts, time.Now())
	}
	cert, err := t.Cert.Read()
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("admin.tls.cert: %w", err)
	}
	key, err := t.Key.Read()
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("admin.tls.key: %w", err)
	}
	return tls.X509KeyPair(cert, key)
}

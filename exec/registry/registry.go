// Package registry speaks to image registries: it reads manifests and blobs,
// writes them, and checks credentials.
//
// It verifies the digests of manifests; blobs are verified by whoever stores
// them. Plain HTTP is only spoken to registries on this machine. Mirrors are
// asked before the registry itself.
package registry

import (
	"net/http"
)

// Host is what the node file says of a registry.
type Host struct {
	// Host is the registry as image names write it: docker.io, localhost:5000.
	Host string
	// Mirrors are URLs that are asked before the host, in this order.
	Mirrors            []string
	Username, Password string
}

// Config is what a Client is made of.
type Config struct {
	Hosts []Host
	// Transport carries the requests; nil means one of its own.
	Transport http.RoundTripper
}

// Client speaks to registries. It is safe for concurrent use.
type Client struct {
	hosts map[string]Host
	base  http.RoundTripper
}

// New returns a client.
func New(c Config) *Client {
	hosts := map[string]Host{}
	for _, h := range c.Hosts {
		hosts[h.Host] = h
	}
	return &Client{hosts: hosts, base: &guard{next: transportOf(c.Transport)}}
}

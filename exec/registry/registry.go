// Package registry speaks to image registries: it reads manifests and blobs,
// writes them, and checks credentials.
//
// Manifests are verified against the digest they were asked for; blobs are
// verified by whoever stores them. Plain HTTP is only spoken to registries on
// this machine. Mirrors are asked before the registry itself, with their own
// credentials. What may pass by itself is tried again; a blob that breaks off
// goes on where it broke.
package registry

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/moby/moby/api/types/registry"

	"skep/store/object"
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
	return &Client{hosts: hosts, base: transport.NewUserAgent(&guard{next: transportOf(c.Transport)}, "skep")}
}

// Repository is one repository of a registry, and of its mirrors.
type Repository struct {
	named     reference.Named
	endpoints []*endpoint
}

// endpoint is one place where a repository is.
type endpoint struct {
	registry name.Registry
	path     string
	auth     authn.Authenticator
	base     http.RoundTripper
	scopes   []string

	mu     sync.Mutex
	client *http.Client // nil until connected
}

// Pull is the repository of named, to read from. auth are the user's
// credentials; nil or empty ones mean those of the node file.
func (c *Client) Pull(named reference.Named, auth *registry.AuthConfig) (*Repository, error) {
	r := &Repository{named: named}
	for _, m := range c.hosts[reference.Domain(named)].Mirrors {
		e, err := c.mirror(m, reference.Path(named))
		if err != nil {
			return nil, err
		}
		r.endpoints = append(r.endpoints, e)
	}
	origin, err := c.origin(named, auth, transport.PullScope)
	if err != nil {
		return nil, err
	}
	r.endpoints = append(r.endpoints, origin)
	return r, nil
}

// Push is the repository of named, to write to. Repositories of the same
// registry whose blobs may be mounted are given by their paths.
func (c *Client) Push(named reference.Named, auth *registry.AuthConfig, from ...string) (*Repository, error) {
	e, err := c.origin(named, auth, transport.PushScope)
	if err != nil {
		return nil, err
	}
	for _, f := range from {
		e.scopes = append(e.scopes, scope(f, transport.PullScope))
	}
	return &Repository{named: named, endpoints: []*endpoint{e}}, nil
}

func scope(repository, action string) string { return "repository:" + repository + ":" + action }

func (c *Client) origin(named reference.Named, auth *registry.AuthConfig, action string) (*endpoint, error) {
	host := reference.Domain(named)
	reg, err := name.NewRegistry(host)
	if err != nil {
		return nil, object.Errorf(errdefs.ErrInvalidArgument, "%v", err)
	}
	return &endpoint{
		registry: reg, path: reference.Path(named), auth: c.credentials(host, auth), base: c.base,
		scopes: []string{scope(reference.Path(named), action)},
	}, nil
}

func (c *Client) mirror(mirror, repository string) (*endpoint, error) {
	u, err := url.Parse(mirror)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return nil, object.Errorf(errdefs.ErrInvalidArgument, "mirror %q is not an http or https URL", mirror)
	}
	var opts []name.Option
	if u.Scheme == "http" {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(u.Host, opts...)
	if err != nil {
		return nil, object.Errorf(errdefs.ErrInvalidArgument, "mirror %q: %v", mirror, err)
	}
	p := path.Join(strings.Trim(u.Path, "/"), repository)
	return &endpoint{
		registry: reg, path: p, auth: c.credentials(u.Host, nil), base: c.base,
		scopes: []string{scope(p, transport.PullScope)},
	}, nil
}

// credentials are the user's, or else the node file's.
func (c *Client) credentials(host string, auth *registry.AuthConfig) authn.Authenticator {
	if auth != nil && (auth.Username != "" || auth.Auth != "" || auth.IdentityToken != "" || auth.RegistryToken != "") {
		return authn.FromConfig(authn.AuthConfig{
			Username: auth.Username, Password: auth.Password, Auth: auth.Auth,
			IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
		})
	}
	if h := c.hosts[host]; h.Username != "" {
		return &authn.Basic{Username: h.Username, Password: h.Password}
	}
	return authn.Anonymous
}

// connect does the handshake that tells scheme and kind of credentials, once.
func (e *endpoint) connect(ctx context.Context) (*http.Client, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.client != nil {
		return e.client, nil
	}
	rt, err := transport.NewWithContext(ctx, e.registry, e.auth, e.base, e.scopes)
	if err != nil {
		return nil, err
	}
	e.client = &http.Client{Transport: rt}
	return e.client, nil
}

// url is the address of something in the repository.
func (e *endpoint) url(elem ...string) *url.URL {
	return &url.URL{
		Scheme: e.registry.Scheme(),
		Host:   e.registry.RegistryStr(),
		Path:   "/v2/" + e.path + "/" + strings.Join(elem, "/"),
	}
}

// Login checks credentials with the registry that they name.
func (c *Client) Login(ctx context.Context, auth registry.AuthConfig) (registry.AuthResponse, error) {
	host := auth.ServerAddress
	if _, rest, ok := strings.Cut(host, "://"); ok {
		host = rest
	}
	host, _, _ = strings.Cut(host, "/")
	if host == "" || host == "index.docker.io" || host == "registry-1.docker.io" {
		host = "docker.io"
	}
	reg, err := name.NewRegistry(host)
	if err != nil {
		return registry.AuthResponse{}, object.Errorf(errdefs.ErrInvalidArgument, "%v", err)
	}
	e := &endpoint{registry: reg, auth: c.credentials(host, &auth), base: c.base}
	client, err := e.connect(ctx)
	if err != nil {
		if denied(err) {
			return registry.AuthResponse{}, object.Errorf(errdefs.ErrUnauthenticated,
				"Get \"%s://%s/v2/\": unauthorized: incorrect username or password", reg.Scheme(), reg.RegistryStr())
		}
		return registry.AuthResponse{}, fmt.Errorf("log in to %s: %w", host, err)
	}
	u := &url.URL{Scheme: reg.Scheme(), Host: reg.RegistryStr(), Path: "/v2/"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return registry.AuthResponse{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return registry.AuthResponse{}, fmt.Errorf("log in to %s: %w", host, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return registry.AuthResponse{}, object.Errorf(errdefs.ErrUnauthenticated,
			"login attempt to %s failed with status: %s", u, resp.Status)
	}
	return registry.AuthResponse{Status: "Login Succeeded"}, nil
}

// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"skep/store/object"
)

// Client is a container that is to be answered.
type Client struct {
	// ID is the container's.
	ID string
	// Namespace is the path of its network namespace.
	Namespace string
	// Networks are the IDs of those it is on; where two know a name, the first answers.
	Networks []string
	// Search and Options are the lines of its resolv.conf.
	Search, Options []string
	// Upstreams are name servers that the user gave it. They are asked from the
	// container's namespace, instead of the node's from the node's.
	Upstreams []netip.AddrPort
	// Internal: no name server is asked for it. What is not known here fails at once.
	Internal bool
	// Extra are names that it alone knows.
	Extra map[string][]netip.Addr
}

// Address is where containers ask: the only name server of their resolv.conf.
const Address = "127.0.0.11"

// ResolvConf is the container's resolv.conf.
func ResolvConf(c Client) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "nameserver %s\n", Address)
	if len(c.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.Search, " "))
	}
	// Names of services have no dots: they are asked for as they are, first.
	options := c.Options
	if !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		options = append(slices.Clip(options), "ndots:0")
	}
	fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	return []byte(b.String())
}

// searches reports whether the container appends domains to names: "." is none.
func (c *Client) searches() bool {
	return slices.ContainsFunc(c.Search, func(s string) bool { return strings.Trim(s, ".") != "" })
}

// extra is the client's own names, arranged for questions.
func (c *Client) extra() map[string]*records {
	out := map[string]*records{}
	for name, addrs := range c.Extra {
		r := out[canonical(name)]
		if r == nil {
			r = &records{}
			out[canonical(name)] = r
		}
		r.add(addrs, ttlMembers)
	}
	for _, r := range out {
		r.finish()
	}
	return out
}

// clone is a copy that shares nothing with what the caller may change.
func (c *Client) clone() *Client {
	out := *c
	out.Networks = slices.Clone(c.Networks)
	out.Search, out.Options = slices.Clone(c.Search), slices.Clone(c.Options)
	out.Upstreams = slices.Clone(c.Upstreams)
	return &out
}

// check refuses a client whose ID may not be the name of a file.
func (c *Client) check() error {
	if c.ID == "" || len(c.ID) > 128 || strings.Trim(c.ID, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-") != "" {
		return object.Errorf(errdefs.ErrInvalidArgument, "container %q: not an ID", c.ID)
	}
	return nil
}

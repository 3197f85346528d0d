// SPDX-License-Identifier: Apache-2.0

package dns

import (
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
	// Search is the line of its resolv.conf.
	Search []string
	// Upstreams are name servers that the user gave it. They are asked from the
	// container's namespace, instead of the node's from the node's.
	Upstreams []netip.AddrPort
	// Internal: no name server is asked for it. What is not known here fails at once.
	Internal bool
}

// Address is where containers ask: the only name server of their resolv.conf.
const Address = "127.0.0.11"

// searches reports whether the container appends domains to names: "." is none.
func (c *Client) searches() bool {
	return slices.ContainsFunc(c.Search, func(s string) bool { return strings.Trim(s, ".") != "" })
}

// clone is a copy that shares nothing with what the caller may change.
func (c *Client) clone() *Client {
	out := *c
	out.Networks = slices.Clone(c.Networks)
	out.Search = slices.Clone(c.Search)
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

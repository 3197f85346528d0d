// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"skep/net/link"
)

// Ask is what a container whose namespace is pinned at path is answered when it
// asks for a whole name: the way of the question is a program's in it.
func Ask(ctx context.Context, path, name string) ([]netip.Addr, error) {
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (conn net.Conn, err error) {
		err = link.Within(path, func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(Address, "53"))
			return err
		})
		return conn, err
	}}
	addrs, err := r.LookupNetIP(ctx, "ip", name+".")
	if err != nil {
		return nil, fmt.Errorf("ask for %s: %w", name, err)
	}
	for i, a := range addrs {
		addrs[i] = a.Unmap()
	}
	return addrs, nil
}

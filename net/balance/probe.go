// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"skep/net/link"
	"skep/net/nft"
)

// Probe is what [Auto] chooses on this kernel, and why it is not IPVS if it is
// not. The first call finds out, in a network namespace that ends with it.
func Probe(ctx context.Context) (mode Mode, reason string, err error) {
	if err := ctx.Err(); err != nil {
		return "", "", fmt.Errorf("probe the kernel: %w", context.Cause(ctx))
	}
	c := probed()
	return c.mode, c.reason, c.err
}

type choice struct {
	mode   Mode
	reason string
	err    error
}

// probed keeps what was found: a kernel does not change.
var probed = sync.OnceValue(func() choice { //nolint:gochecknoglobals // a property of the kernel
	virtual := link.Apart(tryVirtual)
	if virtual == nil {
		return choice{mode: IPVS}
	}
	if err := link.Apart(tryFilter); err != nil {
		return choice{err: fmt.Errorf("this kernel cannot balance: %w", errors.Join(virtual, err))}
	}
	return choice{mode: NFT, reason: virtual.Error()}
})

// tryFilter makes a table with every statement that a plan has.
func tryFilter() error {
	a := netip.IPv4Unspecified()
	services := []service{
		{key: key{a, 6, 1}, live: []nft.Target{{Address: a, Port: 1}, {Address: a, Port: 2}}},
		{key: key{a, 6, 2}},
	}
	conn, err := nft.Open()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return conn.Replace(plan(Config{Table: "probe", Where: Forwarded, Device: "lo"}, services))
}

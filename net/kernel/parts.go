// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skep/net/balance"
	"skep/net/esp"
	"skep/net/ingress"
	"skep/net/link"
	"skep/net/nft"
)

// part is something of the kernel that can be missing.
type part struct {
	name, without string
	// modules are those that it is in, but for those that they need; optional ones
	// make it better or quicker where they are, and where the processor can.
	modules, optional []string
	// try makes use of it, and leaves nothing behind.
	try func(context.Context) error
}

func parts() []part {
	return []part{{
		name: "network devices of containers (bridge, veth)", without: "containers have no networks",
		modules: []string{"bridge", "veth"}, try: devices(&netlink.Bridge{}, &netlink.Veth{PeerName: "peer"}),
	}, {
		name: "nftables", without: "containers have no networks",
		modules: []string{
			"nf_tables", "nf_conntrack_netlink", "nft_chain_nat", "nft_ct", "nft_nat", "nft_masq", "nft_redir", "nft_numgen",
			"nft_fib_ipv4", "nft_fib_ipv6", "nft_fib_inet", "nft_reject_ipv4", "nft_reject_ipv6", "nft_reject_inet", "nft_meta_bridge",
		},
		try: filter,
	}, {
		name: "VXLAN", without: "there are no networks across nodes, nor ports that all nodes publish",
		modules: []string{"vxlan"}, try: devices(&netlink.Vxlan{VxlanId: 1, Port: 4789, Proxy: true}),
	}, {
		name: "balancer (IPVS, nor all of nftables)", without: "services have no addresses, nor ports that all nodes publish",
		modules: []string{"ip_vs", "ip_vs_rr"}, try: balancer,
	}, {
		name: "encryption (IPsec ESP with AES-GCM)", without: "there are no encrypted networks",
		modules:  []string{"xfrm_user", "esp4", "gcm", "ctr", "ghash_generic", "sha512_generic", "drbg", "seqiv"},
		optional: []string{"jitterentropy_rng", "aesni_intel", "ghash_clmulni_intel", "aes_ce_blk", "ghash_ce"},
		try:      func(context.Context) error { return esp.Probe() },
	}}
}

// devices tries to make these.
func devices(all ...netlink.Link) func(context.Context) error {
	return func(context.Context) error {
		return link.Apart(func() error {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer h.Close()
			for _, l := range all {
				l.Attrs().Name, l.Attrs().TxQLen = "probe", -1
				if err := h.LinkAdd(l); err != nil {
					return fmt.Errorf("add %s: %w", l.Type(), err)
				}
				if err := h.LinkDel(l); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// filter tries a table like the node's own, and one of frames.
func filter(context.Context) error {
	subnet := netip.MustParsePrefix("192.0.2.0/24")
	packets := ingress.Plan(ingress.Local{Table: "probe", Bridge: "probe", Subnet: subnet}, nil)
	frames := nft.Table{Family: nft.Bridge, Name: "probe", Chains: []nft.Chain{{
		Name: "prerouting", Hook: &nft.Hook{Type: "filter", Point: nft.Prerouting}, Rules: []nft.Rule{nft.Rule{}.IfName("lo").Accept()},
	}}}
	return link.Apart(func() error {
		c, err := nft.Open()
		if err != nil {
			return err
		}
		return errors.Join(c.Replace(packets), c.Replace(frames), c.Close())
	})
}

func balancer(ctx context.Context) error {
	_, _, err := balance.Probe(ctx)
	return err
}

// SPDX-License-Identifier: Apache-2.0

// Package balance spreads connections to a service's address over its backends.
//
// A [Balancer] serves one network namespace. [Balancer.Set] is told everything
// that is wanted, and makes the kernel do it; connections never pass this
// process and do not need it. A connection stays with the backend that it was
// given to until that one is removed, however the others change; its source
// address is left as it is.
//
// Two parts of the kernel can do the work, with the same results: IPVS, and
// the packet filter's address translation (nftables). Where they differ, the
// fields and functions say so:
//
//   - With IPVS a service for all ports, the silence of a service without
//     backends, and a backend that asks its own service need nftables beside it.
//     Without, the first is refused by [Balancer.Set], the second answers that the
//     port is not reachable, and the third gets no answer.
//   - A service for all ports and protocols has those without ports, as pings
//     are, with nftables only.
//   - IPVS takes the backends in turn, nftables by chance.
//   - A connection that is idle is forgotten after two hours by IPVS, after
//     the connection tracking's time by nftables (five days, if nobody changed it).
package balance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"

	"github.com/moby/moby/api/types/network"

	"skep/net/link"
)

// Mode is the part of the kernel that balances.
type Mode string

// The modes. Auto, or nothing, is IPVS where the kernel has it, else NFT.
const (
	Auto Mode = "auto"
	IPVS Mode = "ipvs"
	NFT  Mode = "nft"
)

// Where says which connections are balanced.
type Where int

const (
	// Output is those that the namespace's own processes make.
	Output Where = iota
	// Forwarded is those that arrive by a device.
	Forwarded
)

// Config is what a balancer is made with.
type Config struct {
	// Namespace is the path of the network namespace; none is that of the
	// thread that calls [Open].
	Namespace string
	// Table is the name of our table of the packet filter, of the family inet.
	// With IPVS it also marks the services that are ours.
	Table string
	Where Where
	// Device is the one that Forwarded connections arrive by; none is any.
	// IPVS does not look at it.
	Device string
	Mode   Mode
	Logger *slog.Logger
}

// Service is an address and port, and who serves it.
type Service struct {
	// Address is what clients connect to. It does not have to be an address of
	// the namespace for Output; for Forwarded and IPVS it must be. The
	// unspecified address of a family, for Forwarded and NFT only, is any
	// address of the namespace.
	Address netip.Addr
	// Protocol is TCP, UDP, SCTP or, if empty, any.
	Protocol network.IPProtocol
	// Port is 0 for all that no other service of the address has.
	Port uint16
	// Backends are of the address's family. A service of which none is live
	// drops new connections: a client tries again and finds the next.
	Backends []Backend
}

// Backend serves connections.
type Backend struct {
	Address netip.Addr
	// Port is 0 for that which was asked for, which it must be for a service
	// of all ports.
	Port uint16
	// Draining backends get no new connections and keep those they have.
	Draining bool
}

// Balancer balances in one namespace. It may be used by several goroutines.
type Balancer struct {
	config Config
	mode   Mode
	// namespace keeps the namespace, and leads there.
	namespace *os.File
	// turn is held by whoever reads or changes what follows.
	turn chan struct{}
	// held is what was last set or, while nothing was (not ready), the services
	// that an earlier process left, without their backends.
	held   map[key]service
	ready  bool
	kernel kernel
}

// kernel is a part of the kernel that balances. Its functions are called on a
// thread that is in the namespace.
type kernel interface {
	// left lists the services that are in the kernel.
	left() ([]key, error)
	// set makes it have these services and no others of ours.
	set(ctx context.Context, services []service) error
	// differs says how much differs from what was last set.
	differs() (int, error)
	// check repairs what differs, and says how much that was.
	check(ctx context.Context) (int, error)
	// destroy removes everything that is ours.
	destroy() error
	close() error
}

// Open opens a balancer of a namespace. What an earlier one with the same table
// left goes on working until Set. Close must be called, and releases the namespace.
func Open(ctx context.Context, c Config) (*Balancer, error) {
	if c.Table == "" {
		return nil, errors.New("open balancer: no table is named")
	}
	mode := c.Mode
	if mode == Auto || mode == "" {
		var err error
		if mode, _, err = Probe(ctx); err != nil {
			return nil, fmt.Errorf("open balancer: %w", err)
		}
	}
	path := c.Namespace
	if path == "" {
		path = "/proc/thread-self/ns/net"
	}
	ns, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open balancer: %w", err)
	}
	b := &Balancer{config: c, mode: mode, namespace: ns, turn: make(chan struct{}, 1), held: map[key]service{}}
	if err := b.within(b.start); err != nil {
		return nil, errors.Join(fmt.Errorf("open balancer: %w", err), ns.Close())
	}
	return b, nil
}

func (b *Balancer) start() error {
	k, err := b.openKernel()
	if err != nil {
		return err
	}
	left, err := k.left()
	if err != nil {
		return errors.Join(err, k.close())
	}
	for _, key := range left {
		b.held[key] = service{key: key}
	}
	b.kernel = k
	return nil
}

func (b *Balancer) openKernel() (kernel, error) {
	switch b.mode {
	case NFT:
		return openFilter(b.config)
	case IPVS:
		return openVirtual(b.config)
	default:
		return nil, fmt.Errorf("there is no mode %q", b.mode)
	}
}

// Mode is the part of the kernel that balances: IPVS or NFT.
func (b *Balancer) Mode() Mode { return b.mode }

// Close lets go of the namespace. The kernel goes on balancing.
func (b *Balancer) Close() error {
	return errors.Join(b.kernel.close(), b.namespace.Close())
}

// Destroy removes everything of ours from the namespace. Connections that exist
// go on where the kernel tracks them itself (NFT), or end (IPVS).
func (b *Balancer) Destroy(ctx context.Context) error {
	return b.act(ctx, "destroy balancer", func() error {
		if err := b.kernel.destroy(); err != nil {
			return err
		}
		clear(b.held)
		b.ready = false
		return nil
	})
}

// act runs f in the namespace when it is its turn.
func (b *Balancer) act(ctx context.Context, what string, f func() error) error {
	select {
	case b.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	defer func() { <-b.turn }()
	if err := b.within(f); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (b *Balancer) within(f func() error) error {
	return link.Within(fmt.Sprintf("/proc/self/fd/%d", b.namespace.Fd()), f)
}

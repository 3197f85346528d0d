// SPDX-License-Identifier: Apache-2.0

// Package esp encrypts what goes between nodes on one UDP port: the VXLAN port
// of the swarm's encrypted networks.
//
// It programs IPsec by the kernel's xfrm interface: ESP in transport mode (RFC
// 4303) between this node's address and each peer's, AES-128-GCM with an
// integrity check value of 128 bits (RFC 4106), extended sequence numbers and a
// replay window. What is wanted is a [State]; [ESP.Set] makes the kernel follow.
//
// It fails closed. From the first Set on, whatever uses the port in clear, from
// or to anybody, peer or not, is dropped by policy. A kernel that cannot do all
// of this is told by [Probe], and Set fails there.
//
// It makes no keys and knows no networks. Only its own policies and states are
// touched; they are told by a request ID, or a priority, made of the scope.
package esp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Config is what an ESP needs.
type Config struct {
	// Scope tells the nodes of one machine apart: six hexadecimal digits.
	Scope string
	// File is where the boot is kept (see [ESP.Boot]), below a directory that ends
	// with the machine; empty if it need not outlive the process.
	File string
	// Lost is told that there is another boot. It must not block, nor call back.
	// It may be nil.
	Lost   func()
	Logger *slog.Logger
}

// State is what is to be encrypted. The zero value is nothing.
type State struct {
	// Port is the UDP port whose traffic is encrypted; 0 means none.
	Port uint16
	// Local is this node's address.
	Local netip.Addr
	Peers []Peer
}

// Peer is another node, at an address of the same family as the local one.
type Peer struct {
	Address netip.Addr
	// In are the keys that what comes from there may be encrypted with.
	In []Key
	// Out is the key to send with; without one nothing is sent.
	Out *Key
}

// Key is one direction's. Secret.
type Key struct {
	// SPI names the key to the receiver; from 256 on (RFC 4303, 2.1).
	SPI uint32
	// Material is 16 bytes of key and 4 of salt.
	Material []byte
}

// LogValue keeps keys out of logs.
func (Key) LogValue() slog.Value { return slog.StringValue("[sealed]") }

// Format keeps keys out of texts.
func (Key) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[sealed]")) }

// ESP is the encryption of one node, in the network namespace of the thread
// that opened it.
type ESP struct {
	cfg   Config
	reqid int

	mu   sync.Mutex
	h    *netlink.Handle // guarded by mu, as all below
	want plan
	boot string
	// sent are the states for sending that the kernel had of us. One of them that
	// is gone is not begun anew.
	sent map[stateKey]bool
}

// Open opens the kernel's interface. It fails where there is none.
func Open(c Config) (*ESP, error) {
	scope, err := strconv.ParseUint(c.Scope, 16, 24)
	if err != nil || len(c.Scope) != 6 {
		return nil, fmt.Errorf("open encryption: scope %q: not six hexadecimal digits", c.Scope)
	}
	h, err := netlink.NewHandle(unix.NETLINK_XFRM)
	if err != nil {
		return nil, fmt.Errorf("open encryption: the kernel has no IPsec (xfrm): %w", err)
	}
	e := &ESP{cfg: c, reqid: reqidBase | int(scope), h: h, sent: map[stateKey]bool{}}
	if err := e.openBoot(); err != nil {
		h.Close()
		return nil, fmt.Errorf("open encryption: %w", err)
	}
	return e, nil
}

// reqidBase keeps our request IDs away from the small numbers that others use.
const reqidBase = 0x5e << 24

// Close leaves the kernel as it is.
func (e *ESP) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.h.Close()
}

// Set makes the kernel encrypt as s says. What is right already is not touched,
// so that sequence numbers go on. Blocking comes first and goes last, and a key
// is received with before it is sent with.
func (e *ESP) Set(ctx context.Context, s State) error {
	p, err := s.plan(e.reqid)
	if err != nil {
		return fmt.Errorf("encrypt: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.want = p
	_, err = e.converge(ctx)
	if err != nil {
		return fmt.Errorf("encrypt: %w", err)
	}
	return nil
}

// Check compares the kernel with what is wanted and mends it. It returns how
// many policies and states were not as they should be.
func (e *ESP) Check(ctx context.Context) (repaired int, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if repaired, err = e.converge(ctx); err != nil {
		return repaired, fmt.Errorf("check encryption: %w", err)
	}
	return repaired, nil
}

// Destroy removes all that is ours.
func (e *ESP) Destroy(ctx context.Context) error { return e.Set(ctx, State{}) }

// converge makes the kernel's policies and states those that are wanted.
func (e *ESP) converge(ctx context.Context) (changes int, err error) {
	have, err := e.read()
	if err != nil {
		return 0, err
	}
	want, lost := e.without(have)
	errs := []error{e.forget(lost)}
	for _, step := range diff(have, want) {
		if ctx.Err() != nil {
			return changes, context.Cause(ctx)
		}
		changes++
		if err := step.do(e.h); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", step, err))
		}
	}
	e.note(want)
	return changes, errors.Join(errs...)
}

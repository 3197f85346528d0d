// SPDX-License-Identifier: Apache-2.0

// Package bridge makes a node's own network: a bridge in the node's network
// namespace with a subnet of its own, which the node routes.
//
// The subnet is chosen once, such that it overlaps nothing that the machine
// knows, and kept on disk with the names by which the API shows the network.
// [Bridge.Ensure] may be called at any time; it makes what is missing. Who is
// on the bridge and what may pass is not decided here.
package bridge

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"skep/net/ipam"
	"skep/net/link"
)

// Config says where and what.
type Config struct {
	Dir    string // where the choice is kept
	Name   string // of the device
	Ranges []ipam.Range
	Link   *link.Conn
	// Busy: endpoints exist, so the subnet may not be changed.
	Busy bool
}

// Bridge is the network as it was chosen.
type Bridge struct {
	Name    string
	Subnet  netip.Prefix
	Gateway netip.Addr
	MTU     int
	// IDs are the API's for the networks bridge, host and none.
	IDs     map[string]string
	Created time.Time

	link *link.Conn
}

// choice is what is kept on disk.
type choice struct {
	Subnet  netip.Prefix
	IDs     map[string]string
	Created time.Time
}

// networks are those that every node has.
func networks() []string { return []string{"bridge", "host", "none"} }

// Open chooses the subnet, or takes the one chosen before, unless the machine
// has got a route into it since and nobody uses it; and makes the device.
func Open(ctx context.Context, c Config) (*Bridge, error) {
	// Two nodes of one machine must not choose at the same time: each would not
	// see the other's device yet.
	unlock, err := lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("wait for another node: %w", err)
	}
	defer unlock()
	b, err := choose(c)
	if err != nil {
		return nil, err
	}
	_, err = b.Ensure()
	return b, err
}

// patience is how long a node waits for another that chooses. It takes a few
// milliseconds; whoever holds the lock for longer is no node.
const patience = 5 * time.Second

// lock is held by one node of a network namespace at a time, and by nobody who
// has died: it is a socket's abstract name, which belongs to the namespace.
// Any user could hold it, so it is only asked for, not insisted on.
func lock(ctx context.Context) (unlock func(), err error) {
	const name = "@skep/bridge"
	var c net.ListenConfig
	enough := time.After(patience)
	for {
		l, err := c.Listen(ctx, "unix", name)
		if err == nil {
			return func() { _ = l.Close() }, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-enough:
			return func() {}, nil
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func choose(c Config) (*Bridge, error) {
	path := filepath.Join(c.Dir, "networks.json")
	ch, err := load(path)
	if err != nil {
		return nil, fmt.Errorf("load networks: %w", err)
	}
	taken, err := c.Link.Taken(c.Name)
	if err != nil {
		return nil, err
	}
	if !ch.Subnet.IsValid() || (!c.Busy && overlaps(ch.Subnet, taken)) {
		if ch.Subnet, err = ipam.FirstFree(c.Ranges, taken); err != nil {
			return nil, err
		}
		if err = save(path, ch); err != nil {
			return nil, fmt.Errorf("save networks: %w", err)
		}
	}
	mtu, err := c.Link.MTU()
	if err != nil {
		return nil, err
	}
	return &Bridge{
		Name: c.Name, Subnet: ch.Subnet, Gateway: ch.Subnet.Addr().Next(), MTU: mtu,
		IDs: ch.IDs, Created: ch.Created, link: c.Link,
	}, nil
}

// Ensure makes the device, its address and its settings, and lets the machine
// forward packets. It reports whether the device was not there.
func (b *Bridge) Ensure() (made bool, err error) {
	if err := link.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
		return false, err
	}
	return b.link.EnsureBridge(link.Bridge{
		Name: b.Name, Address: netip.PrefixFrom(b.Gateway, b.Subnet.Bits()), MAC: ipam.MAC(b.Gateway), MTU: b.MTU,
	})
}

// Remove removes the device.
func (b *Bridge) Remove() error { return b.link.Remove(b.Name) }

func overlaps(s netip.Prefix, taken []netip.Prefix) bool {
	for _, t := range taken {
		if t.Overlaps(s) {
			return true
		}
	}
	return false
}

func load(path string) (choice, error) {
	var ch choice
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		ch.Created = time.Now().UTC()
	case err != nil:
		return choice{}, err
	default:
		if err := json.Unmarshal(b, &ch); err != nil {
			return choice{}, fmt.Errorf("%s: %w", path, err)
		}
	}
	if ch.IDs == nil {
		ch.IDs = map[string]string{}
	}
	for _, n := range networks() {
		if ch.IDs[n] == "" {
			id := make([]byte, 32)
			_, _ = rand.Read(id) // never fails
			ch.IDs[n] = hex.EncodeToString(id)
			ch.Subnet = netip.Prefix{} // saved with the choice
		}
	}
	return ch, nil
}

// save replaces the file; after a crash it is the old one or the new one.
func save(path string, ch choice) error {
	b, err := json.MarshalIndent(ch, "", "\t")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".networks-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

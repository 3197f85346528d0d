// Package tunnels derives the keys of the traffic between nodes on encrypted
// networks.
//
// Each direction between two nodes has a key of its own, derived from a key that
// only managers hold and from who the two are. A node is given those of its own
// pairs: it can neither read nor forge what goes between others. Which nodes are
// to have tunnels, and when the managers' key changes, is decided elsewhere.
package tunnels

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"

	"skep/appliance/wire"
	"skep/store/object"
)

// End is a node as the end of tunnels.
type End struct {
	ID string
	// Boot is another one whenever the node's kernel has lost its keys. A key
	// that is begun anew would count its packets from the start, which the other
	// end takes for a replay, and which GCM does not forgive.
	Boot    string
	Address netip.Addr
}

// Of are the keys of one node: with each peer those to receive with, of all keys
// of the ring, and the one to send with, of the first. The peers' addresses are
// of the family of the node's; others are left out.
func Of(ring object.KeyRing, self End, peers []End) *wire.Tunnels {
	out := &wire.Tunnels{Version: ring.Version}
	for _, p := range peers {
		if p.ID == self.ID || len(ring.Keys) == 0 || !p.Address.IsValid() || p.Address.Is4() != self.Address.Is4() {
			continue
		}
		pair := wire.TunnelPair{Node: p.ID, Address: p.Address, Out: new(derive(ring.Keys[0], self, p))}
		for _, k := range ring.Keys {
			pair.In = append(pair.In, derive(k, p, self))
		}
		out.Pairs = append(out.Pairs, pair)
	}
	return out
}

// materialSize is that of an AES-128 key and its salt.
const materialSize = 16 + 4

// derive is the key for what src sends to dst (HKDF, RFC 5869). The SPI comes
// from it too: it cannot be guessed, and two keys of a pair have two.
func derive(key []byte, src, dst End) wire.TunnelKey {
	info := "skep tunnel\x00" + src.ID + "\x00" + src.Boot + "\x00" + dst.ID + "\x00" + dst.Boot
	b, err := hkdf.Key(sha256.New, key, nil, info, 4+materialSize)
	if err != nil {
		panic(err) // only for lengths that are not asked for here
	}
	return wire.TunnelKey{SPI: max(binary.BigEndian.Uint32(b), firstSPI), Key: b[4:]}
}

// firstSPI is the first that is not reserved (RFC 4303, 2.1).
const firstSPI = 256

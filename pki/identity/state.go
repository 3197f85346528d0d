package identity

import (
	"fmt"
	"log/slog"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"skep/pki/seal"
)

// State is what the keystore holds.
type State struct {
	// DEKs seal the node's other files. The first is active; the others only
	// open what was sealed before it. Changed by [Keystore.AddDEK] and
	// [Keystore.RetireDEKs] only.
	DEKs []seal.Secret `cbor:"deks"`
	// Locked says that the keystore's own key is an unlock key.
	Locked bool `cbor:"locked"`
	// KEKVersion is the version of the cluster at which the keystore's key was set.
	KEKVersion uint64 `cbor:"kek_version"`

	// ClusterID and NodeID are empty on a node that is in no swarm. RaftID is
	// empty on one that is no manager.
	ClusterID string `cbor:"cluster_id"`
	NodeID    string `cbor:"node_id"`
	RaftID    string `cbor:"raft_id"`
	// Epoch tells a cluster from its former self before a forced recovery.
	Epoch uint64 `cbor:"epoch"`

	// Advertise is where other nodes reach this one, host:port.
	Advertise string `cbor:"advertise"`
	// ListenAs, AdvertiseAs and DataPathAs are addresses or interfaces as they
	// were asked for: what they stand for is found out at each start.
	ListenAs    string `cbor:"listen_as"`
	AdvertiseAs string `cbor:"advertise_as"`
	DataPathAs  string `cbor:"data_path_as"`
	// Peers are managers that were known last.
	Peers []Peer `cbor:"peers"`
	// Founding is what the first leader of a new swarm writes into its store;
	// empty once it has.
	Founding []byte `cbor:"founding"`
	// Left says that the node was in a swarm and left it by hand: the node
	// file's init and join have no say any more.
	Left bool `cbor:"left"`

	// StaleKey says that Key lay under a key of the keystore that was replaced:
	// the node needs another. A new Key clears it.
	StaleKey bool `cbor:"stale_key"`

	// Key and Certificate are the node's own, Roots the ones that it trusts; all PEM.
	Key         seal.Secret `cbor:"key"`
	Certificate []byte      `cbor:"certificate"`
	Roots       []byte      `cbor:"roots"`
}

// Peer is a manager: its node ID and host:port of its control port.
type Peer struct {
	NodeID string `cbor:"node_id"`
	Addr   string `cbor:"addr"`
}

func (s State) clone() State {
	s.DEKs = slices.Clone(s.DEKs)
	for i, k := range s.DEKs {
		s.DEKs[i] = slices.Clone(k)
	}
	s.Key = slices.Clone(s.Key)
	s.Certificate = slices.Clone(s.Certificate)
	s.Roots = slices.Clone(s.Roots)
	s.Founding = slices.Clone(s.Founding)
	s.Peers = slices.Clone(s.Peers)
	return s
}

// LogValue tells the IDs only.
func (s State) LogValue() slog.Value {
	return slog.GroupValue(slog.String("cluster", s.ClusterID), slog.String("node", s.NodeID))
}

// format is the number of the form that a node's data directory has. It changes
// when a program before the change could not use, or would spoil, what one
// after it wrote.
const format = 1

// envelope is what a sealed file of this package holds.
type envelope struct {
	Format  uint64          `cbor:"format"`
	Content cbor.RawMessage `cbor:"content"`
}

// encrypt is the form of a file that holds v.
func encrypt(ring *seal.Keyring, domain string, v any) ([]byte, error) {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil, err
	}
	content, err := mode.Marshal(v)
	if err != nil {
		return nil, err
	}
	plain, err := mode.Marshal(envelope{format, content})
	if err != nil {
		return nil, err
	}
	return ring.Seal(seal.Domain(domain), plain), nil
}

// decrypt reads such a file. What a newer program wrote is refused.
func decrypt(ring *seal.Keyring, domain string, sealed []byte, v any) error {
	plain, err := ring.Open(seal.Domain(domain), sealed)
	if err != nil {
		return err
	}
	mode, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   8,
	}.DecMode()
	if err != nil {
		return err
	}
	var e envelope
	if err := mode.Unmarshal(plain, &e); err != nil {
		return err
	}
	if e.Format != format {
		return fmt.Errorf("%w: it has format %d, and this program reads format %d", ErrFormat, e.Format, format)
	}
	return mode.Unmarshal(e.Content, v)
}

func keystoreRing(kek seal.Secret) (*seal.Keyring, error) {
	return seal.NewKeyring(kek.Derive("skep keystore"))
}

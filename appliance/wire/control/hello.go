package control

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/errdefs"

	"skep/appliance/wire"
	"skep/pki"
	"skep/store/object"
)

// Protocol is the version of the protocol that this package speaks.
const Protocol = 1

const (
	helloHeader = "Skep-Hello"
	// maxHello is the size of a hello, and of the answer to one, in bytes.
	maxHello = 4096
)

// hello says who speaks to whom.
type hello struct {
	Protocol int    `cbor:"1,keyasint"`
	Cluster  string `cbor:"2,keyasint"`
	Epoch    uint64 `cbor:"3,keyasint"`
	From     string `cbor:"4,keyasint"`
	To       string `cbor:"5,keyasint"` // empty: any manager
}

func (i *Identity) hello(to string) hello {
	return hello{Protocol: Protocol, Cluster: i.Cluster, Epoch: i.Epoch, From: i.NodeID, To: to}
}

// check refuses a hello to node i from n that is not meant for it.
//
// A worker may be of an earlier epoch: it is told the swarm's after this.
func (i *Identity) check(h hello, n pki.Node) error {
	refuse := func(format string, args ...any) error {
		return object.Errorf(errdefs.ErrPermissionDenied, format, args...)
	}
	switch {
	case h.Protocol != Protocol:
		return refuse("node %s speaks version %d of the control protocol, this manager speaks version %d", n.ID, h.Protocol, Protocol)
	case h.Cluster != i.Cluster:
		return refuse("node %s is of swarm %.64s, this manager is of swarm %s", n.ID, h.Cluster, i.Cluster)
	case h.From != n.ID:
		return refuse("node %.64s has the certificate of node %s", h.From, n.ID)
	case h.To != "" && h.To != i.NodeID:
		return refuse("this is manager %s, not %.64s", i.NodeID, h.To)
	case h.Epoch < i.Epoch && n.Role == pki.Manager:
		return object.Errorf(wire.ErrSuperseded, "the swarm was recovered with --force-new-cluster without node %s: run \"docker swarm leave --force\" on it and let it join again", h.From)
	case h.Epoch > i.Epoch:
		return refuse("the swarm was recovered with --force-new-cluster without manager %s: run \"docker swarm leave --force\" on it and let it join again", i.NodeID)
	}
	return nil
}

// Hello adds to the header of a request to node to, or to any manager, who
// sends it.
func (i *Identity) Hello(header http.Header, to string) error {
	b, err := object.Encode(i.hello(to))
	if err != nil {
		return fmt.Errorf("encode hello: %w", err)
	}
	header.Set(helloHeader, base64.RawStdEncoding.EncodeToString(b))
	return nil
}

func parseHeader(s string) (hello, error) {
	if s == "" {
		return hello{}, errors.New("request has no hello")
	}
	if len(s) > maxHello {
		return hello{}, errors.New("hello is too long")
	}
	b, err := base64.RawStdEncoding.Strict().DecodeString(s)
	if err != nil {
		return hello{}, fmt.Errorf("decode hello: %w", err)
	}
	return parseHello(b)
}

func parseHello(b []byte) (hello, error) {
	var h hello
	if err := object.Decode(b, &h); err != nil {
		return hello{}, fmt.Errorf("decode hello: %w", err)
	}
	return h, nil
}

// writeFrame sends one value, or an empty frame for nil.
func writeFrame(w io.Writer, v any) error {
	frame := make([]byte, 4)
	if v != nil {
		b, err := object.Encode(v)
		if err != nil {
			return err
		}
		frame = append(frame, b...)
	}
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-4))
	_, err := w.Write(frame)
	return err
}

// readFrame takes exactly one frame from r, and nothing after it.
func readFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxHello {
		return nil, errors.New("frame is too long")
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

// greet opens a Raft connection from i to node to: the answer is empty, or a
// refusal.
func (i *Identity) greet(conn io.ReadWriter, to string) error {
	if err := writeFrame(conn, i.hello(to)); err != nil {
		return fmt.Errorf("send hello: %w", err)
	}
	b, err := readFrame(conn)
	if err != nil {
		return fmt.Errorf("receive answer to hello: %w", err)
	}
	if len(b) == 0 {
		return nil
	}
	return parseRefusal(b).Err()
}

// answer is the other side of greet. Only if it returns nil may the connection
// be used.
func (i *Identity) answer(conn io.ReadWriter, n pki.Node, ready func() error) error {
	b, err := readFrame(conn)
	if err != nil {
		return fmt.Errorf("receive hello: %w", err)
	}
	h, err := parseHello(b)
	if err == nil {
		err = i.check(h, n)
	}
	if err == nil {
		err = ready()
	}
	if err != nil {
		if werr := writeFrame(conn, wire.Refuse(err)); werr != nil {
			return errors.Join(err, werr)
		}
		return err
	}
	if err := writeFrame(conn, nil); err != nil {
		return fmt.Errorf("answer hello: %w", err)
	}
	return nil
}

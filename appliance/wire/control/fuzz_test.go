package control

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"skep/appliance/wire"
	"skep/pki"
	"skep/store/object"
)

func fuzzIdentity() (*Identity, pki.Node) {
	return &Identity{Cluster: "c", NodeID: "m1", Epoch: 2}, pki.Node{ID: "w1", Cluster: "c", Role: pki.Worker}
}

func seeds(f *testing.F) [][]byte {
	f.Helper()
	var all [][]byte
	for _, v := range []any{
		hello{Protocol: 1, Cluster: "c", Epoch: 2, From: "w1", To: "m1"},
		hello{Protocol: 2, Cluster: "c"},
		wire.Refusal{Kind: wire.Denied, Text: "no"},
		wire.Peer{NodeID: "m2", Addr: "10.0.0.2:2377"},
		map[int]int{1: 1},
	} {
		b, err := object.Encode(v)
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

// duplex reads from one buffer and writes to another.
type duplex struct {
	*bytes.Reader
	out bytes.Buffer
}

func (d *duplex) Write(b []byte) (int, error) { return d.out.Write(b) }

// FuzzRaftHello: only the hello of the very node that is there is good; and
// every other is answered by a refusal that can be read, or not at all.
func FuzzRaftHello(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(append([]byte{0, 0, 0, byte(len(b))}, b...))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		id, node := fuzzIdentity()
		conn := &duplex{Reader: bytes.NewReader(b)}
		err := id.answer(conn, node, func() error { return nil })
		if err == nil {
			frame, rerr := readFrame(bytes.NewReader(b))
			h, herr := parseHello(frame)
			if rerr != nil || herr != nil || h.From != node.ID || h.Cluster != id.Cluster || h.Protocol != Protocol || h.Epoch > id.Epoch || (h.To != "" && h.To != id.NodeID) {
				t.Errorf("took %x (%+v)", b, h)
			}
		}
		if conn.out.Len() == 0 {
			return
		}
		answer, aerr := readFrame(&conn.out)
		if aerr != nil {
			t.Fatalf("the answer to %x cannot be read: %v", b, aerr)
		}
		if taken := len(answer) == 0; taken != (err == nil) {
			t.Errorf("%x: the caller believes it was taken: %t; here: %v", b, taken, err)
		}
		if len(answer) > 0 && strings.Contains(parseRefusal(answer).Text, "cannot be read") {
			t.Errorf("the refusal of %x cannot be read", b)
		}
	})
}

// FuzzHelloHeader: a header that is taken is one that Hello could have made.
func FuzzHelloHeader(f *testing.F) {
	id, _ := fuzzIdentity()
	header := http.Header{}
	if err := id.Hello(header, "m2"); err != nil {
		f.Fatal(err)
	}
	f.Add(header.Get(helloHeader))
	f.Add("AAAA====")
	f.Fuzz(func(t *testing.T, s string) {
		h, err := parseHeader(s)
		if err != nil {
			return
		}
		again := http.Header{}
		sender := &Identity{Cluster: h.Cluster, NodeID: h.From, Epoch: h.Epoch}
		if err = sender.Hello(again, h.To); err != nil {
			t.Fatal(err)
		}
		back, err := parseHeader(again.Get(helloHeader))
		h.Protocol = Protocol
		if err != nil || back != h {
			t.Errorf("%q is %+v, and after a round trip %+v, %v", s, h, back, err)
		}
	})
}

// FuzzRefusal: whatever a manager answers, it is an error.
func FuzzRefusal(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(uint16(403), b)
		f.Add(uint16(421), b)
	}
	f.Fuzz(func(t *testing.T, status uint16, b []byte) {
		if status < 300 || status > 999 {
			return
		}
		for _, ct := range []string{contentType, "text/html"} {
			resp := &http.Response{StatusCode: int(status), Status: "x", Header: http.Header{"Content-Type": {ct}}, Body: http.NoBody}
			resp.Body = readCloser{bytes.NewReader(b)}
			if err := refused(resp); err == nil {
				t.Errorf("%d %s %x is no error", status, ct, b)
			}
		}
	})
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }

package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"
	"github.com/opencontainers/go-digest"

	"skep/appliance/wire"
	"skep/store/object"
)

const second = time.Second

// stream is one end of a connection that holds bytes.
type stream struct {
	net.Conn // nil: nothing else is called
	in       io.Reader
	out      bytes.Buffer
}

func (s *stream) Read(b []byte) (int, error)       { return s.in.Read(b) }
func (s *stream) Write(b []byte) (int, error)      { return s.out.Write(b) }
func (s *stream) SetReadDeadline(time.Time) error  { return nil }
func (s *stream) SetWriteDeadline(time.Time) error { return nil }

func receive(frame []byte) (*wire.Message, error) {
	return wire.NewConn(&stream{in: bytes.NewReader(frame)}).Receive(second)
}

func send(m *wire.Message) ([]byte, error) {
	s := &stream{}
	err := wire.NewConn(s).Send(m, second)
	return s.out.Bytes(), err
}

func frame(body string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

func messages(tb testing.TB) []*wire.Message {
	tb.Helper()
	task := &object.Task{ID: "t1", ServiceID: "s1", DesiredState: swarm.TaskStateRunning}
	task.Status = swarm.TaskStatus{State: swarm.TaskStateAssigned, Timestamp: time.Unix(1e9, 7).UTC()}
	item, err := wire.Pack(task)
	if err != nil {
		tb.Fatal(err)
	}
	return []*wire.Message{
		{Hello: &wire.Hello{Protocol: 1, Description: swarm.NodeDescription{Hostname: "n1"}}},
		{Welcome: &wire.Welcome{Session: "x", Period: 5 * second}},
		{Refusal: &wire.Refusal{Kind: wire.NotFound, Text: "node x not found"}},
		{Beat: &wire.Beat{}},
		{Assignments: &wire.Assignments{AppliesTo: "1", ResultsIn: "2", Items: []wire.Item{item, {Kind: object.KindTask, Key: "t2"}}}},
		{Statuses: &wire.Statuses{Sequence: 3, Tasks: []wire.TaskStatus{{ID: "t1", Status: task.Status}}}},
		{Acknowledge: &wire.Acknowledge{ResultsIn: "2", Statuses: 3}},
		{Describe: &wire.Describe{Description: swarm.NodeDescription{Hostname: "n2"}, Member: &wire.Member{RaftID: "r1", Addr: "10.0.0.2:2377"}}},
		{Swarm: &wire.Swarm{Managers: []wire.Peer{{NodeID: "m1", Addr: "10.0.0.1:2377"}}, Role: swarm.NodeRoleWorker, GossipKeys: [][]byte{{1}}}},
		{Invite: &wire.Invite{Stream: "s"}},
		{Nodes: &wire.Nodes{Complete: true, Items: []wire.Peer{{NodeID: "n1", Addr: "10.0.0.1"}}, Gone: []string{"n2"}}},
		{Beat: &wire.Beat{Keys: 7}},
		{Bye: &wire.Bye{}},
		{Networks: complete(7, host("h"), overlay("a"), service("10.0.1.2", "fd00::2"), endpoint("t1", wire.EndpointActive))},
		{Networks: change(8, gone(endpoint("t1", "")), gone(service()), gone(overlay("a")), gone(host("h")))},
		{Programmed: &wire.Programmed{Networks: 8, Tunnels: 2, Leaving: []string{"t"}}},
		{Tunnels: &wire.Tunnels{Version: 2, Pairs: []wire.TunnelPair{{Node: "n2", In: []wire.TunnelKey{{SPI: 256, Key: []byte{1}}}}}}},
		{Holdings: &wire.Holdings{Complete: true, Images: []wire.Image{{Names: []string{"docker.io/library/x:1"}}}, Gone: []digest.Digest{"sha256:00"}}},
	}
}

func TestConn_RoundTrip(t *testing.T) {
	for _, m := range messages(t) {
		b, err := send(m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := receive(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, got, compareViews()); diff != "" {
			t.Errorf("message (-sent +received):\n%s", diff)
		}
	}
}

func TestConn_Refuses(t *testing.T) {
	tests := []struct {
		name  string
		frame []byte
		err   string
	}{
		{"nothing", nil, "EOF"},
		{"half a length", []byte{0, 0}, "unexpected EOF"},
		{"too long", []byte{0, 0x10, 0, 1}, "frame is larger than 1 MiB"},
		{"shorter than it says", []byte{0, 0, 0, 9, 0xa1}, "unexpected EOF"},
		{"no part", frame("\xa0"), "does not have exactly one part"},
		{"two parts", frame("\xa2\x04\xa0\x07\xa0"), "does not have exactly one part"},
		{"a part twice", frame("\xa2\x04\xa0\x04\xa0"), "duplicate map key"},
		{"unknown part", frame("\xa1\x18\x63\xa0"), "unknown field"},
		{"unknown field", frame("\xa1\x04\xa1\x61x\x01"), "unknown field"},
		{"more than one value", frame("\xa1\x04\xa0\x00"), "extraneous data"},
		{"not CBOR", frame("\xff"), "decode message"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := receive(tt.frame)
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Receive: got %v, %v, want error with %q", m, err, tt.err)
			}
		})
	}
	if _, err := send(&wire.Message{}); err == nil {
		t.Error("Send of an empty message: no error")
	}
	big := &wire.Message{Refusal: &wire.Refusal{Text: strings.Repeat("x", wire.MaxFrame)}}
	if _, err := send(big); !errors.Is(err, wire.ErrTooLarge) {
		t.Errorf("Send of 1 MiB: got error %v, want %v", err, wire.ErrTooLarge)
	}
}

func TestAssignments_PartsFitFrames(t *testing.T) {
	set := &wire.Assignments{Complete: true, ResultsIn: "1"}
	for i := range 7 {
		c := &object.Config{}
		c.ID, c.Spec.Data = string(rune('a'+i)), bytes.Repeat([]byte{byte(i)}, 1000*1024) // the largest there is
		item, err := wire.Pack(c)
		if err != nil {
			t.Fatal(err)
		}
		set.Items = append(set.Items, item, wire.Item{Kind: object.KindTask, Key: c.ID})
	}
	var got []wire.Item
	parts := set.Parts()
	for i, p := range parts {
		if p.More != (i < len(parts)-1) || p.ResultsIn != "1" || !p.Complete {
			t.Errorf("part %d of %d: %+v", i, len(parts), p)
		}
		if _, err := send(&wire.Message{Assignments: p}); err != nil {
			t.Errorf("part %d: %v", i, err)
		}
		got = append(got, p.Items...)
	}
	same := func(a, b wire.Item) bool { return a.Key == b.Key && a.Kind == b.Kind && bytes.Equal(a.Data, b.Data) }
	if !slices.EqualFunc(set.Items, got, same) {
		t.Errorf("the parts hold %d items, not the %d of the set", len(got), len(set.Items))
	}
	if empty := (&wire.Assignments{Complete: true}).Parts(); len(empty) != 1 {
		t.Errorf("parts of an empty set: got %d, want 1", len(empty))
	}
}

func TestItem_Unpack(t *testing.T) {
	good, err := wire.Pack(&object.Secret{Secret: swarm.Secret{ID: "s"}})
	if err != nil {
		t.Fatal(err)
	}
	if o, err := good.Unpack(); err != nil || o.Key() != "s" {
		t.Errorf("Unpack: got %v, %v", o, err)
	}
	other, unknown := good, good
	other.Key, unknown.Kind = "x", "gadget"
	for _, i := range []wire.Item{other, unknown, {Kind: object.KindTask, Key: "t", Data: []byte{0xff}}} {
		if o, err := i.Unpack(); err == nil {
			t.Errorf("Unpack %s %s: got %v, want an error", i.Kind, i.Key, o)
		}
	}
}

func TestRefuse_KeepsKindAndText(t *testing.T) {
	for _, kind := range []error{
		errdefs.ErrNotFound, errdefs.ErrResourceExhausted, errdefs.ErrInvalidArgument, errdefs.ErrPermissionDenied, errdefs.ErrUnavailable,
	} {
		b, err := send(&wire.Message{Refusal: wire.Refuse(object.Errorf(kind, "because"))})
		if err != nil {
			t.Fatal(err)
		}
		m, err := receive(b)
		if err != nil {
			t.Fatal(err)
		}
		if !errors.Is(m.Refusal.Err(), kind) || m.Refusal.Err().Error() != "because" {
			t.Errorf("refusal of kind %v: got %v", kind, m.Refusal)
		}
	}
}

// FuzzReceive feeds frames of strangers: whatever is taken must go out and come
// in again as the same, and its items must not harm.
func FuzzReceive(f *testing.F) {
	for _, m := range messages(f) {
		b, err := send(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0, 0x10, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := receive(b)
		if err != nil {
			return
		}
		again, err := send(m)
		if err != nil {
			t.Fatalf("what was received cannot be sent: %v", err)
		}
		back, err := receive(again)
		if err != nil {
			t.Fatalf("what was sent cannot be received: %v", err)
		}
		if third, err := send(back); err != nil || !bytes.Equal(again, third) {
			t.Fatalf("message changes on its way: %x, then %x (%v)", again, third, err)
		}
		if m.Assignments == nil {
			return
		}
		for _, i := range m.Assignments.Items {
			if o, err := i.Unpack(); err == nil && o.Key() != i.Key {
				t.Fatalf("item %s holds %s", i.Key, o.Key())
			}
		}
	})
}

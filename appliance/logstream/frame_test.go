package logstream

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skep/appliance/wire"
	"skep/store/object"
)

func samples() []*frame {
	at := time.Unix(1, 2).UTC()
	return []*frame{
		nil,
		{Line: &object.LogLine{Time: at, Text: []byte("hello\n")}},
		{Line: &object.LogLine{Time: at, Stderr: true, Text: []byte{0xff, 0}}},
		{End: true},
		{End: true, Err: &wire.Refusal{Kind: wire.NotFound, Text: "no such task"}},
	}
}

func TestFrames_ComeBackAsTheyWere(t *testing.T) {
	var stream []byte
	for _, f := range samples() {
		var err error
		if stream, err = appendFrame(stream, f); err != nil {
			t.Fatal(err)
		}
	}
	r, buf := bytes.NewReader(stream), make([]byte, maxFrame)
	for _, want := range samples() {
		got, _, err := readFrame(r, buf)
		if err != nil || !cmp.Equal(got, want) {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
	}
	if _, _, err := readFrame(r, buf); err == nil {
		t.Error("the end of the stream is a frame")
	}
}

func TestFrames_StrangeOnesAreRefused(t *testing.T) {
	encode := func(v any) string {
		b, err := object.Encode(v)
		if err != nil {
			t.Fatal(err)
		}
		return string([]byte{0, 0, byte(len(b) >> 8), byte(len(b))}) + string(b)
	}
	line := &object.LogLine{Text: []byte("x")}
	tests := []struct{ name, stream, want string }{
		{"too large", "\x00\x01\x00\x01", "more than 65536"},
		{"huge", "\xff\xff\xff\xff", "more than 65536"},
		{"cut head", "\x00\x00", "unexpected EOF"},
		{"cut value", "\x00\x00\x00\x05abc", "unexpected EOF"},
		{"nothing in it", encode(frame{}), "neither"},
		{"both", encode(frame{Line: line, End: true}), "neither"},
		{"error before the end", encode(frame{Line: line, Err: &wire.Refusal{}}), "neither"},
		{"unknown field", encode(map[string]any{"End": true, "More": 1}), "unknown field"},
		{"no CBOR", "\x00\x00\x00\x01\xff", "decode frame"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, _, err := readFrame(strings.NewReader(tt.stream), make([]byte, maxFrame)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := appendFrame(nil, &frame{Line: &object.LogLine{Text: make([]byte, maxFrame)}}); err == nil {
		t.Error("a frame that is too large is sent")
	}
}

func TestQuery_ComesBackAsItWas(t *testing.T) {
	for _, q := range []object.LogQuery{
		{}, {Stdout: true, Tail: -1}, {Stderr: true, Follow: true, Tail: 5, Since: time.Unix(3, 4).UTC(), Until: time.Unix(5, 0).UTC()},
	} {
		text, err := formatQuery(q)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseQuery(text); err != nil || got != q {
			t.Errorf("got %v, %v, want %v", got, err, q)
		}
	}
	for _, bad := range []string{"", "!", "AAAA"} {
		if q, err := parseQuery(bad); err == nil {
			t.Errorf("%q is %v", bad, q)
		}
	}
}

// FuzzFrames reads whatever a node sends: what is taken can be sent again and
// is then the same.
func FuzzFrames(f *testing.F) {
	for _, s := range samples() {
		b, err := appendFrame(nil, s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, buf := bytes.NewReader(b), make([]byte, maxFrame)
		for {
			got, _, err := readFrame(r, buf)
			if err != nil {
				return
			}
			again, err := appendFrame(nil, got)
			if err != nil {
				t.Fatalf("cannot send %v: %v", got, err)
			}
			back, _, err := readFrame(io.Reader(bytes.NewReader(again)), buf)
			if err != nil || !cmp.Equal(got, back) {
				t.Fatalf("%v became %v, %v", got, back, err)
			}
		}
	})
}

func FuzzQuery(f *testing.F) {
	f.Add("oA")
	f.Fuzz(func(t *testing.T, text string) {
		q, err := parseQuery(text)
		if err != nil {
			return
		}
		again, err := formatQuery(q)
		if err != nil {
			t.Fatal(err)
		}
		back, err := parseQuery(again)
		if err != nil || !back.Since.Equal(q.Since) || !back.Until.Equal(q.Until) || back.Tail != q.Tail {
			t.Fatalf("%v became %v, %v", q, back, err)
		}
	})
}

package stdio_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"skep/exec/stdio"
)

func TestDetachable(t *testing.T) {
	keys := "\x10\x11"
	tests := []struct {
		name, keys, in, want string
		detached             bool
	}{
		{"nothing typed", keys, "", "", false},
		{"no keys in it", keys, "hello", "hello", false},
		{"keys at the end", keys, "hi\x10\x11", "hi", true},
		{"nothing after the keys", keys, "hi\x10\x11more", "hi", true},
		{"first key only", keys, "hi\x10more", "hi\x10more", false},
		{"first key last", keys, "hi\x10", "hi\x10", false},
		{"first key twice", keys, "a\x10\x10\x11b", "a\x10", true},
		{"no detach keys", "", "a\x10\x11b", "a\x10\x11b", false},
		{"one key", "q", "abq", "ab", true},
		{"overlapping keys", "aab", "aaab", "a", true},
	}
	for _, tt := range tests {
		for name, wrap := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r }, "by byte": iotest.OneByteReader} {
			t.Run(tt.name+" "+name, func(t *testing.T) {
				got, err := io.ReadAll(stdio.Detachable(wrap(bytes.NewReader([]byte(tt.in))), []byte(tt.keys)))
				if string(got) != tt.want || errors.Is(err, stdio.ErrDetached) != tt.detached {
					t.Errorf("got %q, %v; want %q, detached %v", got, err, tt.want, tt.detached)
				}
			})
		}
	}
}

// What comes out is what went in, up to the first place of the keys.
func FuzzDetachable(f *testing.F) {
	f.Add([]byte("\x10\x11"), []byte("ab\x10\x10\x11c"), uint8(3))
	f.Add([]byte("aab"), []byte("aaab"), uint8(1))
	f.Fuzz(func(t *testing.T, keys, in []byte, size uint8) {
		want, detached := in, false
		if at := bytes.Index(in, keys); at >= 0 && len(keys) > 0 {
			want, detached = in[:at], true
		}
		r := stdio.Detachable(bytes.NewReader(in), keys)
		var got []byte
		buf := make([]byte, int(size)+1)
		var err error
		for err == nil {
			var n int
			n, err = r.Read(buf)
			got = append(got, buf[:n]...)
		}
		if !bytes.Equal(got, want) || errors.Is(err, stdio.ErrDetached) != detached {
			t.Errorf("keys %q in %q: got %q, %v; want %q, detached %v", keys, in, got, err, want, detached)
		}
	})
}

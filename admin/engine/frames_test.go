package engine

import (
	"bytes"
	"testing"

	"github.com/moby/moby/api/pkg/stdcopy"
)

// FuzzFrames writes any data, cut anywhere, to both outputs and reads it back
// as Docker's clients do.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("out\nerr\n"), []byte{4, 0x84})
	f.Add([]byte{}, []byte{0})
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 5, 'f', 'r', 'a', 'm', 'e'}, []byte{1, 0x82, 200})
	f.Fuzz(func(t *testing.T, data, cuts []byte) {
		var wire, stdout, stderr bytes.Buffer
		x := &frames{w: &wire}
		for _, cut := range cuts {
			// The first bit chooses the output, the others the length.
			part := data[:min(len(data), int(cut&0x7f))]
			data = data[len(part):]
			to, copied := x.stdout(), &stdout
			if cut&0x80 != 0 {
				to, copied = x.stderr(), &stderr
			}
			if n, err := to.Write(part); err != nil || n != len(part) {
				t.Fatalf("Write of %d bytes: %d, %v", len(part), n, err)
			}
			copied.Write(part)
		}
		var out, errs bytes.Buffer
		if _, err := stdcopy.StdCopy(&out, &errs, &wire); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out.Bytes(), stdout.Bytes()) || !bytes.Equal(errs.Bytes(), stderr.Bytes()) {
			t.Errorf("read back %q and %q, want %q and %q", out.Bytes(), errs.Bytes(), stdout.Bytes(), stderr.Bytes())
		}
	})
}

package seal_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/iotest"

	"skep/pki/seal"
)

func ring(tb testing.TB) *seal.Keyring {
	tb.Helper()
	k, err := seal.NewKeyring(seal.NewSecret())
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// fixed is the same in all processes of a fuzz run.
func fixed(tb testing.TB) *seal.Keyring {
	tb.Helper()
	k, err := seal.NewKeyring(bytes.Repeat([]byte{7}, seal.KeySize))
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func TestRecord_OpensOnlyAsItWasSealed(t *testing.T) {
	k := ring(t)
	const domain = "log 7"
	plain := []byte("what nobody may read")
	sealed := k.Seal(domain, plain)
	if got, err := k.Open(domain, sealed); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("got %q, %v", got, err)
	}
	if bytes.Contains(sealed, plain) || len(sealed) != len(plain)+seal.Overhead {
		t.Errorf("sealed to %d bytes: %q", len(sealed), sealed)
	}
	if again := k.Seal(domain, plain); bytes.Equal(again, sealed) {
		t.Error("two seals are alike")
	}
	if _, err := k.Open("log 8", sealed); !errors.Is(err, seal.ErrDamaged) {
		t.Errorf("opened for another domain: %v", err)
	}
	if _, err := ring(t).Open(domain, sealed); !errors.Is(err, seal.ErrNoKey) {
		t.Errorf("opened with another key: %v", err)
	}
	for bit := range len(sealed) * 8 {
		bad := bytes.Clone(sealed)
		bad[bit/8] ^= 1 << (bit % 8)
		if got, err := k.Open(domain, bad); err == nil {
			t.Fatalf("with bit %d flipped it opens as %q", bit, got)
		}
	}
	for n := range len(sealed) {
		if got, err := k.Open(domain, sealed[:n]); err == nil {
			t.Fatalf("the first %d bytes open as %q", n, got)
		}
	}
}

func TestKeyring_OldDataStaysReadableUntilItsKeyIsRetired(t *testing.T) {
	k := ring(t)
	old := k.Seal("d", []byte("old"))
	k.Rotate(seal.NewSecret())
	fresh := k.Seal("d", []byte("new"))
	if k.Current(old) || !k.Current(fresh) {
		t.Error("cannot tell what the active key sealed")
	}
	reopened, err := seal.NewKeyring(k.Secrets()[0], k.Secrets()[1:]...)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []*seal.Keyring{k, reopened} {
		if got, err := k.Open("d", old); err != nil || string(got) != "old" {
			t.Errorf("got %q, %v", got, err)
		}
	}
	k.Retire()
	if _, err := k.Open("d", old); !errors.Is(err, seal.ErrNoKey) {
		t.Errorf("opened with a retired key: %v", err)
	}
	if got, err := k.Open("d", fresh); err != nil || string(got) != "new" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := seal.NewKeyring(seal.Secret("short")); err == nil {
		t.Error("took a short key")
	}
}

func TestSecret_IsNeverShown(t *testing.T) {
	s := seal.Secret("a canary in the log 1234567890ab")
	k, err := seal.NewKeyring(s)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	log := slog.New(slog.NewJSONHandler(&b, nil))
	log.Info("m", "secret", s, "ring", k)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		fmt.Fprintf(&b, verb+verb, s, k)
		fmt.Fprintf(&b, verb, struct{ S seal.Secret }{s})
	}
	if got := b.String(); strings.Contains(got, "canary") || strings.Contains(got, "6361") || strings.Contains(got, "99 97") {
		t.Errorf("shown: %s", got)
	}
}

func TestDomain_OfDifferentPartsDiffers(t *testing.T) {
	seen := map[string][]string{}
	for _, parts := range [][]string{{}, {""}, {"", ""}, {"ab"}, {"a", "b"}, {"ab", ""}, {"", "ab"}, {"a", "", "b"}} {
		d := seal.Domain(parts...)
		if other, ok := seen[d]; ok {
			t.Errorf("%q and %q have one domain", parts, other)
		}
		seen[d] = parts
	}
}

const chunk = 64 << 10

func sealStream(tb testing.TB, k *seal.Keyring, plain []byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	w, err := k.NewWriter("d", &b)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func openStream(k *seal.Keyring, domain string, sealed []byte) ([]byte, error) {
	r, err := k.NewReader(domain, iotest.HalfReader(bytes.NewReader(sealed)))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func TestStream_OpensWholeOrNotAtAll(t *testing.T) {
	k := ring(t)
	const header = 2 + 8 + 32
	for _, size := range []int{0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk, 2*chunk + 7} {
		plain := bytes.Repeat([]byte("0123456"), size/7+1)[:size]
		sealed := sealStream(t, k, plain)
		if got, err := openStream(k, "d", sealed); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%d bytes: got %d, %v", size, len(got), err)
		}
		if _, err := openStream(k, "e", sealed); !errors.Is(err, seal.ErrDamaged) {
			t.Errorf("%d bytes open for another domain: %v", size, err)
		}
		if _, err := openStream(ring(t), "d", sealed); !errors.Is(err, seal.ErrNoKey) {
			t.Errorf("%d bytes open with another key: %v", size, err)
		}
		cuts := []int{0, 1, header - 1, header, header + 1, header + 16, header + chunk + 16, header + 2*(chunk+16), len(sealed) - 17, len(sealed) - 1}
		for _, n := range cuts {
			if n >= 0 && n < len(sealed) {
				if _, err := openStream(k, "d", sealed[:n]); !errors.Is(err, seal.ErrDamaged) {
					t.Errorf("the first %d of %d bytes: %v", n, len(sealed), err)
				}
			}
		}
		for at := 0; at < len(sealed); at += 4099 {
			bad := bytes.Clone(sealed)
			bad[at] ^= 0x10
			if _, err := openStream(k, "d", bad); err == nil {
				t.Errorf("%d bytes open with byte %d changed", size, at)
			}
		}
		if _, err := openStream(k, "d", append(bytes.Clone(sealed), 0)); err == nil {
			t.Errorf("%d bytes open with one more", size)
		}
	}
}

func TestStream_ChunksCannotMove(t *testing.T) {
	k := ring(t)
	sealed := sealStream(t, k, make([]byte, 3*chunk))
	const header, each = 2 + 8 + 32, chunk + 16
	h, one, two, three := sealed[:header], sealed[header:header+each], sealed[header+each:header+2*each], sealed[header+2*each:]
	for name, parts := range map[string][][]byte{
		"swapped": {h, two, one, three}, "repeated": {h, one, one, two, three}, "dropped": {h, one, three}, "last first": {h, three}, "no last": {h, one, two},
	} {
		if _, err := openStream(k, "d", bytes.Join(parts, nil)); !errors.Is(err, seal.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, size := range []int{1, 100, chunk} { // however it is written
		var b bytes.Buffer
		w, err := k.NewWriter("d", &b)
		if err != nil {
			t.Fatal(err)
		}
		plain := bytes.Repeat([]byte{7}, chunk+5)
		for p := plain; len(p) > 0; p = p[min(size, len(p)):] {
			if _, err := w.Write(p[:min(size, len(p))]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := openStream(k, "d", b.Bytes()); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("written by %d bytes: %v", size, err)
		}
		if _, err := w.Write([]byte{1}); err == nil {
			t.Error("wrote to a closed stream")
		}
	}
}

func FuzzOpen(f *testing.F) {
	k := fixed(f)
	f.Add([]byte{}, "")
	f.Add(k.Seal("d", []byte("x")), "d")
	f.Add(make([]byte, 100), "d")
	f.Fuzz(func(t *testing.T, sealed []byte, domain string) {
		if got, err := k.Open(domain, sealed); err == nil && (domain != "d" || string(got) != "x") {
			t.Fatalf("forged %q", got)
		}
	})
}

func FuzzStream(f *testing.F) {
	k := fixed(f)
	f.Add(sealStream(f, k, []byte("x")))
	f.Add(sealStream(f, k, make([]byte, chunk+1)))
	f.Add([]byte{1, 1})
	f.Fuzz(func(t *testing.T, sealed []byte) {
		if got, err := openStream(k, "d", sealed); err == nil && string(got) != "x" && !bytes.Equal(got, make([]byte, chunk+1)) {
			t.Fatalf("forged %q", got)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	k := ring(b)
	for _, size := range []int{256, 4096} {
		plain := make([]byte, size)
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				k.Seal("d", plain)
			}
		})
	}
}

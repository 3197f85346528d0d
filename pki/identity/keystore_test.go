package identity_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"

	"skep/pki"
	"skep/pki/identity"
	"skep/pki/seal"
)

func open(t *testing.T, dir string) *identity.Keystore {
	t.Helper()
	k, err := identity.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

func setNode(id string) func(*identity.State) error {
	return func(s *identity.State) error {
		s.NodeID, s.Key, s.Roots, s.Epoch = id, seal.Secret("canary-key-"+id), []byte("roots"), s.Epoch+1
		return nil
	}
}

func update(t *testing.T, k *identity.Keystore, change func(*identity.State) error) {
	t.Helper()
	if err := k.Update(change); err != nil {
		t.Fatal(err)
	}
}

func closeNow(t *testing.T, k *identity.Keystore) {
	t.Helper()
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestKeystore_StartsInactiveAndKeepsWhatItIsTold(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir)
	first := k.State()
	if first.NodeID != "" || len(first.DEKs) != 1 || first.Locked {
		t.Errorf("got %+v", first)
	}
	record := k.Keyring().Seal("d", []byte("data"))
	update(t, k, setNode("n1"))
	want := k.State()
	closeNow(t, k)

	k = open(t, dir)
	if diff := cmp.Diff(want, k.State()); diff != "" {
		t.Error(diff)
	}
	if got, err := k.Keyring().Open("d", record); err != nil || string(got) != "data" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, name := range []string{"keystore", "kek"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
		b, _ := os.ReadFile(filepath.Join(dir, name))
		if bytes.Contains(b, []byte("canary")) || bytes.Contains(b, want.DEKs[0]) {
			t.Errorf("%s holds secrets in plain", name)
		}
	}
}

func TestKeystore_IsACopyAndAllOrNothing(t *testing.T) {
	k := open(t, t.TempDir())
	update(t, k, setNode("n1"))
	s := k.State()
	s.Roots[0], s.DEKs[0][0] = 'X', s.DEKs[0][0]+1
	if got := k.State(); string(got.Roots) != "roots" || got.DEKs[0][0] == s.DEKs[0][0] {
		t.Error("a copy reaches the original")
	}
	err := k.Update(func(s *identity.State) error {
		s.NodeID, s.Roots[0] = "other", 'X'
		return errors.New("no")
	})
	if err == nil || k.State().NodeID != "n1" || string(k.State().Roots) != "roots" {
		t.Errorf("got %v, %+v", err, k.State())
	}
	update(t, k, func(s *identity.State) error {
		s.DEKs, s.Locked, s.KEKVersion = nil, true, 9
		return nil
	})
	if s := k.State(); len(s.DEKs) != 1 || s.Locked || s.KEKVersion != 0 {
		t.Errorf("an update changed keys: %+v", s)
	}
}

func TestKeystore_OpensOnceAtATime(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir)
	if _, err := identity.Open(dir); err == nil {
		t.Error("opened twice")
	}
	closeNow(t, k)
	closeNow(t, open(t, dir))
	if _, err := identity.Open(filepath.Join(dir, "nowhere")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestKeystore_RotatesDEKs(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir)
	old := k.Keyring().Seal("d", []byte("old"))
	if err := k.AddDEK(); err != nil {
		t.Fatal(err)
	}
	fresh := k.Keyring().Seal("d", []byte("new"))
	if k.Keyring().Current(old) || !k.Keyring().Current(fresh) {
		t.Error("the active key is the old one")
	}
	closeNow(t, k)
	k = open(t, dir)
	for _, sealed := range [][]byte{old, fresh} {
		if _, err := k.Keyring().Open("d", sealed); err != nil {
			t.Error(err)
		}
	}
	if err := k.RetireDEKs(); err != nil {
		t.Fatal(err)
	}
	closeNow(t, k)
	k = open(t, dir)
	if _, err := k.Keyring().Open("d", old); err == nil {
		t.Error("a retired key opens")
	}
	if _, err := k.Keyring().Open("d", fresh); err != nil {
		t.Error(err)
	}
}

func TestKeystore_LocksAndUnlocks(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir)
	update(t, k, setNode("n1"))
	oldKEK, _ := os.ReadFile(filepath.Join(dir, "kek"))
	key := seal.NewSecret()
	if err := k.Lock(key, 3); err != nil {
		t.Fatal(err)
	}
	update(t, k, setNode("n2"))
	closeNow(t, k)

	if _, err := identity.Open(dir); !errors.Is(err, identity.ErrLocked) {
		t.Errorf("got %v", err)
	}
	if _, err := identity.Unlock(dir, seal.NewSecret()); !errors.Is(err, identity.ErrWrongKey) {
		t.Errorf("got %v", err)
	}
	// A crash between the two steps of locking leaves the old key behind.
	if err := os.WriteFile(filepath.Join(dir, "kek"), oldKEK, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Open(dir); !errors.Is(err, identity.ErrLocked) {
		t.Errorf("got %v", err)
	}
	k, err := identity.Unlock(dir, key)
	if err != nil {
		t.Fatal(err)
	}
	if s := k.State(); s.NodeID != "n2" || !s.Locked || s.KEKVersion != 3 {
		t.Errorf("got %+v", s)
	}
	if _, err := os.Stat(filepath.Join(dir, "kek")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the key from before the lock still lies there")
	}
	if err := k.Unlocked(4); err != nil {
		t.Fatal(err)
	}
	closeNow(t, k)
	if s := open(t, dir).State(); s.NodeID != "n2" || s.Locked || s.KEKVersion != 4 {
		t.Errorf("got %+v", s)
	}
}

// A lock, its change and its end each call for new keys: those before may have
// been read with the key that was replaced.
func TestKeystore_ANewKeyOfItsOwnMakesTheOthersStale(t *testing.T) {
	k := open(t, t.TempDir())
	update(t, k, func(s *identity.State) error {
		s.Key = seal.Secret("a TLS key")
		return nil
	})
	for i, set := range []func() error{
		func() error { return k.Lock(seal.NewSecret(), 1) },
		func() error { return k.Lock(seal.NewSecret(), 2) },
		func() error { return k.Unlocked(3) },
	} {
		sealed := k.Keyring().Seal("d", []byte("x"))
		if err := set(); err != nil {
			t.Fatal(err)
		}
		if s := k.State(); len(s.DEKs) != i+2 || !s.StaleKey || k.Keyring().Current(sealed) {
			t.Errorf("%d keys, stale %t, current %t", len(s.DEKs), s.StaleKey, k.Keyring().Current(sealed))
		}
		if _, err := k.Keyring().Open("d", sealed); err != nil {
			t.Error(err)
		}
		update(t, k, func(*identity.State) error { return nil })
		if !k.State().StaleKey {
			t.Error("an update that keeps the key made it fresh")
		}
		update(t, k, func(s *identity.State) error {
			s.Key = append(s.Key, 'x')
			return nil
		})
		if k.State().StaleKey {
			t.Error("a new key is stale")
		}
	}
	// One that was not locked has given nothing away.
	if err := k.Unlocked(9); err != nil {
		t.Fatal(err)
	}
	if s := k.State(); s.StaleKey || len(s.DEKs) != 4 || s.KEKVersion != 9 {
		t.Errorf("got version %d, %d keys", s.KEKVersion, len(s.DEKs))
	}
}

func TestKeystore_ForgetsAndIsAbandonedUnlocked(t *testing.T) {
	for name, withKey := range map[string]bool{"by a node that has the key": true, "by one that has not": false} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			k := open(t, dir)
			update(t, k, setNode("n1"))
			key := seal.NewSecret()
			if err := k.Lock(key, 3); err != nil {
				t.Fatal(err)
			}
			if withKey {
				if err := k.Forget(); err != nil {
					t.Fatal(err)
				}
			} else {
				closeNow(t, k)
				var err error
				if k, err = identity.Abandon(dir); err != nil {
					t.Fatal(err)
				}
			}
			closeNow(t, k)
			k = open(t, dir)
			if s := k.State(); s.NodeID != "" || s.Locked || s.KEKVersion != 0 || !s.Left {
				t.Errorf("got %+v", s)
			}
			closeNow(t, k)
			if _, err := identity.Unlock(dir, key); !errors.Is(err, identity.ErrWrongKey) {
				t.Errorf("the old key: got %v", err)
			}
		})
	}
}

func TestKeystore_OfAnotherFormatIsRefused(t *testing.T) {
	dir := t.TempDir()
	closeNow(t, open(t, dir))
	kek, err := os.ReadFile(filepath.Join(dir, "kek"))
	if err != nil {
		t.Fatal(err)
	}
	ring, err := seal.NewKeyring(seal.Secret(kek).Derive("skep keystore"))
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range []any{map[string]any{"deks": [][]byte{make([]byte, 32)}, "of_tomorrow": true}, "something else"} {
		plain, err := cbor.Marshal(map[string]any{"format": 2, "content": content})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "keystore"), ring.Seal(seal.Domain("keystore"), plain), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = identity.Open(dir)
		if !errors.Is(err, identity.ErrFormat) || !strings.Contains(err.Error(), "it has format 2, and this program reads format 1") {
			t.Errorf("got %v", err)
		}
	}
}

func TestKeystore_NoticesDamage(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir)
	update(t, k, setNode("n1"))
	closeNow(t, k)
	path := filepath.Join(dir, "keystore")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		damaged := bytes.Clone(whole)
		damaged[i] ^= 1
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if k, err := identity.Open(dir); err == nil {
			_ = k.Close()
			t.Fatalf("opened with byte %d changed", i)
		}
	}
	for _, damaged := range [][]byte{nil, whole[:len(whole)/2], append(whole, 0), make([]byte, 2<<20)} {
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if k, err := identity.Open(dir); err == nil {
			_ = k.Close()
			t.Errorf("opened with %d bytes", len(damaged))
		}
	}
}

func TestState_TLSIsTheNodesOwn(t *testing.T) {
	k := open(t, t.TempDir())
	if _, _, err := k.State().TLS(); !errors.Is(err, identity.ErrNoCertificate) {
		t.Errorf("got %v", err)
	}
	root, err := pki.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	node := pki.Node{ID: "n1", Cluster: "c1", Role: pki.Manager}
	cert, key, err := root.Enroll(node, time.Now(), pki.DefaultExpiry)
	if err != nil {
		t.Fatal(err)
	}
	update(t, k, func(s *identity.State) error {
		s.NodeID, s.ClusterID, s.Certificate, s.Key, s.Roots = "n1", "c1", cert, key, root.PEM()
		return nil
	})
	pair, roots, err := k.State().TLS()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := pki.Verify([]*x509.Certificate{pair.Leaf}, roots, time.Now()); err != nil || got != node {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestUnlockKey_HasOneSpelling(t *testing.T) {
	const text = "SWMKEY-1-7c37Cc8654o6p38HnroywCi19pllOnGtbdZEgtKxZu8"
	key, err := identity.ParseUnlockKey(text + "\n")
	if err != nil || identity.FormatUnlockKey(key) != text {
		t.Errorf("got %v", err)
	}
	for _, in := range []string{
		"", "SWMKEY-1-", text[1:], text + "A", text + "=", text[:len(text)-1] + "9", text[:20] + "\n" + text[20:], "SWMKEY-2" + text[8:],
	} {
		if _, err := identity.ParseUnlockKey(in); !errors.Is(err, identity.ErrUnlockKey) {
			t.Errorf("%q: got %v", in, err)
		}
	}
}

// FuzzParseUnlockKey: what parses is spelt in the one way.
func FuzzParseUnlockKey(f *testing.F) {
	f.Add("SWMKEY-1-7c37Cc8654o6p38HnroywCi19pllOnGtbdZEgtKxZu8")
	f.Fuzz(func(t *testing.T, in string) {
		key, err := identity.ParseUnlockKey(in)
		if err == nil && !bytes.Contains([]byte(in), []byte(identity.FormatUnlockKey(key))) {
			t.Errorf("%q became another", in)
		}
	})
}

// FuzzOpen: whatever lies in the files, it is refused.
func FuzzOpen(f *testing.F) {
	f.Add([]byte("x"))
	f.Add(make([]byte, 200))
	f.Fuzz(func(t *testing.T, in []byte) {
		dir := t.TempDir()
		for name, content := range map[string][]byte{
			"kek": make([]byte, seal.KeySize), "keystore": in, "front.key": make([]byte, seal.KeySize), "front": in,
		} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if k, err := identity.Open(dir); err == nil {
			_ = k.Close()
			t.Error("opened")
		}
		if k, err := identity.Unlock(dir, make([]byte, seal.KeySize)); err == nil {
			_ = k.Close()
			t.Error("unlocked")
		}
		if f, err := identity.OpenFront(dir); err == nil {
			_ = f.Close()
			t.Error("opened the front")
		}
	})
}

// FuzzState: what lies sealed in the keystore opens as a state, or is refused.
func FuzzState(f *testing.F) {
	f.Add([]byte{})
	state, err := cbor.Marshal(map[string]any{"format": 1, "content": map[string]any{"deks": [][]byte{make([]byte, 32)}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(state)
	ring, err := seal.NewKeyring(seal.Secret(make([]byte, seal.KeySize)).Derive("skep keystore"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, plain []byte) {
		dir := t.TempDir()
		if err := errors.Join(
			os.WriteFile(filepath.Join(dir, "kek"), make([]byte, seal.KeySize), 0o600),
			os.WriteFile(filepath.Join(dir, "keystore"), ring.Seal(seal.Domain("keystore"), plain), 0o600),
		); err != nil {
			t.Fatal(err)
		}
		k, err := identity.Open(dir)
		if err != nil {
			return
		}
		if s := k.State(); len(s.DEKs) == 0 {
			t.Error("a state without keys")
		}
		_ = k.Close()
	})
}

func BenchmarkKeystore_Update(b *testing.B) {
	k, err := identity.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	b.ReportAllocs()
	for b.Loop() {
		if err := k.Update(setNode("n")); err != nil {
			b.Fatal(err)
		}
	}
}

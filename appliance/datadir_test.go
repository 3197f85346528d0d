package appliance

import (
	"os"
	"strings"
	"testing"

	"skep/pki/identity"
)

func TestDataDir_ScopeFollowsItsPath(t *testing.T) {
	a, b := &dataDir{path: "/one"}, &dataDir{path: "/other"}
	if len(a.scope()) != 6 || a.scope() == b.scope() || a.scope() != (&dataDir{path: "/one"}).scope() {
		t.Errorf("got %q and %q", a.scope(), b.scope())
	}
	if got := b.join("raft", "log"); got != "/other/raft/log" {
		t.Errorf("got %q", got)
	}
}

func TestDataDir_ThatLostItsKeystoreIsNotTouched(t *testing.T) {
	d := &dataDir{path: t.TempDir()}
	n := &node{dir: d}
	open := func() error {
		err := n.openKeys(t.Context())
		if err == nil {
			err = n.keys.Close()
		}
		return err
	}
	if err := open(); err != nil {
		t.Fatalf("an empty directory: %v", err)
	}
	if err := os.Mkdir(d.join("audit"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := open(); err != nil {
		t.Errorf("its own: %v", err)
	}
	if err := os.Rename(d.join("keystore"), d.join("saved")); err != nil {
		t.Fatal(err)
	}
	if err := open(); err == nil || !strings.Contains(err.Error(), "has no keystore, which has the keys of what lies in audit") {
		t.Errorf("without a keystore: %v", err)
	}
	if has, err := identity.Exists(d.path); has || err != nil {
		t.Errorf("it has a new keystore: %v", err)
	}
	if err := os.Rename(d.join("saved"), d.join("keystore")); err != nil {
		t.Fatal(err)
	}
	if err := open(); err != nil {
		t.Errorf("with it again: %v", err)
	}
}

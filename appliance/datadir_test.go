package appliance

import "testing"

func TestDataDir_ScopeFollowsItsPath(t *testing.T) {
	a, b := &dataDir{path: "/one"}, &dataDir{path: "/other"}
	if len(a.scope()) != 6 || a.scope() == b.scope() || a.scope() != (&dataDir{path: "/one"}).scope() {
		t.Errorf("got %q and %q", a.scope(), b.scope())
	}
	if got := b.join("raft", "log"); got != "/other/raft/log" {
		t.Errorf("got %q", got)
	}
}

package tunnels_test

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skep/appliance/manager/tunnels"
	"skep/appliance/wire"
	"skep/store/object"
)

func end(id, boot, addr string) tunnels.End {
	return tunnels.End{ID: id, Boot: boot, Address: netip.MustParseAddr(addr)}
}

func ring(keys ...string) object.KeyRing {
	r := object.KeyRing{Version: 7}
	for _, k := range keys {
		r.Keys = append(r.Keys, []byte(k))
	}
	return r
}

// pair is what a node has with another.
func pair(t *testing.T, r object.KeyRing, self, peer tunnels.End) wire.TunnelPair {
	t.Helper()
	all := tunnels.Of(r, self, []tunnels.End{self, peer})
	if all.Version != r.Version || len(all.Pairs) != 1 || all.Pairs[0].Node != peer.ID || all.Pairs[0].Address != peer.Address {
		t.Fatalf("got %+v, want one pair with %s", all, peer.ID)
	}
	return all.Pairs[0]
}

func TestOf_BothEndsHaveTheSameKeys(t *testing.T) {
	a, b := end("a", "1", "192.0.2.1"), end("b", "1", "192.0.2.2")
	r := ring("now", "next")
	ab, ba := pair(t, r, a, b), pair(t, r, b, a)
	if diff := cmp.Diff(*ab.Out, ba.In[0]); diff != "" {
		t.Errorf("what a sends with and b receives with first (-a +b):\n%s", diff)
	}
	if diff := cmp.Diff(*ba.Out, ab.In[0]); diff != "" {
		t.Errorf("what b sends with and a receives with first (-b +a):\n%s", diff)
	}
	if len(ab.In) != 2 || len(ba.In) != 2 {
		t.Errorf("got %d and %d keys to receive with, want those of the whole ring", len(ab.In), len(ba.In))
	}
	// When the next key is used, what was received with before is sent with.
	if used := pair(t, ring("next", "now"), a, b); !cmp.Equal(*used.Out, ba.In[1]) {
		t.Error("b did not have the next key before it was used")
	}
}

func TestOf_NoTwoKeysAreTheSame(t *testing.T) {
	seen := map[string]string{}
	note := func(what string, k wire.TunnelKey) {
		t.Helper()
		if k.SPI < 256 || len(k.Key) != 20 {
			t.Errorf("%s: SPI %#x and %d bytes", what, k.SPI, len(k.Key))
		}
		if other, ok := seen[string(k.Key)]; ok {
			t.Errorf("%s has the key of %s", what, other)
		}
		seen[string(k.Key)] = what
	}
	a, b, c := end("a", "1", "192.0.2.1"), end("b", "1", "192.0.2.2"), end("c", "1", "192.0.2.3")
	note("a to b", *pair(t, ring("k"), a, b).Out)
	note("b to a", *pair(t, ring("k"), b, a).Out)
	note("a to c", *pair(t, ring("k"), a, c).Out)
	note("a to b by another key", *pair(t, ring("l"), a, b).Out)
	note("a to b after a lost its keys", *pair(t, ring("k"), end("a", "2", "192.0.2.1"), b).Out)
	note("a to b after b lost its keys", *pair(t, ring("k"), a, end("b", "2", "192.0.2.2")).Out)
	note("names that run together", *pair(t, ring("k"), end("a", "1b", "192.0.2.1"), end("", "1", "192.0.2.2")).Out)
}

func TestOf_LeavesOutWhatCanHaveNone(t *testing.T) {
	a := end("a", "1", "192.0.2.1")
	if got := tunnels.Of(ring(), a, []tunnels.End{end("b", "1", "192.0.2.2")}); len(got.Pairs) != 0 {
		t.Errorf("without a key: got %d pairs", len(got.Pairs))
	}
	if got := tunnels.Of(ring("k"), a, []tunnels.End{end("b", "1", "2001:db8::2"), {ID: "c"}}); len(got.Pairs) != 0 {
		t.Errorf("of the other family, and of none: got %d pairs", len(got.Pairs))
	}
	if got := pair(t, ring("k"), a, end("b", "1", "192.0.2.2")); bytes.Contains(got.Out.Key, []byte("k\x00")) {
		t.Error("the managers' key shows")
	}
}

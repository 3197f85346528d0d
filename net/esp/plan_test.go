// SPDX-License-Identifier: Apache-2.0

package esp_test

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skep/net/esp"
)

var update = flag.Bool("update", false, "write the golden files")

func key(spi uint32) esp.Key { return esp.Key{SPI: spi, Material: bytes.Repeat([]byte{byte(spi)}, 20)} }

func peer(addr string, out uint32, in ...uint32) esp.Peer {
	p := esp.Peer{Address: netip.MustParseAddr(addr)}
	if out != 0 {
		p.Out = new(key(out))
	}
	for _, spi := range in {
		p.In = append(p.In, key(spi))
	}
	return p
}

func state(peers ...esp.Peer) esp.State {
	return esp.State{Port: 4790, Local: netip.MustParseAddr("192.0.2.1"), Peers: peers}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestPlan(t *testing.T) {
	text, err := state(peer("192.0.2.2", 0x201, 0x102, 0x103), peer("192.0.2.3", 0, 0x104)).Text()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "plan.txt", text)
}

// TestSteps_Rotation: no step takes away what a packet on its way needs.
func TestSteps_Rotation(t *testing.T) {
	before := state(peer("192.0.2.2", 0x201, 0x101))
	added := state(peer("192.0.2.2", 0x201, 0x101, 0x102))
	used := state(peer("192.0.2.2", 0x202, 0x102, 0x101))
	after := state(peer("192.0.2.2", 0x202, 0x102))
	var b strings.Builder
	for _, s := range []struct {
		name     string
		from, to esp.State
	}{
		{"first", esp.State{}, before},
		{"add", before, added},
		{"use", added, used},
		{"remove", used, after},
		{"again", after, after},
		{"the peer goes", after, state()},
		{"the network goes", after, esp.State{}},
	} {
		fmt.Fprintf(&b, "# %s\n%s", s.name, esp.Steps(s.from, s.to))
	}
	golden(t, "rotation.txt", b.String())
}

func TestPlan_Refuses(t *testing.T) {
	short := state(peer("192.0.2.2", 0x201))
	short.Peers[0].Out.Material = short.Peers[0].Out.Material[:19]
	for name, tt := range map[string]struct {
		state esp.State
		want  string
	}{
		"another family":  {state(peer("2001:db8::2", 0x201)), "no address that 192.0.2.1 can have a tunnel to"},
		"itself":          {state(peer("192.0.2.1", 0x201)), "no address"},
		"no address":      {esp.State{Port: 4790, Peers: state(peer("192.0.2.2", 0x201)).Peers}, "no address"},
		"a short key":     {short, "a key of 19 bytes"},
		"a reserved SPI":  {state(peer("192.0.2.2", 0xff)), "the SPI 0xff"},
		"one SPI, 2 keys": {state(peer("192.0.2.2", 0, 0x101), peer("192.0.2.3", 0, 0x101)), "two keys to 192.0.2.1 have the SPI 0x101"},
	} {
		if _, err := tt.state.Text(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}

func TestKey_IsNotPrinted(t *testing.T) {
	k := key(0x141) // 'A'
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if got := fmt.Sprintf(format, k); got != "[sealed]" {
			t.Errorf("%s: got %q", format, got)
		}
	}
	if got := fmt.Sprintf("%+v", peer("192.0.2.2", 0, 0x141)); strings.Contains(got, "65") || strings.Contains(got, "AAAA") {
		t.Errorf("a peer prints its keys: %s", got)
	}
}

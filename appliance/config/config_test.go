package config_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skep/appliance/config"
)

const full = `hostname: mgr1
data_dir: /var/lib/skep/
swarm:
  listen: 0.0.0.0:2377
  advertise: 10.0.0.1            # an address or an interface name
  data_path: {address: 10.0.0.1, port: 4789}
  availability: drain
  labels: {zone: a, empty: }
  init: {autolock: true, cert_expiry: 720h, address_pool: [{base: 10.20.0.0/16, size: 24}]}
admin:
  listen: [unix:///run/skep.sock, vsock://:2375, tcp://0.0.0.0:2376]
  tls: {client_ca: /etc/skep/operators.pem}
  groups: {999: operator}
  local_exec_only: true
registries:
  - {host: docker.io, mirrors: [https://mirror.example], auth: {username: u, password_file: /etc/skep/reg}}
images: {preload: [/usr/share/skep/images]}
network:
  interfaces:
    - {match: {name: eth0}, dhcp: true}
    - {match: {mac: "52:54:00:00:00:01"}, addresses: [10.0.0.1/24], gateway: 10.0.0.254, dns: [10.0.0.53], mtu: 1500}
  ntp: [pool.ntp.org]
log: {level: debug, format: json}
`

func TestParse_ReadsEverySection(t *testing.T) {
	got, err := config.Parse([]byte(full), "swarm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := &config.Config{
		Hostname: "mgr1",
		DataDir:  "/var/lib/skep",
		Swarm: config.Swarm{
			Listen: "0.0.0.0:2377", Advertise: "10.0.0.1",
			DataPath:     config.DataPath{Address: "10.0.0.1", Port: 4789},
			Availability: "drain",
			Labels:       map[string]string{"zone": "a", "empty": ""},
			Init: &config.Init{
				Autolock: true, CertExpiry: 720 * time.Hour,
				AddressPool: []config.Pool{{Base: netip.MustParsePrefix("10.20.0.0/16"), Size: 24}},
			},
		},
		Admin: config.Admin{
			Listen: []config.Listener{
				{Network: "unix", Address: "/run/skep.sock"},
				{Network: "vsock", Address: "2375"},
				{Network: "tcp", Address: "0.0.0.0:2376"},
			},
			TLS:    config.TLS{ClientCA: "/etc/skep/operators.pem"},
			Groups: map[uint32]string{999: "operator"},

			LocalExecOnly: true,
		},
		Registries: []config.Registry{{
			Host: "docker.io", Mirrors: []string{"https://mirror.example"}, Username: "u", Password: "/etc/skep/reg",
		}},
		Images: config.Images{Preload: []string{"/usr/share/skep/images"}},
		Network: config.Network{
			Interfaces: []config.Interface{
				{Name: "eth0", DHCP: true},
				{
					MAC: "52:54:00:00:00:01", MTU: 1500,
					Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")},
					Gateway:   netip.MustParseAddr("10.0.0.254"),
					DNS:       []netip.Addr{netip.MustParseAddr("10.0.0.53")},
				},
			},
			NTP: []string{"pool.ntp.org"},
		},
		Log: config.Log{Level: "debug", Format: "json"},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestParse_EmptyFilesAreANodeWithDefaults(t *testing.T) {
	for _, in := range []string{"", "\n", "# nothing\n", "---\n", "{}", "swarm:\nadmin:\nlog: {}\n", "\ufeff{}", "swarm: {labels: }"} {
		got, err := config.Parse([]byte(in), "f")
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if got.DataDir != "/var/lib/skep" || got.Admin.Listen[0].Address != "/run/skep.sock" || got.Swarm.Init != nil {
			t.Errorf("%q: got %+v", in, got)
		}
	}
}

func TestParse_AnEmptyInitIsAnInit(t *testing.T) {
	for _, in := range []string{"swarm: {init: }", "swarm: {init: {}}"} {
		got, err := config.Parse([]byte(in), "f")
		if err != nil {
			t.Fatal(err)
		}
		if got.Swarm.Init == nil || got.Swarm.Init.CertExpiry != 90*24*time.Hour {
			t.Errorf("%q: got %+v", in, got.Swarm.Init)
		}
	}
}

func TestParse_TellsEveryProblemAtOnce(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{
			"many", `hostname: -x
data_dir: relative
swarm:
  listen: 10.0.0.300:2377
  advertise: 1.2.3
  avail: active
  data_path: {port: 80}
  init:
    cert_expiry: 5m
    autolock: "yes"
    address_pool: [{base: 10.20.0.1/16}, {base: 10.0.0.0/8, size: 4}, {size: 20}]
  join: {managers: [nowhere]}
log: {level: loud}
log: {}
`, `f:1:11: hostname: "-x"; want a host name
f:2:11: data_dir: "relative"; want an absolute path
f:4:11: swarm.listen: "10.0.0.300:2377"; want ADDRESS:PORT or INTERFACE:PORT
f:5:14: swarm.advertise: "1.2.3"; want an address or the name of an interface
f:6:3: swarm.avail: unknown key; want one of listen, advertise, data_path, availability, labels, init, join
f:7:21: swarm.data_path.port: 80; want a number from 1024 to 49151
f:9:18: swarm.init.cert_expiry: 5m is too short; want at least 1h0m0s
f:10:15: swarm.init.autolock: is a string; want true or false
f:11:27: swarm.init.address_pool[0].base: "10.20.0.1/16"; want an IPv4 range such as 10.20.0.0/16
f:11:42: swarm.init.address_pool[1]: subnets of size 4 do not fit in 10.0.0.0/8
f:11:42: swarm.init.address_pool[1]: subnets of size 4, those before of 24: a swarm's are all of one size
f:11:71: swarm.init.address_pool[2]: base is missing
f:12:9: swarm.join: given together with swarm.init; want one of them
f:12:9: swarm.join: token_file is missing
f:12:21: swarm.join.managers[0]: "nowhere"; want HOST:PORT
f:13:14: log.level: "loud"; want debug, info, warn, error
f:14:1: log: given twice; the first is in line 13`,
		},
		{"tcp without tls", "admin: {listen: [tcp://:2376]}", `f:1:17: admin.listen: tcp://:2376 without admin.tls.client_ca; tcp is served under mutual TLS only`},
		{"bad listeners", "admin:\n  listen: [http://x, unix://rel, vsock://2375, tcp://x]\n", `f:2:12: admin.listen[0]: "http://x"; want unix:///PATH, vsock://:PORT or tcp://ADDRESS:PORT
f:2:22: admin.listen[1]: "unix://rel"; want unix:///PATH, vsock://:PORT or tcp://ADDRESS:PORT
f:2:34: admin.listen[2]: "vsock://2375"; want unix:///PATH, vsock://:PORT or tcp://ADDRESS:PORT
f:2:48: admin.listen[3]: "tcp://x"; want unix:///PATH, vsock://:PORT or tcp://ADDRESS:PORT`},
		{"no listener", "admin: {listen: []}", `f:1:17: admin.listen: is empty; want at least one address`},
		{"half a pair", "admin: {tls: {cert: /c}}", `f:1:14: admin.tls: cert and key go together`},
		{"roles", "admin: {groups: {x: admin, 5: king, 6: }}", `f:1:18: admin.groups.x: "x"; want the number of a group
f:1:31: admin.groups.5: "king"; want viewer, operator, admin
f:1:40: admin.groups.6: is empty; want viewer, operator, admin`},
		{"registry", "registries:\n- {mirrors: [ftp://x, 'https://u:p@h'], insecure: true, ca: /x}\n- {host: a.b, auth: {username: u}}\n- {host: a.b}\n", `f:2:3: registries[0]: host is missing
f:2:14: registries[0].mirrors[0]: "ftp://x"; want https://HOST
f:2:23: registries[0].mirrors[1]: "https://u:p@h"; want https://HOST
f:2:51: registries[0].insecure: given together with ca; want one of them
f:3:21: registries[1].auth: incomplete; want username and password_file
f:4:10: registries[2].host: "a.b" is listed twice`},
		{"interfaces", "network:\n  interfaces:\n  - {dhcp: true, addresses: [10.0.0.1/24]}\n  - {match: {name: eth0}, addresses: [10.0.0.1], gateway: 10.9.0.1}\n  - {match: {name: eth1}, addresses: [10.0.0.1/24], gateway: 10.9.0.1}\n  - {match: {name: eth0}}\n", `f:3:5: network.interfaces[0]: match is missing; want a name or a mac
f:3:12: network.interfaces[0].dhcp: given together with addresses or a gateway; want one of them
f:4:39: network.interfaces[1].addresses[0]: "10.0.0.1"; want an address with its prefix such as 10.0.0.1/24
f:5:62: network.interfaces[2].gateway: 10.9.0.1 is in the range of none of the addresses
f:6:5: network.interfaces[3]: matches the same interface as an earlier item`},
		{"types", "hostname: 5\nswarm: [x]\nimages: {preload: /x}\nswarm.listen: x\nregistries: {}\n", `f:1:11: hostname: is a number; want a host name (put it in quotes)
f:2:8: swarm: is a list; want a mapping (key: value)
f:3:19: images.preload: is a string; want a list
f:4:1: swarm.listen: unknown key; want one of hostname, data_dir, swarm, admin, registries, images, network, log
f:5:13: registries: is a mapping; want a list`},
		{"labels", "swarm: {labels: {a: 1, 'b c': x, d: [1]}}", `f:1:21: swarm.labels.a: is a number; want a string (put it in quotes)
f:1:24: swarm.labels.b c: a label's name is not empty and has neither spaces nor =
f:1:37: swarm.labels.d: is a list; want a string (put it in quotes)`},
		{"token twice", "swarm: {join: {token: /t, token_file: /t, managers: ['h:1']}}", `f:1:39: swarm.join.token_file: given together with token; want one of them`},
		{"no managers", "swarm: {join: {token: /t}}", `f:1:15: swarm.join: managers is missing; want at least one HOST:PORT`},
		{"alias", "a: &a [1]\nb: *a\n", `f:1:4: anchors and aliases are not allowed; write the value out`},
		{"tag", "hostname: !!str x", `f:1:11: tags are not allowed; write the plain value`},
		{"merge", "<<: {hostname: x}", `f:1:1: <<: unknown key; want one of hostname, data_dir, swarm, admin, registries, images, network, log`},
		{"second document", "hostname: a\n---\nhostname: b\n", `f:2:1: a second document; want one`},
		{"not yaml", "hostname: a\n  b: [", `f:2:1: not YAML: mapping values are not allowed in this context`},
		{"scalar", "hello", `f:1:1: is a string; want a mapping (key: value)`},
		{"odd key", "? [a]\n: b\n", `f:1:3: a key is a list; want a string`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := config.Parse([]byte(tt.in), "f")
			if err == nil {
				t.Fatal("parsed")
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParse_RefusesBombsQuickly(t *testing.T) {
	laughs := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'z'; c++ {
		laughs += string(c) + ": &" + string(c) + " [" + strings.Repeat("*"+string(c-1)+",", 9) + "]\n"
	}
	bombs := map[string]string{
		"billion laughs": laughs,
		"too large":      strings.Repeat("x", 100<<20),
		"deep flow":      strings.Repeat("[", config.MaxSize-1),
		"deep block":     strings.Repeat("- ", config.MaxSize/2-1),
		"many keys":      strings.Repeat("a: b\n", config.MaxSize/5-1),
		"comments":       strings.Repeat("# x\n", config.MaxSize/4-1) + "z",
		"many documents": strings.Repeat("---\n", config.MaxSize/4-1),
		"anchors":        strings.Repeat("- &a b\n", config.MaxSize/7-1),
	}
	for name, bomb := range bombs {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := config.Parse([]byte(bomb), "f")
			if err == nil {
				t.Error("parsed")
			} else if len(err.Error()) > 64<<10 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

func TestLoad_ReportsTheFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "swarm.yaml")
	if _, err := config.Load(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(path, []byte("x: 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := config.Load(path)
	if p, ok := errors.AsType[*config.Error](err); !ok || p.Name != path || len(p.Problems) != 1 {
		t.Errorf("got %v", err)
	}
	if err := os.Truncate(path, 100<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(path); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("got %v", err)
	}
}

func TestMaterial_IsAPathOrTheThingItself(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("\nsecret \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		in          config.Material
		text, shown string
	}{
		{config.Material(path), "secret\n", path},
		{"-----BEGIN X-----\nabc\n-----END X-----\n\n", "-----BEGIN X-----\nabc\n-----END X-----\n", "[sealed]"},
		{"SWMTKN-1-x", "SWMTKN-1-x\n", "[sealed]"},
	} {
		got, err := tt.in.Read()
		if err != nil || string(got) != tt.text || tt.in.String() != tt.shown {
			t.Errorf("%q: got %q, %q, %v", string(tt.in), got, tt.in.String(), err)
		}
	}
}

// FuzzParse: whatever a file holds, the answer is a configuration or problems
// that lie in the file.
func FuzzParse(f *testing.F) {
	f.Add(full)
	f.Add("swarm: {join: {token_file: /t, managers: [10.0.0.1:2377]}}")
	f.Add("a: &a [*a]")
	f.Add("? {a: b}\n: - |\n   x\n")
	f.Fuzz(func(t *testing.T, in string) {
		c, err := config.Parse([]byte(in), "f")
		if (c == nil) == (err == nil) {
			t.Fatalf("got %v and %v", c, err)
		}
		if err == nil {
			return
		}
		e, ok := errors.AsType[*config.Error](err)
		if !ok || len(e.Problems) == 0 {
			t.Fatalf("got %v", err)
		}
		for _, p := range e.Problems {
			if p.Line < 1 || p.Column < 1 || p.Text == "" {
				t.Errorf("got %+v", p)
			}
		}
	})
}

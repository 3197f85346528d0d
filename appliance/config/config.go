// Package config is the node file, /etc/swarm.yaml: its types, defaults and
// validation.
//
// It promises that everything wrong with a file is reported at once, each
// problem with its line and column and with what would be right; that a file
// which decodes is one that a node can try to start from; and that a hostile
// file (too large, full of aliases, deeply nested) is refused quickly.
//
// It does not look at the machine: whether a path exists or an interface is
// there is found out when the node starts.
package config

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"
)

// MaxSize is the size in bytes that a node file may have.
const MaxSize = 1 << 20

// Config is a node file with its defaults filled in.
type Config struct {
	// Hostname is empty if the machine's own is to be used.
	Hostname   string
	DataDir    string
	Swarm      Swarm
	Admin      Admin
	Registries []Registry
	Images     Images
	Network    Network
	Log        Log
}

// Swarm is the node's place in the swarm.
type Swarm struct {
	// Listen is host:port; the host is an address or an interface's name.
	Listen string
	// Advertise is an address or an interface's name; empty means to choose.
	Advertise    string
	DataPath     DataPath
	Availability string // active, pause or drain
	Labels       map[string]string
	// Init and Join act once, on a node that has no state. At most one is set.
	Init *Init
	Join *Join
}

// DataPath is where the traffic between containers of several nodes goes.
type DataPath struct {
	Address string // empty: as Advertise
	Port    uint16
}

// Init is how to make a new swarm.
type Init struct {
	Autolock    bool
	CertExpiry  time.Duration
	AddressPool []Pool
}

// Pool is a range of addresses that networks take their subnets from.
type Pool struct {
	Base netip.Prefix
	Size int // prefix length of each subnet
}

// Join is how to become part of a swarm.
type Join struct {
	Token    Material
	Managers []string // host:port
}

// Admin is the admin API.
type Admin struct {
	Listen []Listener
	TLS    TLS
	// Groups maps the ID of a Unix group to the role (viewer, operator or
	// admin) that its members have on the unix socket.
	Groups map[uint32]string
	// LocalExecOnly lets nobody into this node's containers by way of another
	// node: no exec and no attach.
	LocalExecOnly bool
}

// Listener is one address of the admin API.
type Listener struct {
	Network string // unix, vsock or tcp
	// Address is a path, a port or host:port.
	Address string
}

// TLS secures the admin API's tcp listeners.
type TLS struct {
	// ClientCA signs the certificates of operators.
	ClientCA Material
	// Cert and Key are the server's own; both empty means that the node makes them.
	Cert, Key Material
}

// Registry is how to speak with one registry.
type Registry struct {
	Host    string
	Mirrors []string // URLs, tried in order before Host
	// Insecure allows plain HTTP and unverified certificates.
	Insecure bool
	CA       Material
	Username string
	Password Material
}

// Images is which images a node brings along.
type Images struct {
	// Preload lists archives, layouts and directories of them.
	Preload []string
}

// Network configures the machine where Skep is its init.
type Network struct {
	Interfaces []Interface
	NTP        []string
}

// Interface is one network interface and its addresses.
type Interface struct {
	Name, MAC string // what it is matched by
	DHCP      bool
	Addresses []netip.Prefix
	Gateway   netip.Addr
	DNS       []netip.Addr
	MTU       int
}

// Log is how the node logs.
type Log struct {
	Level  string // debug, info, warn or error
	Format string // text or json
}

// Material is a key, certificate or token: either the path of the file that
// holds it, or the thing itself.
type Material string

// inline tells the thing itself from a path.
func (m Material) inline() bool {
	return strings.Contains(string(m), "-----BEGIN ") || strings.HasPrefix(string(m), "SWMTKN-")
}

// Read is the material, with the white space around it taken off.
func (m Material) Read() ([]byte, error) {
	if m.inline() {
		return []byte(strings.TrimSpace(string(m)) + "\n"), nil
	}
	b, err := readCapped(string(m))
	if err != nil {
		return nil, err
	}
	return []byte(strings.TrimSpace(string(b)) + "\n"), nil
}

// String hides the material, unless it is a path.
func (m Material) String() string {
	if m.inline() {
		return "[sealed]"
	}
	return string(m)
}

// Default is the configuration of a node with an empty file.
func Default() *Config {
	return &Config{
		DataDir: "/var/lib/skep",
		Swarm: Swarm{
			Listen:       "0.0.0.0:2377",
			DataPath:     DataPath{Port: 4789},
			Availability: "active",
		},
		Admin: Admin{Listen: []Listener{{Network: "unix", Address: "/run/skep.sock"}}},
		Log:   Log{Level: "info", Format: "text"},
	}
}

// Load reads and decodes the node file at path. Its problems are an [Error].
func Load(path string) (*Config, error) {
	b, err := readCapped(path)
	if err != nil {
		return nil, err
	}
	return Parse(b, path)
}

// readCapped reads a file that is not larger than a node file may be.
func readCapped(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("read %s: larger than %d bytes", path, MaxSize)
	}
	return b, nil
}

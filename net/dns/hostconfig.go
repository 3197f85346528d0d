// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// hostConfig is the node's resolv.conf, read again when it has changed.
type hostConfig struct {
	path string

	mu      sync.Mutex
	looked  time.Time // when it was last looked at
	seen    fs.FileInfo
	servers []netip.AddrPort
}

// lookEvery is how often the file is looked at, at most.
const lookEvery = time.Second

func (h *hostConfig) upstreams() []netip.AddrPort {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); h.looked.IsZero() || now.Sub(h.looked) >= lookEvery {
		h.looked = now
		h.look()
	}
	return h.servers
}

// look reads the file if it is not the one that was read. What was read stays
// while there is none: it is being replaced.
func (h *hostConfig) look() {
	info, err := os.Stat(h.path)
	if err != nil || h.seen != nil && os.SameFile(info, h.seen) && info.ModTime().Equal(h.seen.ModTime()) && info.Size() == h.seen.Size() {
		return
	}
	b, err := os.ReadFile(h.path)
	if err != nil {
		return
	}
	h.seen, h.servers = info, parseServers(string(b))
}

// parseServers reads the name servers of a resolv.conf.
func parseServers(conf string) []netip.AddrPort {
	var out []netip.AddrPort
	for line := range strings.Lines(conf) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil && !a.IsUnspecified() {
			out = append(out, netip.AddrPortFrom(a.Unmap(), portDNS))
		}
	}
	return out
}

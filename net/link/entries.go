// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// MAC is the address of a station.
type MAC [6]byte

// String is as net.HardwareAddr's.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// EntryTable is one of the tables that a device has.
type EntryTable uint8

// The tables.
const (
	Neighbours EntryTable = iota // which MAC an address of the network is at
	Forwards                     // which machine a station is at: vxlan devices
	Stations                     // that a station is behind a port: bridges' ports
)

// Entry is a line of a device's tables that lasts until it is removed.
type Entry struct {
	Table EntryTable
	MAC   MAC
	// Address is the neighbour, or the machine; none for a bridge's port.
	Address netip.Addr
}

// batchSize is how many entries go into one system call: as many as find room
// for their answers if each is refused.
const batchSize = 256

// Program sets entries of a device, and drops others, in the order: drop, set.
// What has the same key (the neighbour, or the station) is replaced; to drop
// what is not there is no error.
func (c *Conn) Program(index int, set, drop []Entry) error {
	for len(drop) > 0 {
		n := min(len(drop), batchSize)
		if err := c.programBatch(index, unix.RTM_DELNEIGH, drop[:n]); err != nil {
			return err
		}
		drop = drop[n:]
	}
	for len(set) > 0 {
		n := min(len(set), batchSize)
		if err := c.programBatch(index, unix.RTM_NEWNEIGH, set[:n]); err != nil {
			return err
		}
		set = set[n:]
	}
	return nil
}

func (c *Conn) programBatch(index int, verb uint16, entries []Entry) error {
	sh := c.slow[unix.NETLINK_ROUTE]
	s := sh.Socket
	s.Lock()
	defer s.Unlock()
	last := atomic.AddUint32(&sh.Seq, uint32(len(entries)))
	first := last - uint32(len(entries)) + 1
	b := make([]byte, 0, 64*len(entries))
	for i, e := range entries {
		if verb == unix.RTM_DELNEIGH && e.Table == Forwards {
			e.Address = netip.Addr{} // wherever it leads now
		}
		flags := uint16(unix.NLM_F_REQUEST)
		if verb == unix.RTM_NEWNEIGH {
			flags |= unix.NLM_F_CREATE | unix.NLM_F_REPLACE
		}
		if i == len(entries)-1 {
			flags |= unix.NLM_F_ACK // only this one is answered if all is well
		}
		b = e.append(b, index, verb, flags, first+uint32(i))
	}
	if err := unix.Sendto(s.GetFd(), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send %d entries: %w", len(entries), err)
	}
	return answers(s, entries, first, last, verb)
}

// answers reads until the last entry's is there. The first refusal is told.
func answers(s *nl.NetlinkSocket, entries []Entry, first, last uint32, verb uint16) error {
	var refused error
	for {
		msgs, _, err := s.Receive()
		if err != nil {
			return fmt.Errorf("read answers: %w", err)
		}
		for _, m := range msgs {
			seq := m.Header.Seq
			if m.Header.Type != unix.NLMSG_ERROR || seq-first > last-first || len(m.Data) < 4 {
				continue // an answer that somebody did not wait for
			}
			errno := syscall.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
			missing := verb == unix.RTM_DELNEIGH && errno == unix.ENOENT
			if errno != 0 && !missing && refused == nil {
				refused = fmt.Errorf("program %s: %w", entries[seq-first], errno)
			}
			if seq == last {
				return refused
			}
		}
	}
}

// append encodes the request: a header, struct ndmsg, and attributes.
func (e Entry) append(b []byte, index int, verb, flags uint16, seq uint32) []byte {
	family, state, flag := uint8(unix.AF_INET), uint16(netlink.NUD_PERMANENT), uint8(0)
	switch e.Table {
	case Neighbours:
		if e.Address.Is6() {
			family = unix.AF_INET6
		}
	case Forwards:
		family, flag = unix.AF_BRIDGE, netlink.NTF_SELF
	case Stations:
		// A permanent one would be the bridge's own address.
		family, flag, state = unix.AF_BRIDGE, netlink.NTF_MASTER, netlink.NUD_NOARP
	}
	start := len(b)
	ne := binary.NativeEndian
	b = ne.AppendUint32(b, 0) // the length, when it is known
	b = ne.AppendUint16(b, verb)
	b = ne.AppendUint16(b, flags)
	b = ne.AppendUint32(b, seq)
	b = ne.AppendUint32(b, 0)
	b = append(b, family, 0, 0, 0)
	b = ne.AppendUint32(b, uint32(index))
	b = ne.AppendUint16(b, state)
	b = append(b, flag, 0)
	if e.Address.IsValid() {
		a := e.Address.AsSlice()
		b = ne.AppendUint16(b, uint16(unix.SizeofRtAttr+len(a)))
		b = ne.AppendUint16(b, netlink.NDA_DST)
		b = append(b, a...)
	}
	b = ne.AppendUint16(b, uint16(unix.SizeofRtAttr+len(e.MAC)))
	b = ne.AppendUint16(b, netlink.NDA_LLADDR)
	b = append(b, e.MAC[:]...)
	b = append(b, 0, 0) // attributes take whole words
	ne.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

// String prints the entry in the manner of the ip and bridge commands.
func (e Entry) String() string {
	switch e.Table {
	case Neighbours:
		return fmt.Sprintf("neigh %s lladdr %s", e.Address, e.MAC)
	case Forwards:
		return fmt.Sprintf("fdb %s dst %s", e.MAC, e.Address)
	case Stations:
		return fmt.Sprintf("fdb %s master static", e.MAC)
	}
	return fmt.Sprintf("table%d %s %s", e.Table, e.MAC, e.Address)
}

// Entries lists the lasting entries of all devices of the namespace by the
// devices' index.
func (c *Conn) Entries() (map[int][]Entry, error) {
	out := map[int][]Entry{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6, unix.AF_BRIDGE} {
		if err := c.entries(family, out); err != nil {
			return nil, fmt.Errorf("list neighbours: %w", err)
		}
	}
	return out, nil
}

func (c *Conn) entries(family uint8, out map[int][]Entry) error {
	// What the kernel lists while it changes may be incomplete: then again.
	var err error
	for range 3 {
		req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		req.Sockets = c.slow
		req.AddData(&netlink.Ndmsg{Family: family})
		found := map[int][]Entry{}
		err = req.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH, func(m []byte) bool {
			if index, e, ok := parseEntry(m, family); ok {
				found[index] = append(found[index], e)
			}
			return true
		})
		if err == nil {
			for i, es := range found {
				out[i] = append(out[i], es...)
			}
			return nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
	}
	return err
}

// ndmsg is the length of that structure.
const ndmsg = 12

func parseEntry(m []byte, family uint8) (index int, e Entry, ok bool) {
	if len(m) < ndmsg || m[0] != family {
		return 0, Entry{}, false
	}
	ne := binary.NativeEndian
	index = int(ne.Uint32(m[4:]))
	state, flags := ne.Uint16(m[8:]), m[10]
	switch {
	case family != unix.AF_BRIDGE:
		ok = state&netlink.NUD_PERMANENT != 0
	case flags&netlink.NTF_SELF != 0:
		e.Table, ok = Forwards, true
	default:
		e.Table, ok = Stations, state&netlink.NUD_NOARP != 0
	}
	for a := m[ndmsg:]; ok && len(a) >= unix.SizeofRtAttr; {
		size := int(ne.Uint16(a))
		if size < unix.SizeofRtAttr || size > len(a) {
			break
		}
		value := a[unix.SizeofRtAttr:size]
		switch ne.Uint16(a[2:]) {
		case netlink.NDA_DST:
			e.Address, _ = netip.AddrFromSlice(value)
		case netlink.NDA_LLADDR:
			copy(e.MAC[:], value)
		}
		a = a[min(len(a), (size+3)&^3):]
	}
	return index, e, ok
}

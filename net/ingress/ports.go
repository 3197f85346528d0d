// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"skep/store/object"
)

// The ports that are chosen from if the kernel does not say which it uses for that.
const (
	firstDynamic = 49153
	lastDynamic  = 65535
)

// Ports holds the node's published ports: each by a socket that is bound and
// does not listen. Other programs cannot have the port then; a connection that
// no rule leads elsewhere is refused. It may be used by several goroutines.
type Ports struct {
	mu   sync.Mutex       // its holders' system calls do not wait
	held map[listen]*hold // guarded by mu
	// next is the dynamic port to try next; like addresses, they come back late.
	next uint16 // guarded by mu
}

type hold struct {
	fd int // -1 if another program has the port
}

// InUseError says that a port is taken, by an endpoint or another program.
type InUseError struct {
	Address netip.Addr
	Port    uint16
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("Bind for %s:%d failed: port is already allocated", e.Address, e.Port)
}

// Unwrap is the error's kind.
func (e *InUseError) Unwrap() error { return errdefs.ErrConflict }

// NewPorts holds no port.
func NewPorts() *Ports { return &Ports{held: map[listen]*hold{}} }

// Check refuses what cannot be published at all.
func Check(p object.Port) error {
	if p.Protocol != network.TCP && p.Protocol != network.UDP {
		return object.Errorf(errdefs.ErrNotImplemented, "publish port %d/%s: only tcp and udp", p.Container, p.Protocol)
	}
	if p.Container == 0 {
		return object.Errorf(errdefs.ErrInvalidArgument, "publish port %d: no port of the container", p.Host)
	}
	if p.HostIP == "" {
		return nil
	}
	a, err := netip.ParseAddr(p.HostIP)
	if err != nil {
		return object.Errorf(errdefs.ErrInvalidArgument, "publish port %d: host address: %v", p.Host, err)
	}
	if !a.Unmap().Is4() {
		return object.Errorf(errdefs.ErrNotImplemented, "publish port %d at %s: IPv6", p.Host, a)
	}
	return nil
}

// Take reserves the ports, all or none. It returns them with those chosen that
// were left to the node.
func (s *Ports) Take(ports []object.Port) ([]object.Port, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var taken []object.Port
	for _, p := range ports {
		got, err := s.take(p)
		if err != nil {
			s.release(taken)
			return nil, err
		}
		taken = append(taken, got)
	}
	return taken, nil
}

// Retake reserves ports that were reserved before a restart, whoever has them
// now: their rules are in place. It reports those another program has.
func (s *Ports) Retake(ports []object.Port) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, p := range ports {
		l := listenOf(p)
		h := s.held[l]
		if h == nil {
			h = &hold{fd: -1}
			s.held[l] = h
		}
		if h.fd < 0 {
			fd, err := bind(l)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			h.fd = fd
		}
	}
	return errors.Join(errs...)
}

// Release gives ports back.
func (s *Ports) Release(ports []object.Port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release(ports)
}

func (s *Ports) release(ports []object.Port) {
	for _, p := range ports {
		l := listenOf(p)
		h := s.held[l]
		if h == nil {
			continue
		}
		delete(s.held, l)
		if h.fd >= 0 {
			_ = unix.Close(h.fd)
		}
	}
}

// Close gives all ports back.
func (s *Ports) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.held {
		if h.fd >= 0 {
			_ = unix.Close(h.fd)
		}
	}
	clear(s.held)
}

func (s *Ports) take(p object.Port) (object.Port, error) {
	if err := Check(p); err != nil {
		return p, err
	}
	if p.Host == 0 {
		return s.choose(p)
	}
	l := listenOf(p)
	if s.held[l] != nil {
		return p, l.inUse()
	}
	fd, err := bind(l)
	if err != nil {
		return p, err
	}
	s.held[l] = &hold{fd: fd}
	return p, nil
}

// choose finds a free port among those that the kernel gives to programs that
// ask for any.
func (s *Ports) choose(p object.Port) (object.Port, error) {
	first, last := dynamic()
	for range int(last) - int(first) + 1 {
		if s.next < first || s.next > last {
			s.next = first
		}
		p.Host = s.next
		s.next++ // past the last it wraps or is out of range: both start over
		got, err := s.take(p)
		if used := new(InUseError); errors.As(err, &used) {
			continue
		}
		return got, err
	}
	return p, object.Errorf(errdefs.ErrResourceExhausted, "publish port %d: every port from %d to %d is in use", p.Container, first, last)
}

func dynamic() (first, last uint16) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		if _, err = fmt.Sscan(string(b), &first, &last); err == nil && 0 < first && first <= last {
			return first, last
		}
	}
	return firstDynamic, lastDynamic
}

func (l listen) inUse() error {
	a := l.address
	if !a.IsValid() {
		a = netip.IPv4Unspecified()
	}
	return &InUseError{a, l.port}
}

// bind reserves a port of the node.
func bind(l listen) (int, error) {
	kind := unix.SOCK_STREAM
	if l.proto == network.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("reserve port %d: %w", l.port, err)
	}
	at := &unix.SockaddrInet4{Port: int(l.port)}
	if l.address.IsValid() {
		at.Addr = l.address.As4()
	}
	if l.proto == network.UDP {
		err = bindUDP(fd, at)
	} else {
		err = bindTCP(fd, at)
	}
	if err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.EADDRINUSE) {
			return -1, l.inUse()
		}
		return -1, fmt.Errorf("reserve port %s: %w", l.chain(), err)
	}
	return fd, nil
}

// bindTCP leaves the socket bound, not listening, and not shareable.
//
// To listen for a moment is what makes the kernel look for others that listen
// while it ignores connections that a listener before left behind.
func bindTCP(fd int, at unix.Sockaddr) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if err := unix.Bind(fd, at); err != nil {
		return err
	}
	if err := unix.Listen(fd, 1); err != nil {
		return err
	}
	// Ends the listening, keeps the port.
	if err := unix.Shutdown(fd, unix.SHUT_RD); err != nil {
		return err
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
}

func bindUDP(fd int, at unix.Sockaddr) error {
	// Nothing reads what arrives when no rule leads it elsewhere.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
		return err
	}
	return unix.Bind(fd, at)
}

package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// unixListener vouches for its peers by their credentials.
type unixListener struct {
	*net.UnixListener
	path   string
	info   os.FileInfo // of the socket that was made
	groups map[uint32]Role
}

// listenUnix makes a socket at path, also where the path is longer than an
// address may be. A socket that nobody listens on any more is replaced.
func listenUnix(ctx context.Context, path string, groups map[uint32]Role) (net.Listener, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	in := func(name string) string {
		return filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), name)
	}
	name := filepath.Base(path)
	if err = replaceable(ctx, in(name)); err != nil {
		return nil, err
	}
	// Nobody can connect before the mode is right: the socket gets its name last.
	fresh := in("." + strconv.Itoa(os.Getpid()) + "." + name)
	_ = os.Remove(fresh)
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", fresh)
	if err != nil {
		return nil, err
	}
	u, _ := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false)
	err = permit(fresh, groups)
	if err == nil {
		err = os.Rename(fresh, in(name))
	}
	info, statErr := os.Lstat(in(name))
	if err = errors.Join(err, statErr); err != nil {
		_ = os.Remove(fresh)
		_ = l.Close()
		return nil, err
	}
	return &unixListener{UnixListener: u, path: path, info: info, groups: groups}, nil
}

// replaceable refuses to take the place of a socket that somebody listens on,
// and of anything that is not a socket.
func replaceable(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return errors.New("there is something that is not a socket")
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		_ = c.Close()
		return errors.New("another process listens there")
	case errors.Is(err, unix.ECONNREFUSED):
		return nil
	}
	return err
}

// permit lets in those who may have a role: root, and the one group that has
// one. Where several groups have roles the mode cannot say so, everybody may
// connect, and the peer's credentials decide alone.
func permit(path string, groups map[uint32]Role) error {
	mode := os.FileMode(0o660)
	if len(groups) > 1 {
		mode = 0o666
	}
	for gid := range groups {
		if len(groups) == 1 {
			if err := os.Chown(path, -1, int(gid)); err != nil {
				return err
			}
		}
	}
	return os.Chmod(path, mode)
}

func (l *unixListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		peer, err := unixPeer(c, l.groups)
		if err != nil {
			_ = c.Close() // it went away, or cannot be trusted
			continue
		}
		return vouched{c, peer}, nil
	}
}

// Close also removes the socket, if it is still this one.
func (l *unixListener) Close() error {
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.info) {
		_ = os.Remove(l.path)
	}
	return l.UnixListener.Close()
}

// unixPeer is who connected, by the kernel's word from that moment.
func unixPeer(c *net.UnixConn, groups map[uint32]Role) (Principal, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Principal{}, err
	}
	var cred *unix.Ucred
	var member []uint32
	var credErr, groupErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if len(groups) > 0 {
			member, groupErr = peerGroups(int(fd))
		}
	})
	if err = errors.Join(err, credErr, groupErr); err != nil {
		return Principal{}, err
	}
	p := Principal{Name: "uid " + strconv.FormatUint(uint64(cred.Uid), 10), Transport: "unix"}
	// For the record only: the process may be another one by now.
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", cred.Pid))
	p.Detail = fmt.Sprintf("pid %d %s", cred.Pid, exe)
	if cred.Uid == 0 || int(cred.Uid) == os.Geteuid() {
		p.Role = Admin
		return p, nil
	}
	for gid, role := range groups {
		if gid == cred.Gid || slices.Contains(member, gid) {
			p.Role = max(p.Role, role)
		}
	}
	return p, nil
}

// peerGroups are the supplementary groups that the peer had when it connected.
func peerGroups(fd int) ([]uint32, error) {
	gids := make([]uint32, 65536) // NGROUPS_MAX
	size := uint32(len(gids) * 4)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
		uintptr(unsafe.Pointer(&gids[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("read peer's groups: %w", errno)
	}
	return gids[:size/4], nil
}

package tasks

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/network"

	"skep/store/object"
)

// A container that does not listen yet is looked at after listenFirst, and less
// and less often up to every listenLast.
const (
	listenFirst = 10 * time.Millisecond
	listenLast  = 250 * time.Millisecond
)

// portPatience is how long a task without a health check stays starting because
// it does not listen on all of the ports that it publishes. Then it is running
// all the same, and connections are led to it: an update must not hang because
// one of several ports is opened late, or never.
const portPatience = 10 * time.Second

var errPatience = errors.New("does not listen yet")

// awaitListen returns when the container listens on all of the ports that it
// publishes, when it has ended, or when patience is at its end.
func (c *Controller) awaitListen(ctx context.Context) error {
	ports := served(c.a)
	if len(ports) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, portPatience, errPatience)
	defer cancel()
	for wait := listenFirst; ; wait = min(wait*3/2, listenLast) {
		in, err := c.x.Containers.Inspect(ctx, c.name, false)
		if err != nil {
			return err
		}
		if in.State == nil || !in.State.Running {
			return nil // Wait says how it ended
		}
		if open, err := listens(in.State.Pid, ports); open || err != nil {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			if err := context.Cause(ctx); !errors.Is(err, errPatience) {
				return err
			}
			c.logger.WarnContext(ctx, "does not listen on its published ports", "container", c.name, "waited", portPatience)
			return nil
		}
	}
}

// listens reports whether sockets are open for all ports in the network
// namespace of a process. A process that is gone listens on nothing.
func listens(pid int, ps []object.Port) (bool, error) {
	open := map[object.Port]bool{}
	for _, table := range []struct {
		file, state string
		proto       network.IPProtocol
	}{
		{"tcp", tcpListen, network.TCP},
		{"tcp6", tcpListen, network.TCP},
		{"udp", "", network.UDP},
		{"udp6", "", network.UDP},
	} {
		f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/net/" + table.file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the process is gone, or has no IPv6
		}
		if err != nil {
			return false, fmt.Errorf("read sockets: %w", err)
		}
		for sc := bufio.NewScanner(f); sc.Scan(); {
			if port, ok := socketPort(sc.Text(), table.state); ok {
				open[object.Port{Protocol: table.proto, Container: port}] = true
			}
		}
		_ = f.Close()
	}
	for _, p := range ps {
		if p.Protocol != network.TCP && p.Protocol != network.UDP {
			continue // nothing tells
		}
		if !open[object.Port{Protocol: p.Protocol, Container: p.Container}] {
			return false, nil
		}
	}
	return true, nil
}

// tcpListen is the state of a listening socket in /proc/net/tcp.
const tcpListen = "0A"

// socketPort is the local port in a line of /proc/net/tcp and its like (see
// proc_net_tcp.rst of the kernel), if the socket is in the state.
func socketPort(line, state string) (uint16, bool) {
	fields := strings.Fields(line)
	if len(fields) < 4 || state != "" && fields[3] != state {
		return 0, false
	}
	_, text, ok := strings.Cut(fields[1], ":")
	if !ok {
		return 0, false
	}
	port, err := strconv.ParseUint(text, 16, 16)
	return uint16(port), err == nil
}

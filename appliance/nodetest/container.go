package nodetest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netns"
)

// Container is an HTTP client inside the network namespace of a container,
// which looks names up as the container would.
func (n *Node) Container(id string) *http.Client {
	return &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
				err = n.DoInside(id, func() error {
					c, err = connect(ctx, network, addr)
					return err
				})
				return c, err
			},
		},
	}
}

// DoInside runs f on a thread that is in the network namespace of a container,
// which is named by the beginning of its ID.
func (n *Node) DoInside(id string, f func() error) error {
	paths := n.glob("netns/" + id + "*")
	if len(paths) != 1 {
		return fmt.Errorf("container %s has %d network namespaces", id, len(paths))
	}
	return n.Do(func() error { return within(paths[0], f) })
}

// within runs f in the network namespace at path, which its thread stays in.
func within(path string, f func() error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := netns.Set(ns); err != nil {
		return err
	}
	return f()
}

// hurried is how long a first try to connect may take.
const hurried = 2 * time.Second

// connect looks a name up and connects to the first address that it has. If that
// fails and the name has lost the address meanwhile, the client was too slow, as
// somebody else would be too, and tries once more.
func connect(ctx context.Context, network, addr string) (net.Conn, error) {
	to, err := resolved(ctx, addr)
	if err != nil {
		return nil, err
	}
	c, err := (&net.Dialer{Timeout: hurried}).DialContext(ctx, network, to[0])
	if err == nil {
		return c, nil
	}
	again, lost := resolved(ctx, addr)
	if lost != nil || slices.Contains(again, to[0]) {
		return nil, err
	}
	return (&net.Dialer{}).DialContext(ctx, network, again[0])
}

// resolved are addresses whose host is a number, one at least. The question is
// asked on this thread, where Go's own resolver would not.
func resolved(ctx context.Context, addr string) (list []string, err error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if _, err = netip.ParseAddr(host); err == nil {
		return []string{addr}, nil
	}
	q := new(dns.Msg).SetQuestion(dns.Fqdn(host), dns.TypeA)
	answer, _, err := (&dns.Client{Timeout: 2 * time.Second}).ExchangeContext(ctx, q, "127.0.0.11:53")
	if err != nil {
		return nil, err
	}
	for _, rr := range answer.Answer {
		if a, ok := rr.(*dns.A); ok {
			list = append(list, net.JoinHostPort(a.A.String(), port))
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s is not known: %s", host, dns.RcodeToString[answer.Rcode])
	}
	return list, nil
}

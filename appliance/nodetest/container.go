package nodetest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
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
					if addr, err = resolved(ctx, addr); err != nil {
						return err
					}
					c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
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
	return n.Do(func() error {
		paths, err := filepath.Glob(n.Path("data", "run", "netns", id) + "*")
		if err != nil || len(paths) != 1 {
			return fmt.Errorf("container %s has %d network namespaces (%w)", id, len(paths), err)
		}
		return within(paths[0], f)
	})
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

// resolved is an address whose host is a number. The question is asked on this
// thread, where Go's own resolver would not.
func resolved(ctx context.Context, addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	if _, err = netip.ParseAddr(host); err == nil {
		return addr, nil
	}
	q := new(dns.Msg).SetQuestion(dns.Fqdn(host), dns.TypeA)
	answer, _, err := (&dns.Client{Timeout: 2 * time.Second}).ExchangeContext(ctx, q, "127.0.0.11:53")
	if err != nil {
		return "", err
	}
	for _, rr := range answer.Answer {
		if a, ok := rr.(*dns.A); ok {
			return net.JoinHostPort(a.A.String(), port), nil
		}
	}
	return "", fmt.Errorf("%s is not known: %s", host, dns.RcodeToString[answer.Rcode])
}

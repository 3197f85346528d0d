package registry

import (
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/containerd/errdefs"

	"skep/store/object"
)

// guard refuses plain HTTP to other machines, whoever asks for it: a name, a
// mirror, a redirect or a token server.
type guard struct{ next http.RoundTripper }

func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !loopback(r.URL.Hostname()) {
		return nil, object.Errorf(errdefs.ErrPermissionDenied,
			"%s does not speak HTTPS, and plain HTTP is only for registries on this machine", r.URL.Host)
	}
	return g.next.RoundTrip(r)
}

// loopback says whether a host is this machine.
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// transportOf is t, or a transport with timeouts for everything but bodies.
func transportOf(t http.RoundTripper) http.RoundTripper {
	if t != nil {
		return t
	}
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		MaxIdleConns:          16,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       30 * time.Second,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: 60 * time.Second,
	}
}

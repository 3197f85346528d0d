package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/common"
	"github.com/moby/moby/client"
)

// errNoRoute is the answer of a server that is no node of ours, or an older one.
var errNoRoute = errors.New("the server does not know this question")

// ask reads what the server answers at a path of our own, for which docker's
// client has no function, on connections that it makes.
func ask(ctx context.Context, c client.APIClient, path string, to any) error {
	host := "localhost"
	if u, err := client.ParseHostURL(c.DaemonHost()); err == nil && u.Scheme == "tcp" {
		host = u.Host
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+path, http.NoBody)
	if err != nil {
		return err
	}
	transport := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Dialer()(ctx) },
		DisableKeepAlives: true,
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("ask %s: %w", c.DaemonHost(), err)
	}
	defer func() { _ = resp.Body.Close() }()
	body := json.NewDecoder(resp.Body)
	if resp.StatusCode == http.StatusOK {
		return body.Decode(to)
	}
	var refusal common.ErrorResponse
	if err := body.Decode(&refusal); err != nil || refusal.Message == "" {
		refusal.Message = resp.Status
	}
	if resp.StatusCode == http.StatusNotFound && refusal.Message == "page not found" {
		return errNoRoute
	}
	return fmt.Errorf("Error response from daemon: %s", refusal.Message)
}

// printable is text from another node, without what would move the cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// SPDX-License-Identifier: Apache-2.0

package dns_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"skep/net/dns"
)

func TestParseServers(t *testing.T) {
	conf := "# comment\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 more\nsearch example.com\nnameserver fe80::1%eth0\n" +
		"nameserver 127.0.0.53\nnameserver\nnameserver 0.0.0.0\nnameserver name\n;nameserver 192.0.2.2\nnameserver 192.0.2.3"
	want := "[192.0.2.1:53 [2001:db8::1]:53 [fe80::1%eth0]:53 127.0.0.53:53 192.0.2.3:53]"
	if got := fmt.Sprint(dns.ParseServers(conf)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestHostUpstreams_FollowTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	synctest.Test(t, func(t *testing.T) {
		upstreams := dns.HostUpstreams(path)
		for i, step := range []struct {
			do   func() error
			want string
		}{
			{func() error { return nil }, "[]"},
			{func() error { return os.WriteFile(path, []byte("nameserver 192.0.2.1\n"), 0o600) }, "[192.0.2.1:53]"},
			{func() error { return os.WriteFile(path, []byte("nameserver 192.0.2.100\n"), 0o600) }, "[192.0.2.100:53]"},
			{func() error { return os.Remove(path) }, "[192.0.2.100:53]"},
			{func() error { return os.WriteFile(path, nil, 0o600) }, "[]"},
		} {
			if err := step.do(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			if got := fmt.Sprint(upstreams()); got != step.want {
				t.Errorf("step %d: got %s, want %s", i, got, step.want)
			}
		}
	})
}

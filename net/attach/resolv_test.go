// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"slices"
	"testing"
)

func TestParseNameservers(t *testing.T) {
	for conf, want := range map[string][]string{
		"": nil,
		"search example.org\nnameserver 10.0.0.53\nnameserver 10.0.1.53 # second\n": {"10.0.0.53", "10.0.1.53"},
		"nameserver 127.0.0.53\noptions edns0":                                      nil,
		"nameserver 127.0.0.1\nnameserver\t192.0.2.1":                               {"192.0.2.1"},
		"nameserver ::1\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\n":         nil,
		"#nameserver 192.0.2.1\nnameservers 192.0.2.2\nnameserver\nnameserver x":    nil,
		"nameserver 0.0.0.0\nnameserver ::ffff:192.0.2.9":                           {"192.0.2.9"},
	} {
		if got := parseNameservers(conf); !slices.Equal(got, want) {
			t.Errorf("%q: got %v, want %v", conf, got, want)
		}
	}
}

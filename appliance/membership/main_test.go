package membership_test

import (
	"testing"

	"skep/net/link/linktest"
)

// The nodes' addresses are the machine's loopback, which other tests use too.
func TestMain(m *testing.M) { linktest.Main(m) }

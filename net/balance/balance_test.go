// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"testing"

	"skep/net/link/linktest"
	"skep/net/link/umltest"
	"skep/net/link/vmtest"
)

func TestMain(m *testing.M) {
	vmtest.Main(m, func(m *testing.M) { umltest.Main(m, linktest.Main) })
}

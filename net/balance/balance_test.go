// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"testing"

	"skep/net/link/linktest"
)

func TestMain(m *testing.M) { linktest.Main(m) }

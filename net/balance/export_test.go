// SPDX-License-Identifier: Apache-2.0

package balance

import "skep/net/nft"

// Plan is the table for services as given.
func Plan(c Config, all []Service) (nft.Table, error) {
	services, err := check(c.Where, all)
	return plan(c, services), err
}

// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"fmt"
	"strings"

	"skep/net/balance/ipvs"
	"skep/net/nft"
)

// NoBeside is why nftables cannot stand beside IPVS, if so.
func NoBeside() error { return noBeside() }

// Plan is the table for services as given.
func Plan(c Config, all []Service) (nft.Table, error) {
	services, err := check(c.Where, all)
	return plan(c, services), err
}

// PlanBeside is the table beside IPVS for services as given.
func PlanBeside(c Config, all []Service) (nft.Table, error) {
	services, err := check(c.Where, all)
	return planBeside(c, services), err
}

// PlanIPVS is what IPVS is told when the services change.
func PlanIPVS(now, next []Service) string {
	was, _ := check(Output, now)
	will, _ := check(Output, next)
	more, less := ipvs.Plan(virtualServices(was, marks(was), 1<<20), virtualServices(will, marks(will), 1<<20))
	return commands(more) + "--\n" + commands(less)
}

func commands(list []ipvs.Command) string {
	var b strings.Builder
	for _, c := range list {
		fmt.Fprintln(&b, c)
	}
	return b.String()
}

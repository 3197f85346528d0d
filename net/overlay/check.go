// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"skep/net/link"
)

// Check compares what is there with what is wanted, mends, and returns how many
// differences there were.
func (o *Overlay) Check(ctx context.Context) (repaired int, err error) {
	var errs []error
	for _, id := range o.networks() {
		n, err := o.checkNetwork(ctx, id)
		repaired += n
		if err != nil {
			errs = append(errs, fmt.Errorf("check network %s: %w", id, err))
		}
	}
	return repaired, errors.Join(errs...)
}

func (o *Overlay) checkNetwork(ctx context.Context, id string) (int, error) {
	s, err := o.begin(ctx, id)
	if err != nil || s == nil {
		return 0, err
	}
	defer s.release()
	n, words, err := o.converge(ctx, s)
	if n > 0 {
		o.repaired.Add(uint64(n))
		o.log.WarnContext(ctx, "mended network", "network", id, "differences", n, "found", words, "err", err)
	}
	return n, err
}

// raiseNeighbours lets containers of a large network know all whom they speak
// to. The kernel counts those of all namespaces together, and lets the limit
// be set in the first one only.
func raiseNeighbours() error {
	for _, family := range []string{"ipv4", "ipv6"} {
		for i, limit := range []int{8192, 49152, 65536} {
			name := fmt.Sprintf("net/%s/neigh/default/gc_thresh%d", family, i+1)
			b, err := os.ReadFile("/proc/sys/" + name)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if have, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || have >= limit {
				continue
			}
			if err := link.Sysctl(name, strconv.Itoa(limit)); err != nil {
				return err
			}
		}
	}
	return nil
}

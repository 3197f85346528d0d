package doors_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"

	"skep/exec/doors"
	"skep/exec/runspec"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The runtime's whole configuration of a container that asks for nothing, and
// of one with limits. The specification's own goldens are in runspec.
func TestConfig_Golden(t *testing.T) {
	plain := runspec.Input{
		ID: strings.Repeat("0123456789abcdef", 4), Config: container.Config{Cmd: []string{"/bin/true"}},
		Place: runspec.Place{
			Rootfs: "/n/rootfs", Netns: "/n/netns", Cgroup: "/skep-1/id",
			Hostname: "/n/hostname", Hosts: "/n/hosts", Resolv: "/n/resolv.conf",
		},
		Machine: runspec.Machine{SwapLimit: true, Raise: true},
	}
	limits := plain
	limits.Host = container.HostConfig{
		ReadonlyRootfs: true, OomScoreAdj: 100,
		Resources: container.Resources{
			Memory: 64 << 20, MemoryReservation: 32 << 20, NanoCPUs: 15e8, CPUShares: 512, PidsLimit: new(int64(50)),
		},
	}
	limits.Place.Mounts = []runspec.Mount{{Source: "/vol/data", Target: "/data"}, {Tmpfs: true, Target: "/tmp", Options: []string{"size=1m"}}}
	for name, in := range map[string]runspec.Input{"plain": plain, "limits": limits} {
		t.Run(name, func(t *testing.T) {
			spec, _, err := runspec.Generate(&in)
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := doors.Convert(in.ID, spec)
			if err != nil {
				t.Fatal(err)
			}
			cfg.Labels = nil           // the directory of the test
			cfg.Seccomp.Syscalls = nil // the profile's own affair
			got, err := json.MarshalIndent(cfg, "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
				t.Error(diff)
			}
		})
	}
}

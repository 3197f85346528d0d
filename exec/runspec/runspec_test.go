package runspec_test

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/google/go-cmp/cmp"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/runtime-spec/specs-go"

	"skep/exec/runspec"
)

var update = flag.Bool("update", false, "write the golden files anew")

func base() *runspec.Input {
	return &runspec.Input{
		ID:     strings.Repeat("0123456789abcdef", 4),
		Config: container.Config{Cmd: []string{"/bin/true"}},
		Place: runspec.Place{
			Rootfs: "/n/rootfs", Netns: "/n/netns", Cgroup: "/skep-1/id", Init: "/n/bin/skep",
			Hostname: "/n/hostname", Hosts: "/n/hosts", Resolv: "/n/resolv.conf",
		},
		Machine: runspec.Machine{SwapLimit: true, Raise: true, Capabilities: []string{"CAP_KILL", "CAP_NET_ADMIN"}, Known: []string{"CAP_KILL", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_SYS_ADMIN"}},
	}
}

// The whole specification of two containers: one that asks for nothing, and
// one that asks for all.
func TestGenerate_Golden(t *testing.T) {
	full := base()
	full.Config = container.Config{
		Hostname: "box", Domainname: "example.org", Tty: true, Env: []string{"A=b"},
		Entrypoint: []string{"/entry"}, Cmd: []string{"one", "two"}, WorkingDir: "/work",
	}
	full.Host = container.HostConfig{
		Init: new(true), ReadonlyRootfs: true, ShmSize: 1 << 20, OomScoreAdj: -500, ConsoleSize: [2]uint{24, 80},
		CapAdd: []string{"net_admin"}, CapDrop: []string{"CAP_KILL", "MKNOD"},
		SecurityOpt: []string{"no-new-privileges=false"},
		Sysctls:     map[string]string{"net.core.somaxconn": "9"},
		Resources: container.Resources{
			Memory: 64 << 20, MemoryReservation: 32 << 20, MemorySwap: 96 << 20, MemorySwappiness: new(int64(10)),
			NanoCPUs: 15e8, CPUShares: 512, CpusetCpus: "0-1", PidsLimit: new(int64(50)),
			Ulimits: []*units.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}},
		},
	}
	full.Place.Mounts = []runspec.Mount{
		{Source: "/vol/data", Target: "/a/b"},
		{Source: "/src", Target: "/a", ReadOnly: true, Options: []string{"rslave"}},
		{Tmpfs: true, Target: "/dev/shm", Options: []string{"size=1k"}},
		{Source: "/own/hosts", Target: "/etc/hosts"},
	}
	for name, in := range map[string]*runspec.Input{"plain": base(), "full": full} {
		t.Run(name, func(t *testing.T) {
			s, warnings, err := runspec.Generate(in)
			if err != nil || len(warnings) > 0 {
				t.Fatal(warnings, err)
			}
			if len(s.Linux.Seccomp.Syscalls) < 5 {
				t.Errorf("seccomp profile has %d rules", len(s.Linux.Seccomp.Syscalls))
			}
			s.Linux.Seccomp.Syscalls = nil // the profile's own affair, see below
			got, err := json.MarshalIndent(s, "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err = os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
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

func TestGenerate_Seccomp(t *testing.T) {
	s, _, err := runspec.Generate(base())
	if err != nil {
		t.Fatal(err)
	}
	p := s.Linux.Seccomp
	if len(p.Architectures) != 1 {
		t.Errorf("filter lets %v in, want the native architecture only", p.Architectures)
	}
	socket := 0
	for _, c := range p.Syscalls {
		if c.Action == specs.ActAllow && slices.Contains(c.Names, "socketcall") {
			t.Error("socketcall is allowed: it reaches AF_VSOCK")
		}
		if c.Action == specs.ActAllow && slices.Contains(c.Names, "socket") {
			if socket++; len(c.Args) == 0 {
				t.Error("socket is allowed for every family")
			}
		}
	}
	if socket == 0 || p.DefaultAction == specs.ActAllow {
		t.Errorf("not a filter: %d rules for socket, default %v", socket, p.DefaultAction)
	}
	in := base()
	in.Host.SecurityOpt = []string{"seccomp=unconfined"}
	if s, _, err := runspec.Generate(in); err != nil || s.Linux.Seccomp != nil {
		t.Errorf("unconfined: %v, %v", s.Linux.Seccomp, err)
	}
}

func TestGenerate_WarnsOfWhatTheMachineCannot(t *testing.T) {
	in := base()
	in.Machine.SwapLimit, in.Machine.Raise = false, false
	in.Host.Memory, in.Host.OomScoreAdj = 64<<20, -1
	s, warnings, err := runspec.Generate(in)
	if err != nil || len(warnings) != 2 || s.Process.OOMScoreAdj != nil || s.Linux.Resources.Memory.Swap != nil {
		t.Errorf("got %v, %v, %+v", warnings, err, s.Linux.Resources.Memory)
	}
}

func TestGenerate_Refuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(h *container.HostConfig)
		kind   error
	}{
		{"swap without memory", func(h *container.HostConfig) { h.MemorySwap = 1 << 30 }, errdefs.ErrInvalidArgument},
		{"swap below memory", func(h *container.HostConfig) { h.Memory, h.MemorySwap = 1<<30, 1<<20 }, errdefs.ErrInvalidArgument},
		{"reservation above limit", func(h *container.HostConfig) { h.Memory, h.MemoryReservation = 1<<30, 1<<31 }, errdefs.ErrInvalidArgument},
		{"two ways to limit CPU", func(h *container.HostConfig) { h.NanoCPUs, h.CPUQuota = 1, 1 }, errdefs.ErrInvalidArgument},
		{"soft above hard", func(h *container.HostConfig) { h.Ulimits = []*units.Ulimit{{Name: "core", Soft: 2, Hard: 1}} }, errdefs.ErrInvalidArgument},
		{"unknown security option", func(h *container.HostConfig) { h.SecurityOpt = []string{"magic=1"} }, errdefs.ErrInvalidArgument},
		{"broken profile", func(h *container.HostConfig) { h.SecurityOpt = []string{"seccomp={"} }, errdefs.ErrInvalidArgument},
		{"unknown capability", func(h *container.HostConfig) { h.CapDrop = []string{"FLY"} }, errdefs.ErrInvalidArgument},
		{"capability that the node lacks", func(h *container.HostConfig) { h.CapAdd = []string{"SYS_ADMIN"} }, errdefs.ErrInvalidArgument},
		{"links", func(h *container.HostConfig) { h.Links = []string{"db"} }, errdefs.ErrNotImplemented},
		{"PID namespace of another", func(h *container.HostConfig) { h.PidMode = "container:x" }, errdefs.ErrNotImplemented},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := base()
			tt.change(&in.Host)
			if _, _, err := runspec.Generate(in); !errors.Is(err, tt.kind) {
				t.Errorf("got %v, want %v", err, tt.kind)
			}
		})
	}
}

func TestMerge(t *testing.T) {
	img := dockerspec.DockerOCIImageConfig{}
	img.Entrypoint, img.Cmd = []string{"/e"}, []string{"c"}
	img.Env, img.User, img.WorkingDir = []string{"A=1", "B=2"}, "u", "/w"
	img.ExposedPorts = map[string]struct{}{"80/tcp": {}}
	img.Labels = map[string]string{"a": "img", "b": "img"}
	img.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"CMD", "x"}, Interval: time.Second}
	tests := []struct {
		name    string
		req     container.Config
		command []string
		env     []string
	}{
		{"all from the image", container.Config{}, []string{"/e", "c"}, []string{"A=1", "B=2"}},
		{"own arguments", container.Config{Cmd: []string{"d"}}, []string{"/e", "d"}, []string{"A=1", "B=2"}},
		{"own entrypoint drops the image's arguments", container.Config{Entrypoint: []string{"/f"}}, []string{"/f"}, []string{"A=1", "B=2"}},
		{"no entrypoint", container.Config{Entrypoint: []string{""}, Cmd: []string{"d"}}, []string{"d"}, []string{"A=1", "B=2"}},
		{"environment over the image's", container.Config{Env: []string{"B=3", "C=4", "A"}}, []string{"/e", "c"}, []string{"B=3", "C=4"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := runspec.Merge(tt.req, img)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.command, runspec.Command(&got)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.env, got.Env); diff != "" {
				t.Error(diff)
			}
			if _, ok := got.ExposedPorts[network.MustParsePort("80/tcp")]; !ok || got.User != "u" || got.WorkingDir != "/w" {
				t.Errorf("lost of the image: %+v", got)
			}
		})
	}
	got, err := runspec.Merge(container.Config{
		Labels: map[string]string{"b": "own"}, Healthcheck: &container.HealthConfig{Retries: 9},
	}, img)
	if err != nil || got.Labels["a"] != "img" || got.Labels["b"] != "own" || got.Healthcheck.Retries != 9 || got.Healthcheck.Interval != time.Second || got.Healthcheck.Test[1] != "x" {
		t.Errorf("merged %+v, %+v, %v", got.Labels, got.Healthcheck, err)
	}
	if len(img.Labels) != 2 || img.Healthcheck.Retries != 0 {
		t.Error("merging changed the image")
	}
}

func BenchmarkGenerate(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := runspec.Generate(base()); err != nil {
			b.Fatal(err)
		}
	}
}

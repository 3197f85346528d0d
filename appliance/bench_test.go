package appliance_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"skep/appliance/nodetest"
)

// BenchmarkBoot is the time from starting the process to ready, of a node that
// has state.
func BenchmarkBoot(b *testing.B) {
	n := nodetest.New(b, nodetest.Binary(b), "boot", nodetest.File)
	n.Start(b)
	n.Stop(b)
	for b.Loop() {
		n.Start(b)
		b.StopTimer()
		n.Stop(b)
		b.StartTimer()
	}
}

// BenchmarkService is the time from `service create` to all replicas running,
// and what the node and each container cost in memory then.
func BenchmarkService(b *testing.B) {
	for _, replicas := range []int{1, 10, 50, 100} {
		b.Run("replicas="+strconv.Itoa(replicas), func(b *testing.B) {
			n := nodetest.New(b, nodetest.Binary(b), "service", nodetest.File)
			n.Start(b)
			docker := n.CLI(b, dockerCLI(b))
			docker.Run("pull", "-q", "skep/hello")
			idle := resident(b, n.PID())
			for b.Loop() {
				docker.Run("service", "create", "-d", "--name", "web", "--replicas", strconv.Itoa(replicas), "skep/hello")
				want := fmt.Sprintf("%d/%d", replicas, replicas)
				await(b, func() bool { return strings.Contains(docker.Run("service", "ls"), want) })
				b.StopTimer()
				b.ReportMetric(float64(resident(b, n.PID())-idle)/float64(replicas)/1024, "KiB-node/container")
				b.ReportMetric(float64(shims(b, n))/float64(replicas)/1024, "KiB-shim/container")
				docker.Run("service", "rm", "web")
				await(b, func() bool { return len(n.Leftovers()) == 0 })
				b.StartTimer()
			}
			b.ReportMetric(float64(idle)/(1<<20), "MiB-idle")
		})
	}
}

func await(b *testing.B, f func() bool) {
	b.Helper()
	for end := time.Now().Add(3 * time.Minute); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatal("not in time")
		}
	}
}

// resident is a process's proportional share of memory that is its own, in bytes.
func resident(b *testing.B, pid int) int64 {
	b.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "Pss:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	return 0
}

// shims is the memory of all the containers' shims, in bytes.
func shims(b *testing.B, n *nodetest.Node) (sum int64) {
	b.Helper()
	for _, pid := range n.Processes() {
		if pid != n.PID() {
			sum += resident(b, pid)
		}
	}
	return sum
}

// BenchmarkRun is `docker run` of a program that ends at once, beside runc with
// the same root file system: the command line's own time is in the first only.
func BenchmarkRun(b *testing.B) {
	n := nodetest.New(b, nodetest.Binary(b), "run", nodetest.File)
	n.Start(b)
	docker := n.CLI(b, dockerCLI(b))
	docker.LoadBusybox()
	b.Run("docker-run", func(b *testing.B) {
		for b.Loop() {
			docker.Run("run", "--rm", "--network", "none", "busybox", "true")
		}
	})
	b.Run("docker-version", func(b *testing.B) {
		for b.Loop() {
			docker.Run("version")
		}
	})
	b.Run("runc-run", func(b *testing.B) {
		bundle := runcBundle(b)
		for i := 0; b.Loop(); i++ {
			cmd := exec.CommandContext(b.Context(), "runc", "run", "--bundle", bundle, fmt.Sprintf("bench%d", i))
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v %s", err, out)
			}
		}
	})
}

// runcBundle is a bundle that runs `true` of busybox.
func runcBundle(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	root := filepath.Join(dir, "rootfs", "bin")
	if err := os.MkdirAll(root, 0o755); err != nil {
		b.Fatal(err)
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		b.Fatal(err)
	}
	for _, args := range [][]string{
		{"cp", busybox, root + "/busybox"},
		{"ln", "-s", "busybox", root + "/true"},
		{"runc", "spec", "--bundle", dir},
		{"sed", "-i", `s/"terminal": true/"terminal": false/; s/"sh"/"true"/`, dir + "/config.json"},
	} {
		if out, err := exec.CommandContext(b.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			b.Fatalf("%v: %v %s", args, err, out)
		}
	}
	return dir
}

package control_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/pki"
)

func BenchmarkCall(b *testing.B) {
	w := newWorld(b, control.Route{For: members(), Pattern: "POST /echo", Handler: control.Handle(echo)})
	d := dialer(b, w.self)
	ctx := within(b, time.Minute)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := control.Call[ask, reply](ctx, d, w.peer, "/echo", &ask{"hello"}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStream(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10} {
		for _, up := range []bool{true, false} {
			b.Run(fmt.Sprintf("frame=%d/up=%t", size, up), func(b *testing.B) { benchmarkStream(b, size, up) })
		}
	}
}

func benchmarkStream(b *testing.B, size int, up bool) {
	b.Helper()
	frame := make([]byte, size)
	w := newWorld(b, control.Route{For: members(), Pattern: "POST /bulk", Handler: control.Stream(
		func(ctx context.Context, _ pki.Node, _ *http.Request, conn net.Conn) error {
			if up {
				_, err := io.Copy(io.Discard, conn)
				return err
			}
			_, err := conn.Read(make([]byte, 1))
			for err == nil {
				_, err = conn.Write(frame)
			}
			return nil
		})})
	c, err := dialer(b, w.self).Stream(within(b, time.Minute), w.peer, "/bulk")
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		if up {
			_, err = c.Write(frame)
		} else {
			_, err = io.ReadFull(c, frame)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHandshake is a connection's whole beginning: TCP, TLS, one call.
func BenchmarkHandshake(b *testing.B) {
	w := newWorld(b, control.Route{For: members(), Pattern: "POST /echo", Handler: control.Handle(echo)})
	ctx := within(b, time.Minute)
	for b.Loop() {
		d := control.NewDialer(control.DialerConfig{Identity: w.present.Load, Logger: logger(b)})
		if _, err := control.Call[ask, reply](ctx, d, w.peer, "/echo", &ask{"hello"}); err != nil {
			b.Fatal(err)
		}
		d.Close()
	}
}

// BenchmarkIdle is the memory of a manager for one agent with a session that
// has nothing to say: the callers are in a process of their own.
func BenchmarkIdle(b *testing.B) {
	const agents = 500
	w := newWorld(b, control.Route{For: members(), Pattern: "POST /streams/{id}", Handler: control.Stream(
		func(_ context.Context, _ pki.Node, _ *http.Request, conn net.Conn) error {
			session := bufio.NewReader(conn)
			for {
				c, err := session.ReadByte()
				if err != nil {
					return err
				}
				if _, err = conn.Write([]byte{c}); err != nil {
					return err
				}
			}
		})})
	w.book.set("w1", pki.Worker, 0)
	dir := b.TempDir()
	if err := w.save(b, dir, "w1"); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		before := inUse()
		cmd := exec.CommandContext(within(b, time.Minute), os.Args[0], "-test.run=^TestIdleCallers$")
		cmd.Env = append(os.Environ(), "CONTROL_CALLERS="+strings.Join([]string{dir, w.peer.Addr, strconv.Itoa(agents)}, " "))
		in, err := cmd.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("ready"))); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric((inUse()-before)/agents, "bytes/agent")
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			b.Fatal(err)
		}
	}
}

// inUse is what heap and stacks take, without what is free.
func inUse() float64 {
	for range 4 { // each halves the stacks that are mostly empty
		debug.FreeOSMemory()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapInuse + m.StackInuse)
}

// save puts an identity where another process can load it.
func (w *world) save(b *testing.B, dir, id string) error {
	b.Helper()
	certPEM, keyPEM, err := w.Root.Enroll(pki.Node{ID: id, Cluster: w.Cluster, Role: pki.Worker, Generation: 3}, time.Now(), time.Hour)
	if err != nil {
		return err
	}
	return os.WriteFile(dir+"/id.pem", bytes.Join([][]byte{certPEM, keyPEM, w.Root.PEM()}, nil), 0o600)
}

// TestIdleCallers is the other process of BenchmarkIdle.
func TestIdleCallers(t *testing.T) {
	f := strings.Fields(os.Getenv("CONTROL_CALLERS"))
	if len(f) == 0 {
		t.Skip("part of a benchmark")
	}
	id := load(t, f[0]+"/id.pem")
	n, err := strconv.Atoi(f[2])
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		c := open(t, dialer(t, id), wire.Peer{NodeID: "m1", Addr: f[1]})
		for range 3 {
			lives(t, "stream", c)
		}
	}
	_, _ = os.Stdout.WriteString("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func load(t *testing.T, path string) *control.Identity {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	leaf, rest, _ := bytes.Cut(text, []byte("-----BEGIN PRIVATE"))
	key, root, _ := bytes.Cut(rest, []byte("-----BEGIN CERT"))
	return identity(t, leaf, append([]byte("-----BEGIN PRIVATE"), key...), append([]byte("-----BEGIN CERT"), root...))
}

func identity(t *testing.T, certPEM, keyPEM, rootPEM []byte) *control.Identity {
	t.Helper()
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := pki.ParseChain(rootPEM)
	if err != nil {
		t.Fatal(err)
	}
	return &control.Identity{Certificate: cert, Roots: roots, Cluster: "swarm", NodeID: cert.Leaf.Subject.CommonName, Epoch: 1}
}

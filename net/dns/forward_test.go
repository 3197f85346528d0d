// SPDX-License-Identifier: Apache-2.0

package dns_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	wire "github.com/miekg/dns"

	"skep/net/dns"
)

// upstream is what a name server does with a question; nil is no answer.
type upstream func(network string, m *wire.Msg) *wire.Msg

// elsewhere is the world outside: name servers by address.
type elsewhere struct {
	mu    sync.Mutex
	at    map[netip.AddrPort]upstream
	asked []string
}

var one, two, three, four = netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53"),
	netip.MustParseAddrPort("192.0.2.3:53"), netip.MustParseAddrPort("192.0.2.4:53")

// dial connects to one that serves until the connection ends.
func (e *elsewhere) dial(_ context.Context, network string, server netip.AddrPort) (net.Conn, error) {
	e.mu.Lock()
	e.asked = append(e.asked, fmt.Sprintf("%s/%s", server.Addr(), network))
	serve := e.at[server]
	e.mu.Unlock()
	if serve == nil {
		return nil, syscall.ECONNREFUSED
	}
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		for {
			b, err := read(theirs, network)
			if err != nil {
				return
			}
			m := new(wire.Msg)
			if m.Unpack(b) != nil {
				return
			}
			reply := serve(network, m)
			if reply == nil {
				continue
			}
			b, err = reply.Pack()
			if err != nil {
				return
			}
			if network == "tcp" {
				b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
			}
			if _, err := theirs.Write(b); err != nil {
				return
			}
		}
	}()
	return ours, nil
}

func read(conn net.Conn, network string) ([]byte, error) {
	b := make([]byte, 65535)
	if network == "tcp" {
		if _, err := io.ReadFull(conn, b[:2]); err != nil {
			return nil, err
		}
		b = b[:binary.BigEndian.Uint16(b)]
		_, err := io.ReadFull(conn, b)
		return b, err
	}
	n, err := conn.Read(b)
	return b[:n], err
}

func answering(address string) upstream {
	return func(_ string, m *wire.Msg) *wire.Msg {
		r := new(wire.Msg).SetReply(m)
		r.Answer = []wire.RR{&wire.A{
			Hdr: wire.RR_Header{Name: m.Question[0].Name, Rrtype: wire.TypeA, Class: wire.ClassINET, Ttl: 30},
			A:   net.ParseIP(address),
		}}
		return r
	}
}

func failing(rcode int) upstream {
	return func(_ string, m *wire.Msg) *wire.Msg { return new(wire.Msg).SetRcode(m, rcode) }
}

func silent(string, *wire.Msg) *wire.Msg { return nil }

func after(d time.Duration, u upstream) upstream {
	return func(network string, m *wire.Msg) *wire.Msg {
		time.Sleep(d)
		return u(network, m)
	}
}

func TestForward_AsksOneAfterAnother(t *testing.T) {
	tests := []struct {
		name    string
		servers map[netip.AddrPort]upstream
		ask     []netip.AddrPort
		want    string
		took    time.Duration
	}{
		{"the first answers", map[netip.AddrPort]upstream{one: answering("10.0.0.1"), two: answering("10.0.0.2")}, []netip.AddrPort{one, two}, "NOERROR 30:10.0.0.1", 0},
		{"it knows that there is none", map[netip.AddrPort]upstream{one: failing(wire.RcodeNameError), two: answering("10.0.0.2")}, []netip.AddrPort{one, two}, "NXDOMAIN", 0},
		{"it is not there", map[netip.AddrPort]upstream{two: answering("10.0.0.2")}, []netip.AddrPort{one, two}, "NOERROR 30:10.0.0.2", 0},
		{"it fails", map[netip.AddrPort]upstream{one: failing(wire.RcodeServerFailure), two: answering("10.0.0.2")}, []netip.AddrPort{one, two}, "NOERROR 30:10.0.0.2", 0},
		{"it refuses", map[netip.AddrPort]upstream{one: failing(wire.RcodeRefused), two: answering("10.0.0.2")}, []netip.AddrPort{one, two}, "NOERROR 30:10.0.0.2", 0},
		{"all refuse", map[netip.AddrPort]upstream{one: failing(wire.RcodeServerFailure), two: failing(wire.RcodeRefused)}, []netip.AddrPort{one, two}, "REFUSED", 0},
		{"it is silent", map[netip.AddrPort]upstream{one: silent, two: answering("10.0.0.2")}, []netip.AddrPort{one, two}, "NOERROR 30:10.0.0.2", dns.Patience},
		{"two are silent", map[netip.AddrPort]upstream{one: silent, two: silent, three: answering("10.0.0.3")}, []netip.AddrPort{one, two, three}, "NOERROR 30:10.0.0.3", 2 * dns.Patience},
		{"it is slow, the next slower", map[netip.AddrPort]upstream{one: after(2*time.Second, answering("10.0.0.1")), two: after(2*time.Second, answering("10.0.0.2"))}, []netip.AddrPort{one, two}, "NOERROR 30:10.0.0.1", 2 * time.Second},
		{"one refuses, one is silent", map[netip.AddrPort]upstream{one: failing(wire.RcodeRefused), two: silent}, []netip.AddrPort{one, two}, "REFUSED", dns.AskTimeout},
		{"all are silent", map[netip.AddrPort]upstream{one: silent, two: silent}, []netip.AddrPort{one, two}, dns.ErrSilent.Error(), dns.AskTimeout},
		{"there is no fourth", map[netip.AddrPort]upstream{four: answering("10.0.0.4")}, []netip.AddrPort{one, two, three, four}, syscall.ECONNREFUSED.Error(), 0},
		{"one is named twice", map[netip.AddrPort]upstream{one: failing(wire.RcodeRefused)}, []netip.AddrPort{one, one}, "REFUSED", 0},
		{"there is none", nil, nil, dns.ErrNoUpstream.Error(), 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := dns.NewForwarder((&elsewhere{at: tt.servers}).dial)
				packet := question(t, "example.com", wire.TypeA)
				start := time.Now()
				got := ""
				reply, err := f.Ask(t.Context(), tt.ask, packet, false)
				if err == nil {
					m := unpack(t, reply)
					got = text(m)
					if m.Id != binary.BigEndian.Uint16(packet) {
						t.Error("the answer has another number")
					}
				}
				if err != nil && !errors.Is(err, dns.ErrSilent) && !errors.Is(err, dns.ErrNoUpstream) && !errors.Is(err, syscall.ECONNREFUSED) {
					t.Error(err)
				}
				if err == nil && got != tt.want || err != nil && !contains(err, tt.want) {
					t.Errorf("got %s %v, want %s", got, err, tt.want)
				}
				if took := time.Since(start); took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				time.Sleep(time.Minute) // the slow ones end
			})
		})
	}
}

func contains(err error, text string) bool {
	for _, known := range []error{dns.ErrSilent, dns.ErrNoUpstream, syscall.ECONNREFUSED} {
		if known.Error() == text {
			return errors.Is(err, known)
		}
	}
	return false
}

func TestForward_OverlooksAnswersToOtherQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []uint16
		dial := func(context.Context, string, netip.AddrPort) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() {
				defer theirs.Close()
				b, err := read(theirs, "udp")
				m := new(wire.Msg)
				if err != nil || m.Unpack(b) != nil {
					return
				}
				sent = append(sent, m.Id)
				for _, change := range []func(*wire.Msg){
					func(r *wire.Msg) { r.Question[0].Name = "other.example." },
					func(r *wire.Msg) { r.Id++ },
					func(r *wire.Msg) { r.Response = false },
					func(r *wire.Msg) { r.Question[0].Qtype = wire.TypeAAAA },
					func(*wire.Msg) {},
				} {
					r := answering("10.0.0.1")("udp", m)
					r.Question = []wire.Question{m.Question[0]}
					change(r)
					b, _ := r.Pack()
					if _, err := theirs.Write(b); err != nil {
						return
					}
				}
			}()
			return ours, nil
		}
		f := dns.NewForwarder(dial)
		packet := question(t, "example.com", wire.TypeA)
		reply, err := f.Ask(t.Context(), []netip.AddrPort{one}, packet, false)
		if err != nil {
			t.Fatal(err)
		}
		if got := text(unpack(t, reply)); got != "NOERROR 30:10.0.0.1" {
			t.Errorf("got %s", got)
		}
		synctest.Wait()
		if len(sent) != 1 || sent[0] == binary.BigEndian.Uint16(packet) {
			t.Errorf("asked with the numbers %x; the client's was %x", sent, packet[:2])
		}
	})
}

func TestForward_AsksByStreamWhatWasCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cut := func(network string, m *wire.Msg) *wire.Msg {
			r := answering("10.0.0.1")(network, m)
			if network == "udp" {
				r.Answer, r.Truncated = nil, true
			}
			return r
		}
		e := &elsewhere{at: map[netip.AddrPort]upstream{one: cut}}
		f := dns.NewForwarder(e.dial)
		for _, stream := range []bool{false, true} {
			reply, err := f.Ask(t.Context(), []netip.AddrPort{one}, question(t, "example.com", wire.TypeA), stream)
			if err != nil {
				t.Fatal(err)
			}
			if got := text(unpack(t, reply)); got != "NOERROR 30:10.0.0.1" {
				t.Errorf("got %s", got)
			}
		}
		if got, want := fmt.Sprint(e.asked), "[192.0.2.1/udp 192.0.2.1/tcp 192.0.2.1/tcp]"; got != want {
			t.Errorf("asked %s, want %s", got, want)
		}
	})
}

func TestForward_AsksTheSilentLastForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &elsewhere{at: map[netip.AddrPort]upstream{one: silent, two: answering("10.0.0.2")}}
		f := dns.NewForwarder(e.dial)
		packet := question(t, "example.com", wire.TypeA)
		ask := func(want time.Duration) {
			t.Helper()
			start := time.Now()
			if _, err := f.Ask(t.Context(), []netip.AddrPort{one, two}, packet, false); err != nil {
				t.Error(err)
			}
			if took := time.Since(start); took != want {
				t.Errorf("took %v, want %v", took, want)
			}
		}
		ask(dns.Patience)
		ask(0)
		time.Sleep(dns.SlowFor + time.Second)
		ask(dns.Patience)
		e.mu.Lock()
		e.at[one] = answering("10.0.0.1")
		e.mu.Unlock()
		time.Sleep(dns.SlowFor + time.Second)
		ask(0)
	})
}

func TestForward_BoundsHowManyAreAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := dns.NewForwarder((&elsewhere{at: map[netip.AddrPort]upstream{one: silent}}).dial)
		packet := question(t, "example.com", wire.TypeA)
		var running sync.WaitGroup
		for range dns.MaxAsking {
			running.Go(func() {
				if _, err := f.Ask(t.Context(), []netip.AddrPort{one}, packet, false); !errors.Is(err, dns.ErrSilent) {
					t.Errorf("got %v", err)
				}
			})
		}
		synctest.Wait()
		if _, err := f.Ask(t.Context(), []netip.AddrPort{one}, packet, false); !errors.Is(err, dns.ErrBusy) {
			t.Errorf("got %v, want %v", err, dns.ErrBusy)
		}
		running.Wait()
	})
}

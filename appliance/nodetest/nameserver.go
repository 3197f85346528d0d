package nodetest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/testscript"
)

// cmdNameserver serves names at port 53 of all addresses of the machine until
// the script ends.
func cmdNameserver(ts *testscript.TestScript, _ bool, args []string) {
	zone := zone{}
	for _, arg := range args {
		name, text, _ := strings.Cut(arg, "=")
		addr, err := netip.ParseAddr(text)
		ts.Check(err)
		zone[dns.CanonicalName(name)] = addr
	}
	var packets net.PacketConn
	ts.Check(node(ts).Do(func() (err error) {
		packets, err = (&net.ListenConfig{}).ListenPacket(context.Background(), "udp4", ":53")
		return err
	}))
	server := &dns.Server{PacketConn: packets, Handler: zone}
	served := make(chan error, 1)
	go func() { served <- server.ActivateAndServe() }()
	ts.Defer(func() {
		_ = packets.Close()
		if err := <-served; !errors.Is(err, net.ErrClosed) {
			ts.Check(err)
		}
	})
}

// zone is all that a name server knows.
type zone map[string]netip.Addr

// ServeDNS answers one question.
func (z zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	answer := new(dns.Msg).SetReply(q)
	question := q.Question[0]
	addr, ok := z[dns.CanonicalName(question.Name)]
	switch {
	case !ok:
		answer.Rcode = dns.RcodeNameError
	case question.Qtype == dns.TypeA:
		answer.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: addr.AsSlice(),
		}}
	}
	_ = w.WriteMsg(answer) // lost, as packets may be
}

package dataplane

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"skep/appliance/wire"
)

// secret is the network front, encrypted.
func secret() *wire.NetworkMembers {
	n := front()
	n.Encrypted = true
	return members(n, nil)
}

func keys(version uint64) *wire.Tunnels {
	return &wire.Tunnels{Version: version, Pairs: []wire.TunnelPair{{Node: "n2", Address: addr("192.0.2.2"), Out: &wire.TunnelKey{SPI: 256}}}}
}

func TestEncryption_IsThereBeforeTheNetworkAndAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cfg.ESP = espPart{w}
		w.run(t)
		w.Set(view(1))
		want(t, w, "frames", "names", "encrypt 0, 0 peers") // an earlier process may have left some
		// Without keys there is no network.
		w.Set(view(2, secret()))
		want(t, w, "frames", "names")
		no := errors.New("no")
		w.failing("encrypt", no)
		w.SetTunnels(keys(5))
		want(t, w, "encrypt 4790, 1 peers", "frames", "names")
		w.failing("encrypt", nil)
		time.Sleep(soonest)
		want(t, w, "encrypt 4790, 1 peers", "frames front:0", "names front:0")
		// What is there stays while the kernel refuses the next keys.
		w.failing("encrypt", no)
		w.SetTunnels(keys(6))
		want(t, w, "encrypt 4790, 1 peers", "frames front:0", "names front:0")
		w.failing("encrypt", nil)
		w.acked = nil
		w.Set(view(3))
		want(t, w, "encrypt 4790, 1 peers", "frames front:0", "names", "frames", "encrypt 0, 0 peers")
		w.Set(nil)
		want(t, w, "frames", "names")
	})
}

func TestEncryption_ANetworkThatIsThereWaitsForKeysAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cfg.ESP = espPart{w}
		w.made = map[string]bool{"front": true}
		w.run(t)
		w.Set(view(2, secret()))
		want(t, w, "frames front:0", "names front:0")
		w.SetTunnels(keys(5))
		want(t, w, "encrypt 4790, 1 peers", "frames front:0", "names front:0")
	})
}

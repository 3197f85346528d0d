package storetest

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Disturb does something bad to the cluster, or undoes that, and says what.
func (c *Cluster) Disturb(r *rand.Rand) {
	what := c.disturb(r)
	c.Trace.Log("NEMESIS: %s", what)
}

func (c *Cluster) disturb(r *rand.Rand) string {
	i, j := r.IntN(len(c.nodes)), r.IntN(len(c.nodes))
	if r.IntN(2) == 0 {
		for k := range c.nodes { // the one that it hurts most
			if m := c.Member(k); m != nil && m.Leading() {
				i = k
			}
		}
	}
	a, b := c.Name(i), c.Name(j)
	switch r.IntN(22) {
	case 0, 1:
		c.Partition(i)
		return "cut off " + a
	case 2:
		if len(c.nodes) > 3 {
			c.Partition(i, j)
			return "cut off " + a + " and " + b
		}
		fallthrough
	case 3:
		for _, n := range c.nodes {
			c.Net.Cut(a, n.name, n.name != a)
		}
		return "cut what goes out of " + a
	case 4:
		for _, n := range c.nodes {
			c.Net.Cut(n.name, a, n.name != a)
		}
		return "cut what goes into " + a
	case 5:
		c.Net.Cut(a, b, a != b)
		return "cut " + a + " to " + b
	case 6, 7:
		c.Crash(i)
		return "crash " + a
	case 8:
		for k := range c.nodes {
			c.Crash(k)
		}
		c.startAll()
		return "power failure"
	case 9:
		c.Stop(i)
		return "stop " + a
	case 10:
		c.Disk(i).Slow(time.Duration(r.IntN(800)) * time.Millisecond)
		return "slow disk of " + a
	case 11:
		c.Disk(i).Fail(1 + r.IntN(3))
		return "failing disk of " + a
	case 12:
		c.Disk(i).Hang()
		return "hanging disk of " + a
	case 13:
		d := time.Duration(r.IntN(300)) * time.Millisecond
		c.Net.Slow(d)
		return fmt.Sprint("slow network: ", d)
	case 14, 15:
		c.Mend()
		return "mend all"
	case 16:
		c.startAll()
		c.admit()
		return "start and admit all"
	case 17, 18:
		return "replace " + a + c.Replace(i)
	case 19:
		return "demote " + a + c.demote(i)
	case 20:
		return "transfer leadership" + c.transfer()
	default:
		c.Net.Heal()
		return "heal the network"
	}
}

func (c *Cluster) startAll() {
	for i := range c.nodes {
		c.Start(i)
	}
}

// Rest makes all well and gives the cluster time.
func (c *Cluster) Rest(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); <-time.After(time.Second) {
		c.Mend()
		c.admit()
	}
}

// Mend makes all well, for now: who met a bad disk may die of it yet.
func (c *Cluster) Mend() {
	c.Net.Heal()
	for i := range c.nodes {
		c.Disk(i).Mend()
	}
	c.startAll()
}

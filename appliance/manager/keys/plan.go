package keys

import (
	"slices"
	"time"

	"skep/store/object"
)

const (
	// Every is how long a key is used. At a thousand nodes and 200 messages a
	// second of each, random nonces of gossip stay unlikely to repeat for this long.
	Every = 6 * time.Hour
	// Wait is how long a new key is waited with for nodes that do not say that
	// they have it, and how long an old one is understood after it.
	Wait = 60 * time.Second
	// Most is how many keys there are at once.
	Most = 3
	// look is how often it is asked whether all nodes have the new key.
	look = time.Second
)

// Plan is the next step of a change of keys, and when to plan again if there
// is none. acked says that all nodes that can be reached have the keys; fresh is
// the key to take if another one is needed.
func Plan(k object.KeyRing, now time.Time, acked bool, fresh []byte) (next object.KeyRing, at time.Time) {
	next = k
	waited := since(k.Stepped, now, Wait) >= Wait
	switch {
	case len(k.Keys) == 0:
		next.Keys = [][]byte{fresh}
		next.Step, next.Rotated, next.Answered = object.KeyRest, now.UnixNano(), k.Departures
	case k.Answered != k.Departures, k.Step == object.KeyRest && since(k.Rotated, now, Every) >= Every:
		next.Keys = append(used(k), fresh)
		next.Step, next.Rotated, next.Answered = object.KeyAdd, now.UnixNano(), k.Departures
	case k.Step == object.KeyAdd && (acked || waited):
		last := len(k.Keys) - 1
		next.Keys = slices.Concat(k.Keys[last:], k.Keys[:last])
		next.Step = object.KeyUse
	case k.Step == object.KeyUse && waited:
		next.Keys = k.Keys[:1:1]
		next.Step = object.KeyRest
	default:
		return k, due(k, now)
	}
	next.Version++
	next.Stepped = now.UnixNano()
	return next, time.Time{}
}

// used are the keys that somebody may send with, the oldest left out if there
// would be too many. A key that is only being added is not among them: who is
// not to have the next one may know it.
func used(k object.KeyRing) [][]byte {
	n := len(k.Keys)
	if k.Step == object.KeyAdd {
		n--
	}
	return slices.Clone(k.Keys[:min(n, Most-1)])
}

// since is the time that has passed. A manager whose clock was far ahead must
// not make the others wait for it.
func since(ns int64, now time.Time, most time.Duration) time.Duration {
	d := now.Sub(time.Unix(0, ns))
	if d < -most {
		return most
	}
	return d
}

func due(k object.KeyRing, now time.Time) time.Time {
	switch k.Step {
	case object.KeyAdd:
		return now.Add(look)
	case object.KeyUse:
		return time.Unix(0, k.Stepped).Add(Wait)
	default:
		return time.Unix(0, k.Rotated).Add(Every)
	}
}

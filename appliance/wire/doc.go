// Package wire is what a node's agent and the leading manager say to each other.
//
// A session is one connection. Either side sends a [Message] at any time; a
// message is one CBOR value in a frame: its length as four bytes, the highest
// first, then the value, at most [MaxFrame] bytes. Decoding is strict: a field
// or key that is not known, a key that is there twice, an empty message or one
// with more than one part ends the session.
//
//	agent                                 manager
//	Hello ─────────────────────────────►
//	      ◄───────────────────────────── Welcome (or Refusal)
//	      ◄───────────────────────────── Swarm
//	      ◄───────────────────────────── Assignments, complete, in parts
//	Acknowledge ───────────────────────►
//	Statuses ──────────────────────────►
//	      ◄───────────────────────────── Acknowledge
//	Beat ──────────────────────────────►
//	      ◄───────────────────────────── Beat, with the next period
//	      ◄───────────────────────────── Assignments, incremental
//	Describe ──────────────────────────►
//	Holdings, complete, then changes ──►
//	      ◄───────────────────────────── Invite: open a stream of that name
//
// The package promises that what [Conn.Receive] returns is well formed; it does
// not know who the other side is (the connection's owner does) and keeps no
// state between messages.
package wire

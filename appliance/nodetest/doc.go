// Package nodetest runs real nodes for tests: the real binary, in a network
// namespace of its own, driven by the real docker command line.
//
// A [Rig] is what one test has: a scratch directory and nodes in it. When the
// test ends, the rig stops every process that its nodes started, also those
// that outlive a node by design, and unmounts what is left.
package nodetest

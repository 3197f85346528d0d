// Package nodetest runs real nodes for tests: the real binary, in a network
// namespace of its own, driven by the real docker command line.
//
// A [Node] belongs to one test. When the test ends, the node is reset: every
// process that it started, also those that outlive a node by design, and
// everything that it made in the kernel goes.
package nodetest

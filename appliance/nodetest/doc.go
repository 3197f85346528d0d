// Package nodetest runs real nodes for tests: the real binary, in a network
// namespace of its own, driven by the real docker command line.
//
// A [Swarm] is many nodes. Each has a machine of its own, which is namespaces of
// every kind, with power that can be cut, and all are on one switch that can be
// told what not to let through.
//
// A [Node] belongs to one test. When the test ends, the node is reset: every
// process that it started, also those that outlive a node by design, and
// everything that it made in the kernel goes.
package nodetest

// Package share lets the nodes of a swarm read each other's images over the
// control port.
//
// A node asks the manager that leads for a blob by its digest; the manager
// answers with its own or relays that of a node that has the image, over a
// stream that the node opened:
//
//	node ── GET /blobs/{digest} ──► manager that leads ── the same ──► node that has it
//	     ── POST /lookup ─────────► directory of images
//
// Every node may have every blob of every image that some node holds, if it
// knows the digest, and nothing else of any node's disk. Nothing is buffered
// whole, and nothing is verified on the way: whoever asked verifies.
package share

// Package membership is the node's part in a swarm: none, a worker's or a
// manager's.
//
// A [Membership] waits for a swarm to found or to join, or takes up the one
// that the keystore names. A stay in a swarm (stay.go) is an agent, a session
// with the manager that leads, and a certificate that is renewed in time. While
// the certificate is a manager's there is also the manager's half (managing.go):
// the control port, a replica of the store and, while it leads, the loops. A
// promotion or a demotion is a new certificate, on which that half starts or
// ends; the agent goes on all the time.
//
// The package promises that what Init, Join and Leave did is on the disk when
// they return, and that a node which stopped in the middle of any of them is
// either in the swarm or not. It runs no containers and serves no admin API.
package membership

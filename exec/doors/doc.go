// Package doors is what a process of ours does that was started to create a
// container, to join one, or to become one: it is told by a [Job], and ends.
//
// Main calls [Door] first of all. Every start of a container and every exec
// pays twice for the initialisation of all packages that are linked in, so
// this package imports little, and the program in doors/runtime has nothing
// else; shims run from that program where the node's binary carries it (see
// exec/embedded), or else from a copy of the binary itself.
//
// It does not decide anything about containers: that is exec/containers.
package doors

// Package engine is the Docker Engine API, versions 1.24 to 1.51, over the
// swarm's store and this node's runtime, with one file per resource.
//
// It promises Docker's routes, shapes, texts and status codes as far as they
// go, that an error is always {"message": …}, that a body can be read in one
// way only, and that what is not built is refused with 501 and said. Changes to
// the swarm are conditional: they name the version that they are for, and two
// clients never overwrite each other unseen.
//
// It does not decide who may call a route: each has a role, and package admin
// keeps it (but see hostAccess). It does not run anything: services are only
// written down here, and the manager's loops do the rest.
package engine

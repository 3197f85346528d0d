// Package admin is the door of the admin API: who may come in and what they
// may do. It opens the listeners (unix socket, vsock, TCP under mutual TLS),
// finds out who is at the other end, decides by the matched route whether the
// request is allowed, caps its body, and keeps a sealed, hash-chained record
// of every change that was asked for.
//
// It promises that a request without a route is answered 404, that a route
// without a role cannot exist, and that a route that changes something leaves
// exactly one audit record, also when it was denied.
//
// It does not know what the routes do; package engine does.
package admin

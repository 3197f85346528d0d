// Package identity keeps what makes a node this node: its IDs, the key and the
// certificate that it shows, the roots that it trusts and the keys that all
// its other files are sealed with.
//
// All of it is one sealed file, the keystore, so that no part can be out of
// step with another. The file is replaced as a whole: after a crash at any
// moment it holds the state from before an update or the one after it, and an
// update that returned is there. Its own key (the KEK) lies beside it, or,
// with autolock, is the unlock key that the operator keeps.
//
// The package does not decide anything about certificates (pki does) and does
// not know what else is sealed.
package identity

// Package appliance makes a node out of the parts of the other packages and
// runs it.
//
// [Run] is the whole of it: the data directory, the keystore, the runtime, the
// swarm membership and the admin API, in that order, as one group whose first
// failure ends all. What a node is made of is in node.go; being a member of a
// swarm is membership's. The rest joins interfaces together.
package appliance
